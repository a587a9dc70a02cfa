//! Variables of a scenario, and sums over them.
//!
//! A sum is terms with `+` and `-` between them, modulo 2^64 as in C: scenarios write `0-P` for the last page. A term is a
//! name, or a number as C reads it with an optional suffix: `K`, `M`, `G`, `T` (powers of 1024) or `P` (system pages).

use std::collections::BTreeMap;
use std::fmt;

/// The kind of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A number.
    Number,
    /// An open file.
    File,
    /// Memory of this many bytes.
    Memory(u64),
}

/// A variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Variable {
    /// Its kind.
    pub kind: Kind,
    /// The number, the address of the memory, or the descriptor of the file.
    pub value: u64,
}

/// A line that cannot be performed; its transcript line is `PARSE_ERROR`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Malformed {}

/// The variables of a process.
#[derive(Clone, Debug)]
pub struct Names {
    variables: BTreeMap<String, Variable>,
    page: u64,
}

/// Names are cut to this length, as in the recorder of the stored answers.
const NAME: usize = 23;

impl Names {
    /// No variables, on a system with pages of `page` bytes.
    #[must_use]
    pub fn new(page: u64) -> Self {
        Self { variables: BTreeMap::new(), page }
    }

    /// Bytes in a system page.
    #[must_use]
    pub fn page(&self) -> u64 {
        self.page
    }

    /// The variable `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Variable> {
        self.variables.get(name).copied()
    }

    /// Sets the variable `name`.
    pub fn set(&mut self, name: &str, kind: Kind, value: u64) {
        self.variables.insert(name.chars().take(NAME).collect(), Variable { kind, value });
    }

    /// The descriptor of the open file `name`.
    ///
    /// # Errors
    /// [`Malformed`] if no file has this name.
    pub fn file(&self, name: &str) -> Result<u64, Malformed> {
        match self.get(name) {
            Some(Variable { kind: Kind::File, value }) => Ok(value),
            _ => Err(Malformed(format!("no file '{name}'"))),
        }
    }

    /// The value of a sum.
    ///
    /// # Errors
    /// [`Malformed`] for an unknown name or text behind a term.
    pub fn sum(&self, text: &str) -> Result<u64, Malformed> {
        let (mut rest, mut minus) = match text.strip_prefix('-') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let mut sum = 0_u64;
        loop {
            let (term, after) = self.term(rest)?;
            sum = if minus { sum.wrapping_sub(term) } else { sum.wrapping_add(term) };
            let mut left = after.chars();
            match left.next() {
                None => return Ok(sum),
                Some(sign @ ('+' | '-')) => (minus, rest) = (sign == '-', left.as_str()),
                Some(_) => return Err(Malformed(format!("trailing '{after}'"))),
            }
        }
    }

    /// The value of the term that `text` begins with, and the text behind it.
    fn term<'t>(&self, text: &'t str) -> Result<(u64, &'t str), Malformed> {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let (value, rest) = number(text);
            let scaled = match rest.chars().next() {
                Some('K') => value.wrapping_shl(10),
                Some('M') => value.wrapping_shl(20),
                Some('G') => value.wrapping_shl(30),
                Some('T') => value.wrapping_shl(40),
                Some('P') => value.wrapping_mul(self.page),
                _ => return Ok((value, rest)),
            };
            return Ok((scaled, &rest[1..]));
        }
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let length = text.find(|c| !part(c)).unwrap_or(text.len()).min(NAME);
        let (name, rest) = text.split_at(length);
        match self.get(name) {
            _ if name == "P" => Ok((self.page, rest)),
            Some(variable) => Ok((variable.value, rest)),
            None => Err(Malformed(format!("unknown name '{name}'"))),
        }
    }

    /// In a region call (`m.`), replaces the word `N` behind the name of a memory by the memory's number of pages, because that
    /// number depends on the page size and transcripts show it. A variable `N` is kept.
    pub fn spell_page_counts(&self, words: &mut [String]) {
        if !words.first().is_some_and(|op| op.starts_with("m.")) || self.get("N").is_some() {
            return;
        }
        for index in 1..words.len() {
            let before = self.get(&words[index - 1]).map(|variable| variable.kind);
            if let (Some(Kind::Memory(bytes)), "N") = (before, words[index].as_str()) {
                words[index] = (bytes / self.page).to_string();
            }
        }
    }
}

/// A number as C reads it (`0x` hexadecimal, a leading 0 octal, saturating), and the text behind it.
fn number(text: &str) -> (u64, &str) {
    let hex = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let hex = hex.filter(|rest| rest.starts_with(|c: char| c.is_ascii_hexdigit()));
    let (digits, radix) = match hex {
        Some(rest) => (rest, 16),
        None if text.starts_with('0') => (text, 8),
        None => (text, 10),
    };
    let end = digits.find(|c: char| !c.is_digit(radix)).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    (u64::from_str_radix(digits, radix).unwrap_or(u64::MAX), rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(page: u64) -> Names {
        let mut names = Names::new(page);
        names.set("A", Kind::Memory(4 * page), 0x2000_0000);
        names.set("c0", Kind::File, 5);
        names
    }

    fn sum(text: &str) -> Result<u64, String> {
        names(4096).sum(text).map_err(|error| error.to_string())
    }

    #[test]
    fn sums_of_suffixed_numbers_and_names() {
        assert_eq!(sum("A+2P-4K"), Ok(0x2000_1000));
        assert_eq!(sum("0-P"), Ok(0_u64.wrapping_sub(4096)));
        assert_eq!(sum("-1"), Ok(u64::MAX));
        assert_eq!(sum("0x10G"), Ok(16 << 30));
        assert_eq!(sum("0xffffffff"), Ok(0xffff_ffff));
        assert_eq!(sum("010"), Ok(8));
        assert_eq!(sum("1T"), Ok(1 << 40));
        assert_eq!(sum("0P"), Ok(0));
        assert_eq!(sum("99999999999999999999"), Ok(u64::MAX));
        assert_eq!(sum("P"), Ok(4096));
        assert_eq!(sum("c0"), Ok(5));
        assert_eq!(names(0x1_0000).sum("2P"), Ok(0x2_0000));
    }

    #[test]
    fn malformed_sums_say_why() {
        assert_eq!(sum("B"), Err("unknown name 'B'".to_owned()));
        assert_eq!(sum("1x"), Err("trailing 'x'".to_owned()));
        assert_eq!(sum("08"), Err("trailing '8'".to_owned()));
        assert_eq!(sum("0x"), Err("trailing 'x'".to_owned()));
        assert_eq!(sum("1KK"), Err("trailing 'K'".to_owned()));
        assert_eq!(sum("12X"), Err("trailing 'X'".to_owned()));
        assert_eq!(sum(""), Err("unknown name ''".to_owned()));
        assert_eq!(sum("1+"), Err("unknown name ''".to_owned()));
        assert_eq!(sum("é"), Err("unknown name ''".to_owned()));
        assert!(sum("abcdefghijklmnopqrstuvwxyz").is_err());
    }

    #[test]
    fn files_are_found_by_name_and_kind() {
        assert_eq!(names(4096).file("c0"), Ok(5));
        assert_eq!(names(4096).file("A"), Err(Malformed("no file 'A'".to_owned())));
        assert!(names(4096).file("c1").is_err());
    }

    #[test]
    fn a_page_count_is_spelled_behind_its_memory_only() {
        let spelled = |names: &Names, text: &str| {
            let mut words: Vec<String> = text.split(' ').map(str::to_owned).collect();
            names.spell_page_counts(&mut words);
            words.join(" ")
        };
        let mut names = names(4096);
        assert_eq!(spelled(&names, "m.new 0 A N"), "m.new 0 A 4");
        assert_eq!(spelled(&names, "m.new 0 c0 N"), "m.new 0 c0 N");
        assert_eq!(spelled(&names, "register c0 A N"), "register c0 A N");
        names.set("N", Kind::Number, 1);
        assert_eq!(spelled(&names, "m.new 0 A N"), "m.new 0 A N");
    }
}
