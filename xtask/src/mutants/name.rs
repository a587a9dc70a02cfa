//! Names of mutants without line numbers, which survive edits elsewhere in the file.
//!
//! A name is the file, the change and its function, and the text of the source line. If several mutants have the same (two `==`
//! on one line), they are numbered in source order.

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;

/// The name of one mutant.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Deserialize)]
pub(crate) struct MutantName {
    /// From the root of the workspace.
    pub(crate) file: String,
    /// The change, and its function.
    pub(crate) mutation: String,
    /// The source line where the change begins, trimmed.
    pub(crate) at: String,
    /// From 1; 0 if the other parts are unique.
    #[serde(default)]
    pub(crate) nth: usize,
}

impl MutantName {
    /// The name of `mutation` at `line`, from 1, of `source`, the text of `file`.
    pub(crate) fn new(file: &str, mutation: &str, source: &str, line: usize) -> Self {
        let at = source.lines().nth(line.saturating_sub(1)).unwrap_or_default().trim();
        Self { file: file.to_owned(), mutation: mutation.to_owned(), at: at.to_owned(), nth: 0 }
    }

    /// The name as one entry of the list of accepted mutants, without its reason.
    pub(crate) fn entry(&self) -> String {
        let quoted = |text: &str| toml::Value::from(text).to_string();
        let mut entry = format!(
            "[[accepted]]\nfile = {}\nmutation = {}\nat = {}\n",
            quoted(&self.file),
            quoted(&self.mutation),
            quoted(&self.at)
        );
        if self.nth > 0 {
            entry.push_str(&format!("nth = {}\n", self.nth));
        }
        entry
    }
}

impl fmt::Display for MutantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} at `{}`", self.file, self.mutation, self.at)?;
        if self.nth > 0 { write!(f, " #{}", self.nth) } else { Ok(()) }
    }
}

/// Numbers names that occur more than once; `names` is in source order.
pub(crate) fn number<'a>(names: impl IntoIterator<Item = &'a mut MutantName>) {
    let mut names: Vec<&mut MutantName> = names.into_iter().collect();
    let mut count: BTreeMap<MutantName, usize> = BTreeMap::new();
    for name in &names {
        *count.entry((**name).clone()).or_default() += 1;
    }
    let mut given: BTreeMap<MutantName, usize> = BTreeMap::new();
    for name in &mut names {
        if count.get(name).is_some_and(|&count| count > 1) {
            let number = given.entry((**name).clone()).or_default();
            *number += 1;
            name.nth = *number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_occur_more_than_once_are_numbered_in_order() {
        let source = "fn f() {\n    a == b && a == c\n}\n";
        let mut names: Vec<MutantName> =
            ["== to !=", "&& to ||", "== to !="].map(|what| MutantName::new("a.rs", what, source, 2)).into();
        number(&mut names);
        assert_eq!(names.iter().map(|name| name.nth).collect::<Vec<_>>(), [1, 0, 2]);
        assert_eq!(names[2].to_string(), "a.rs: == to != at `a == b && a == c` #2");
    }

    #[test]
    fn an_entry_reads_back_as_the_name_it_was_made_of() {
        let name = MutantName {
            file: "a.rs".to_owned(),
            mutation: "replace f -> &str with \"xyzzy\"".to_owned(),
            at: r#"'\\' => "it's""#.to_owned(),
            nth: 2,
        };
        #[derive(Deserialize)]
        struct File {
            accepted: Vec<MutantName>,
        }
        let file: File = toml::from_str(&name.entry()).expect("valid");
        assert_eq!(file.accepted, [name]);
    }
}
