//! `layers.toml`: the rooms of the workspace, who may import whom, and where `unsafe` may stand.

use std::collections::BTreeSet;

use serde::Deserialize;

use crate::finding::Finding;

/// The whole file.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    /// Crates from outside that any room's tests may use.
    pub(crate) outside_tests: BTreeSet<String>,
    /// Lowest first: a room may import only rooms above its own line.
    pub(crate) room: Vec<Room>,
    /// Files that may say `unsafe`.
    #[serde(default, rename = "unsafe")]
    pub(crate) unsafe_files: Vec<UnsafeFile>,
}

/// One crate of the workspace.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Room {
    pub(crate) name: String,
    /// The folder of its manifest, from the workspace root.
    pub(crate) folder: String,
    /// Rooms it may import.
    #[serde(default)]
    pub(crate) imports: BTreeSet<String>,
    /// Rooms its tests may import besides.
    #[serde(default)]
    pub(crate) test_imports: BTreeSet<String>,
    /// Crates from outside the workspace it may import.
    #[serde(default)]
    pub(crate) outside: BTreeSet<String>,
    /// Nobody imports it: models, tools, benchmarks.
    #[serde(default)]
    pub(crate) evidence: bool,
    /// Lower rooms may use it in their tests although it stands above them.
    #[serde(default)]
    pub(crate) helps_tests: bool,
}

/// One file that may say `unsafe`.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct UnsafeFile {
    pub(crate) file: String,
    /// What cannot be said in safe Rust there.
    pub(crate) reason: String,
    /// How often the word may stand there, tests included.
    pub(crate) most: usize,
}

impl Policy {
    /// # Errors
    /// The parser's message, with its line.
    pub(crate) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    pub(crate) fn room(&self, name: &str) -> Option<&Room> {
        self.room.iter().find(|room| room.name == name)
    }

    /// Whether the table itself keeps the one-way rule.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        let mut above: BTreeSet<&str> = BTreeSet::new();
        for room in &self.room {
            let mut say =
                |text: String| findings.push(Finding::in_crate(&room.name, format!("layers.toml: {text}")));
            for import in &room.imports {
                match self.room(import) {
                    None => say(format!("imports {import:?}, which is no room")),
                    Some(target) if target.evidence => {
                        say(format!("imports {import}; nobody imports evidence"));
                    }
                    Some(_) if !above.contains(import.as_str()) => {
                        say(format!("imports {import}, which does not stand above it; imports go one way"));
                    }
                    Some(_) => {}
                }
            }
            for import in &room.test_imports {
                match self.room(import) {
                    None => say(format!("its tests import {import:?}, which is no room")),
                    Some(target) if target.evidence => {
                        say(format!("its tests import {import}; nobody imports evidence"));
                    }
                    Some(target) if !target.helps_tests && !above.contains(import.as_str()) => {
                        say(format!("its tests import {import}, which stands below it and is no test help"));
                    }
                    Some(_) => {}
                }
            }
            if !above.insert(&room.name) {
                say("stands there twice".to_owned());
            }
        }
        findings
    }
}
