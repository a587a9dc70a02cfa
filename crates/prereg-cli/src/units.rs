//! Sizes and counts as text.

use std::fmt;

/// A number of bytes: `1 GiB`, `8 MiB`, `1.5 MiB`, `17 B`.
#[derive(Clone, Copy, Debug)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        if self.0 < 1024 {
            return write!(f, "{} B", self.0);
        }
        let unit = (self.0.ilog2() / 10).min(6);
        let size = 1u64 << (unit * 10);
        let name = UNITS[unit as usize - 1];
        if self.0 % size == 0 {
            write!(f, "{} {name}", self.0 / size)
        } else {
            write!(f, "{:.1} {name}", self.0 as f64 / size as f64)
        }
    }
}

/// A count with thousands separators: `1,027,282`.
#[derive(Clone, Copy, Debug)]
pub struct Count(pub u64);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (i, digit) in digits.chars().enumerate() {
            if i > 0 && (digits.len() - i) % 3 == 0 {
                f.write_str(",")?;
            }
            write!(f, "{digit}")?;
        }
        Ok(())
    }
}

/// A count with a noun, which is given in the singular: `1 map`, `2 maps`, `0 accesses`.
#[derive(Clone, Copy, Debug)]
pub struct Number(pub u64, pub &'static str);

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(count, name) = self;
        let ending = match (count, name.ends_with('s')) {
            (1, _) => "",
            (_, true) => "es",
            (_, false) => "s",
        };
        write!(f, "{} {name}{ending}", Count(*count))
    }
}

/// Parses a size in bytes: `4096`, `64K`, `256M`, `1G`, `1GiB`.
///
/// # Errors
/// The reason.
pub fn parse_bytes(text: &str) -> Result<u64, String> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let shift = match &*text[number.len()..].to_ascii_lowercase() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err("the suffix must be K, M, G or T (powers of 1024)".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "expected a whole number, like 256M".to_owned())?;
    number.checked_mul(1 << shift).ok_or_else(|| "more bytes than 64 bits can count".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_the_largest_unit_that_fits() {
        for (bytes, shown) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (8 << 20, "8 MiB"),
            (3 << 19, "1.5 MiB"),
            (1 << 30, "1 GiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), shown);
        }
    }

    #[test]
    fn sizes_are_parsed_with_their_suffix() {
        for (text, bytes) in
            [("4096", 4096), ("64K", 65536), ("256m", 256 << 20), ("1GiB", 1 << 30), ("0", 0)]
        {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in ["", "M", "-1", "+", "1.5G", "1X", "99999999999T", "1 G", "ä"] {
            parse_bytes(bad).unwrap_err();
        }
    }

    #[test]
    fn a_noun_is_in_the_plural_unless_the_count_is_one() {
        let shown = [(0, "map"), (1, "map"), (2000, "map"), (1, "access"), (3, "access")]
            .map(|(count, name)| Number(count, name).to_string());
        assert_eq!(shown, ["0 maps", "1 map", "2,000 maps", "1 access", "3 accesses"]);
    }

    #[test]
    fn counts_have_thousands_separators() {
        for (count, shown) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_027_282, "1,027,282")] {
            assert_eq!(Count(count).to_string(), shown);
        }
    }
}
