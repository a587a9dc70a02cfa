//! Deliberate differences from the kernel: the rules of `conformance/deviations.toml`.
//!
//! A rule is narrow: it names the operations, both answers, and the cause of prereg's answer (which transcripts do not show),
//! so that a defect with the same numbers is not taken for a deviation.

use std::collections::BTreeSet;

use prereg_scenario::transcript::Answer;
use serde::Deserialize;

/// All rules, in the order of trial.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Deviations {
    /// The rules.
    #[serde(rename = "deviation", default)]
    pub rules: Vec<Rule>,
}

/// A deviation.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its name in reports.
    pub id: String,
    /// The operations it applies to.
    pub ops: Vec<String>,
    /// The kernel's answers: `ok`, `-ERRNO`, `positive` (any number but 0), with the following words, the last of which may end
    /// in `*`.
    pub kernel: Vec<String>,
    /// prereg's answers, in this format.
    pub ours: Vec<String>,
    /// The cause of prereg's answer, in one word.
    pub cause: String,
    /// The difference of locked memory after it.
    #[serde(default)]
    pub lck: Locked,
    /// Whether the states of kernel and prereg differ after it.
    pub taints: bool,
    /// The reason for the deviation.
    pub reason: String,
}

/// The difference between the kernel's locked memory and prereg's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Locked {
    /// No difference.
    #[default]
    Same,
    /// The kernel may have locked more.
    More,
    /// The kernel may have locked less.
    Less,
    /// The kernel has locked more, and from here on exactly this much.
    Leaked,
}

/// An answer of the kernel's transcript.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded<'a> {
    /// `ok`, `-ERRNO` or a number.
    pub code: &'a str,
    /// The other words.
    pub extra: String,
    /// Locked memory in KiB.
    pub locked_kib: Option<u64>,
}

impl<'a> Recorded<'a> {
    /// Parses the text behind `=>`.
    #[must_use]
    pub fn parse(answer: &'a str) -> Self {
        let mut words = answer.split_whitespace();
        let code = words.next().unwrap_or("");
        let mut locked_kib = None;
        let mut extra: Vec<&str> = Vec::new();
        for word in words {
            match word.strip_prefix("lck=") {
                Some(number) => locked_kib = number.parse().ok(),
                None if word.starts_with("rss=")
                    || word.starts_with("size=")
                        && code == "ok"
                        && extra.iter().any(|word| word.starts_with("pin=")) => {}
                None => extra.push(word),
            }
        }
        Self { code, extra: extra.join(" "), locked_kib }
    }
}

/// An error in the rules.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// Not TOML, or not of this shape.
    #[error("{0}")]
    Shape(#[from] toml::de::Error),
    /// Two rules have this name.
    #[error("two deviations are named {0}")]
    Twice(String),
}

impl Deviations {
    /// The rules that are compiled in.
    pub const BUILT_IN: &'static str = include_str!("../deviations.toml");

    /// Parses rules.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn parse(text: &str) -> Result<Self, RulesError> {
        let deviations: Self = toml::from_str(text)?;
        let mut names = BTreeSet::new();
        for rule in &deviations.rules {
            if !names.insert(&rule.id) {
                return Err(RulesError::Twice(rule.id.clone()));
            }
        }
        Ok(deviations)
    }

    /// The rule that explains the kernel's answer `kernel` and prereg's answer `ours` to `op`; `more_kib` is the kernel's
    /// locked memory beyond the known difference.
    #[must_use]
    pub fn explain(&self, op: &str, kernel: &Recorded<'_>, ours: &Answer, more_kib: i128) -> Option<&Rule> {
        let our_code = ours.code.to_string();
        self.rules.iter().find(|rule| {
            rule.cause == ours.cause
                && rule.ops.iter().any(|named| named == op)
                && rule.kernel.iter().any(|pattern| matches(pattern, kernel.code, &kernel.extra))
                && rule.ours.iter().any(|pattern| matches(pattern, &our_code, &ours.extra))
                && match rule.lck {
                    Locked::Same => more_kib == 0,
                    Locked::More => more_kib >= 0,
                    Locked::Less => more_kib <= 0,
                    Locked::Leaked => more_kib > 0,
                }
        })
    }
}

fn matches(pattern: &str, code: &str, extra: &str) -> bool {
    let (wanted, words) = pattern.split_once(' ').unwrap_or((pattern, ""));
    let code_fits = match wanted {
        "positive" => code.parse::<u64>().is_ok_and(|number| number > 0),
        _ => wanted == code,
    };
    code_fits
        && match words.strip_suffix('*') {
            Some(start) => extra.starts_with(start),
            None => words == extra,
        }
}

impl Recorded<'_> {
    /// Whether `answer` has the same result and words; locked memory is not compared.
    pub(super) fn agrees(&self, answer: &Answer) -> bool {
        self.extra == answer.extra && self.code == answer.code.to_string()
    }
}

#[cfg(test)]
mod tests {
    use prereg::Errno;

    use super::*;
    use crate::transcript::failed_for;

    #[test]
    fn the_rules_built_in_can_be_read_and_say_why() {
        let deviations = Deviations::parse(Deviations::BUILT_IN).unwrap();
        for rule in &deviations.rules {
            assert!(!rule.cause.is_empty(), "{}: a rule without a cause would explain anything", rule.id);
            assert!(rule.reason.len() > 20, "{}: say why", rule.id);
            assert!(rule.lck == Locked::Same || rule.taints, "{}: locked memory is state", rule.id);
        }
    }

    #[test]
    fn a_rule_explains_only_what_it_names() {
        let text = "[[deviation]]\nid='x'\nops=['register']\nkernel=['positive']\nours=['-EFAULT']\ncause='pin'\n\
                    taints=false\nreason='.'\n";
        let rules = Deviations::parse(text).unwrap();
        let ours = failed_for(Errno::EFAULT, "pin");
        let kernel = Recorded::parse("12 lck=0");
        assert!(rules.explain("register", &kernel, &ours, 0).is_some());
        assert!(rules.explain("register", &kernel, &ours, 4).is_none(), "locked memory differs");
        assert!(rules.explain("map", &kernel, &ours, 0).is_none(), "another operation");
        assert!(
            rules.explain("register", &Recorded::parse("ok lck=0"), &ours, 0).is_none(),
            "another answer"
        );
        let other = failed_for(Errno::EFAULT, "");
        assert!(rules.explain("register", &kernel, &other, 0).is_none(), "for another reason");
        assert!(Deviations::parse(&text.repeat(2)).is_err());
    }
}
