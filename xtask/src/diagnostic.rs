//! A violation of a rule: its place, and how to mend it.

use std::fmt;
use std::path::Path;

/// A violation of a rule.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Diagnostic {
    place: String,
    text: String,
}

impl Diagnostic {
    pub(crate) fn at(file: &Path, line: usize, text: impl Into<String>) -> Self {
        Self { place: format!("{}:{line}", file.display()), text: text.into() }
    }

    pub(crate) fn in_file(file: &Path, text: impl Into<String>) -> Self {
        Self { place: file.display().to_string(), text: text.into() }
    }

    pub(crate) fn in_crate(name: &str, text: impl Into<String>) -> Self {
        Self { place: format!("crate {name}"), text: text.into() }
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.text)
    }
}
