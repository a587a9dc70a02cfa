//! Parsing of `/sys` files and names.

/// The choice in brackets: `always [madvise] never` is `madvise`.
pub(super) fn selected(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    let (choice, _) = rest.split_once(']')?;
    (!choice.is_empty()).then(|| choice.to_owned())
}

/// The page size of a pool by its folder's name: `hugepages-2048kB` is 2 MiB.
pub(super) fn huge_page(folder: &str) -> Option<u64> {
    let kib: u64 = folder.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    kib.checked_mul(1024).filter(|bytes| bytes.is_power_of_two())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_choice_is_what_stands_in_brackets() {
        assert_eq!(selected("always [madvise] never\n").as_deref(), Some("madvise"));
        assert_eq!(selected("[never]").as_deref(), Some("never"));
        for text in ["", "always", "[", "]", "[]", "][", "always [madvise"] {
            assert_eq!(selected(text), None, "{text:?}");
        }
    }

    #[test]
    fn only_folders_of_pools_name_a_page() {
        assert_eq!(huge_page("hugepages-2048kB"), Some(2 << 20));
        assert_eq!(huge_page("hugepages-1048576kB"), Some(1 << 30));
        for name in [
            "",
            "hugepages-",
            "hugepages-kB",
            "hugepages-0kB",
            "hugepages-3kB",
            "hugepages--1kB",
            "hugepages-18446744073709551615kB",
            "2048kB",
            "hugepages-2048KB",
        ] {
            assert_eq!(huge_page(name), None, "{name:?}");
        }
    }
}
