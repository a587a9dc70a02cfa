//! The names of a scenario and the sums over them.
//!
//! A sum is terms with `+` and `-` between, computed modulo 2^64 as C does. A term is a name or a number; a number may
//! end in `K`, `M`, `G`, `T` (powers of 1024) or `P` (pages of the kernel).

use std::collections::HashMap;

/// What a name stands for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Value {
    Number(u64),
    /// An open file.
    File(i32),
}

/// A line that says nothing that could be asked: the transcript has `PARSE_ERROR` for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Malformed(pub(crate) String);

/// The names that a process knows.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    values: HashMap<String, Value>,
    page: u64,
}

impl Names {
    pub(crate) fn new(page: u64) -> Self {
        Self { values: HashMap::new(), page }
    }

    /// Bytes in a page of the kernel.
    pub(crate) fn page(&self) -> u64 {
        self.page
    }

    pub(crate) fn set(&mut self, name: &str, value: Value) {
        self.values.insert(name.to_owned(), value);
    }

    /// The open file `name`.
    pub(crate) fn file(&self, name: &str) -> Result<i32, Malformed> {
        match self.values.get(name) {
            Some(Value::File(fd)) => Ok(*fd),
            _ => Err(Malformed(format!("no open file '{name}'"))),
        }
    }

    /// The value of a sum.
    pub(crate) fn sum(&self, text: &str) -> Result<u64, Malformed> {
        let (mut rest, mut total, mut minus) = (text, 0_u64, false);
        if let Some(after) = rest.strip_prefix('-') {
            (rest, minus) = (after, true);
        }
        loop {
            let end = rest.find(['+', '-']).unwrap_or(rest.len());
            let term = self.term(&rest[..end])?;
            total = if minus { total.wrapping_sub(term) } else { total.wrapping_add(term) };
            let Some(sign) = rest.as_bytes().get(end) else { return Ok(total) };
            minus = *sign == b'-';
            rest = &rest[end + 1..];
        }
    }

    fn term(&self, text: &str) -> Result<u64, Malformed> {
        if !text.starts_with(|first: char| first.is_ascii_digit()) {
            return match self.values.get(text) {
                _ if text == "P" => Ok(self.page),
                Some(Value::Number(number)) => Ok(*number),
                Some(Value::File(fd)) => Ok(u64::from(fd.unsigned_abs())),
                None => Err(Malformed(format!("unknown name '{text}'"))),
            };
        }
        let unit = match text.as_bytes().last() {
            Some(b'K') => Some(1 << 10),
            Some(b'M') => Some(1 << 20),
            Some(b'G') => Some(1 << 30),
            Some(b'T') => Some(1 << 40),
            Some(b'P') => Some(self.page),
            _ => None,
        };
        let digits = if unit.is_some() { &text[..text.len() - 1] } else { text };
        let number = match digits.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None if digits.len() > 1 && digits.starts_with('0') => u64::from_str_radix(digits, 8),
            None => digits.parse(),
        };
        match number {
            Ok(number) => Ok(number.wrapping_mul(unit.unwrap_or(1))),
            Err(error) => Err(Malformed(format!("'{text}' is no number: {error}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_have_units_names_and_wrap() {
        let mut names = Names::new(0x1_0000);
        names.set("A", Value::Number(0x2_0000_0000));
        names.set("c0", Value::File(5));
        let sums = [
            ("A+2P-4K", 0x2_0000_0000 + 0x2_0000 - 0x1000),
            ("P", 0x1_0000),
            ("0-P", 0_u64.wrapping_sub(0x1_0000)),
            ("-1", u64::MAX),
            ("0xffffffff", 0xffff_ffff),
            ("010", 8),
            ("1T", 1 << 40),
            ("0P", 0),
            ("c0", 5),
        ];
        for (text, value) in sums {
            assert_eq!(names.sum(text), Ok(value), "{text}");
        }
        for text in ["", "B", "1+", "12X", "0x", "1KK", "99999999999999999999"] {
            assert!(names.sum(text).is_err(), "{text}");
        }
        assert_eq!(names.file("c0"), Ok(5));
        assert!(names.file("A").is_err() && names.file("c1").is_err());
    }
}
