//! Numbers and names of the scenario language: sums of numbers with suffixes, the page size `P`, and variables.
//!
//! Sums wrap at 2^64, as they do where the answers were recorded: scenarios write `0-P` for the last page.

use std::collections::BTreeMap;

/// What a variable stands for.
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
    /// What it stands for.
    pub kind: Kind,
    /// Its number: the address of memory, the descriptor of a file.
    pub value: u64,
}

/// The variables of a process.
#[derive(Clone, Debug, Default)]
pub struct Names(BTreeMap<String, Variable>);

/// The longest name; what is longer is cut.
const NAME: usize = 23;

impl Names {
    /// What `name` stands for.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Variable> {
        self.0.get(name).copied()
    }

    /// Says what `name` stands for.
    pub fn set(&mut self, name: &str, kind: Kind, value: u64) {
        let cut: String = name.chars().take(NAME).collect();
        self.0.insert(cut, Variable { kind, value });
    }

    /// The value of a sum. A term that is not known counts as 0 and is reported in `wrong`.
    pub fn sum(&self, text: &str, page: u64, wrong: &mut Option<String>) -> u64 {
        let (mut rest, mut minus) = match text.strip_prefix('-') {
            Some(rest) => (rest, true),
            None => (text, false),
        };
        let mut sum = 0u64;
        loop {
            let (term, after) = self.term(rest, page, wrong);
            sum = if minus { sum.wrapping_sub(term) } else { sum.wrapping_add(term) };
            let mut left = after.chars();
            match left.next() {
                None => return sum,
                Some(sign @ ('+' | '-')) => (minus, rest) = (sign == '-', left.as_str()),
                Some(_) => {
                    wrong.get_or_insert_with(|| format!("trailing '{after}'"));
                    return sum;
                }
            }
        }
    }

    fn term<'t>(&self, text: &'t str, page: u64, wrong: &mut Option<String>) -> (u64, &'t str) {
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let (value, rest) = number(text);
            let scaled = |shift: u32| value.wrapping_shl(shift);
            let suffixed = match rest.chars().next() {
                Some('K') => scaled(10),
                Some('M') => scaled(20),
                Some('G') => scaled(30),
                Some('T') => scaled(40),
                Some('P') => value.wrapping_mul(page),
                _ => return (value, rest),
            };
            return (suffixed, &rest[1..]);
        }
        let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        let length = text.find(|c| !part(c)).unwrap_or(text.len()).min(NAME);
        let (name, rest) = text.split_at(length);
        if name == "P" {
            return (page, rest);
        }
        match self.get(name) {
            Some(variable) => (variable.value, rest),
            None => {
                wrong.get_or_insert_with(|| format!("unknown name '{name}'"));
                (0, rest)
            }
        }
    }
}

/// A number as C reads it: `0x` hexadecimal, a leading 0 octal, saturating.
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

    fn sum(text: &str) -> Result<u64, String> {
        let mut names = Names::default();
        names.set("A", Kind::Memory(0), 0x2000_0000);
        let mut wrong = None;
        let value = names.sum(text, 4096, &mut wrong);
        wrong.map_or(Ok(value), Err)
    }

    #[test]
    fn sums_of_suffixed_numbers_and_names() {
        assert_eq!(sum("A+2P-4K"), Ok(0x2000_1000));
        assert_eq!(sum("0-P"), Ok(0u64.wrapping_sub(4096)));
        assert_eq!(sum("-1"), Ok(u64::MAX));
        assert_eq!(sum("0x10G"), Ok(16 << 30));
        assert_eq!(sum("010"), Ok(8));
        assert_eq!(sum("99999999999999999999"), Ok(u64::MAX));
        assert_eq!(sum("P"), Ok(4096));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        assert_eq!(sum("B"), Err("unknown name 'B'".to_owned()));
        assert_eq!(sum("1x"), Err("trailing 'x'".to_owned()));
        assert_eq!(sum("08"), Err("trailing '8'".to_owned()));
        assert_eq!(sum(""), Err("unknown name ''".to_owned()));
        assert_eq!(sum("1+"), Err("unknown name ''".to_owned()));
        assert_eq!(sum("é"), Err("unknown name ''".to_owned()));
        assert!(sum("abcdefghijklmnopqrstuvwxyz").is_err());
    }
}
