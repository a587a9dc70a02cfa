//! `layers.toml`: the crates of the workspace, the imports each may have, and the files that may contain `unsafe`.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::diagnostic::Diagnostic;

/// The whole file.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    /// External crates that the tests of every crate may use.
    pub(crate) outside_tests: BTreeSet<String>,
    /// Lowest layer first: a crate may import only crates above its own entry.
    #[serde(rename = "crate")]
    pub(crate) crates: Vec<CratePolicy>,
    /// Files that may contain `unsafe`.
    #[serde(default, rename = "unsafe")]
    pub(crate) unsafe_files: Vec<UnsafeFile>,
}

/// One crate of the workspace.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct CratePolicy {
    pub(crate) name: String,
    /// The folder of its manifest, from the workspace root.
    pub(crate) folder: String,
    /// Workspace crates that it may import.
    #[serde(default)]
    pub(crate) imports: BTreeSet<String>,
    /// Workspace crates that its tests may import besides.
    #[serde(default)]
    pub(crate) test_imports: BTreeSet<String>,
    /// External crates that it may import.
    #[serde(default)]
    pub(crate) outside: BTreeSet<String>,
    /// No crate may import it: models and tools.
    #[serde(default)]
    pub(crate) evidence: bool,
    /// Tests of lower crates may import it.
    #[serde(default)]
    pub(crate) helps_tests: bool,
}

/// One file that may contain `unsafe`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnsafeFile {
    pub(crate) file: String,
    /// The reason why safe Rust is not enough.
    pub(crate) reason: String,
    /// The number of occurrences of the word, tests included.
    pub(crate) most: usize,
}

impl Policy {
    /// # Errors
    /// The parser's message, with its line.
    pub(crate) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    pub(crate) fn crate_policy(&self, name: &str) -> Option<&CratePolicy> {
        self.crates.iter().find(|entry| entry.name == name)
    }

    /// Violations of the one-way rule within the table itself.
    pub(crate) fn diagnostics(&self) -> Vec<Diagnostic> {
        let mut diagnostics = Vec::new();
        let mut above: BTreeSet<&str> = BTreeSet::new();
        for entry in &self.crates {
            let mut report = |text: String| {
                diagnostics.push(Diagnostic::in_crate(&entry.name, format!("layers.toml: {text}")));
            };
            for import in &entry.imports {
                match self.crate_policy(import) {
                    None => report(format!("imports {import:?}, which is no crate of the table")),
                    Some(target) if target.evidence => {
                        report(format!("imports {import}, which is evidence; no crate imports evidence"));
                    }
                    Some(_) if !above.contains(import.as_str()) => {
                        report(format!(
                            "imports {import}, which does not stand above it; imports go one way"
                        ));
                    }
                    Some(_) => {}
                }
            }
            for import in &entry.test_imports {
                match self.crate_policy(import) {
                    None => report(format!("its tests import {import:?}, which is no crate of the table")),
                    Some(target) if target.evidence => {
                        report(format!(
                            "its tests import {import}, which is evidence; no crate imports evidence"
                        ));
                    }
                    Some(target) if !target.helps_tests && !above.contains(import.as_str()) => {
                        report(format!(
                            "its tests import {import}, which stands below it and is no test help"
                        ));
                    }
                    Some(_) => {}
                }
            }
            if !above.insert(&entry.name) {
                report("stands there twice".to_owned());
            }
        }
        diagnostics
    }
}
