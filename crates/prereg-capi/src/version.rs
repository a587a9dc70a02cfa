//! The version of the header and of the running library.

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::c_char;

/// The major version of this header and of the ABI, and the number in the library's soname.
pub const PREREG_VERSION_MAJOR: u32 = 0;
/// The minor version. A program runs with a library of the same major version and this or a later minor version.
pub const PREREG_VERSION_MINOR: u32 = 2;
/// The patch level.
pub const PREREG_VERSION_PATCH: u32 = 0;

/// The version of the running library: major << 16 | minor << 8 | patch.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_version_number() -> u32 {
    PREREG_VERSION_MAJOR << 16 | PREREG_VERSION_MINOR << 8 | PREREG_VERSION_PATCH
}

/// The version of the running library as text.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_version() -> *const c_char {
    const TEXT: &str = concat!(env!("CARGO_PKG_VERSION"), "\0");
    TEXT.as_ptr().cast()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_header_has_the_version_of_the_package() {
        let numbers = [super::PREREG_VERSION_MAJOR, super::PREREG_VERSION_MINOR, super::PREREG_VERSION_PATCH];
        assert_eq!(numbers.map(|number| number.to_string()).join("."), env!("CARGO_PKG_VERSION"));
    }
}
