//! `mutants.toml`: the mutated code, its tests, and the mutants that may survive with their reasons.

use serde::Deserialize;

use super::name::MutantName;

/// The whole file.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    /// Code that cargo-mutants changes, with its tests.
    pub(crate) scope: Vec<Scope>,
    /// Classes of mutants that are not made.
    #[serde(default)]
    pub(crate) excluded: Vec<Excluded>,
    /// Memory-order mutants.
    pub(crate) orders: Orders,
    /// Mutants that survive.
    #[serde(default)]
    pub(crate) accepted: Vec<Accepted>,
}

/// Files of one crate.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Scope {
    pub(crate) package: String,
    /// Globs, as cargo-mutants takes them.
    pub(crate) files: Vec<String>,
    /// Arguments of `cargo test` that select the tests.
    pub(crate) tests: Vec<String>,
}

/// A class of mutants that no test should notice.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Excluded {
    /// A part of the names of these mutants, as `cargo xtask mutants --list` prints them.
    pub(crate) text: String,
    pub(crate) reason: String,
}

/// Memory-order mutants: their folders, and the exchanges.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Orders {
    /// Folders with files in which orderings are weakened and calls of fences removed.
    pub(crate) folders: Vec<String>,
    /// Names of functions and methods that are fences: each call is removed.
    pub(crate) fences: Vec<String>,
    /// Test programs of the loom models, in order; all that exist.
    pub(crate) loom_tests: Vec<String>,
    /// Integration tests of the core that miri runs, in this order.
    pub(crate) miri_tests: Vec<MiriTest>,
    /// Pieces of a function that are exchanged.
    #[serde(default)]
    pub(crate) exchange: Vec<Exchange>,
}

/// A test program for miri, run against mutants that survive all cheaper tests.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct MiriTest {
    /// The name of the test program.
    pub(crate) test: String,
    /// A part of the names of the tests to run.
    #[serde(default)]
    pub(crate) filter: String,
    /// Number of seeds.
    pub(crate) seeds: u32,
}

/// Two pieces of a function that are exchanged. Each must occur exactly once.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Exchange {
    pub(crate) file: String,
    /// `Type::function`, or `function`.
    pub(crate) function: String,
    pub(crate) first: String,
    pub(crate) second: String,
}

/// A mutant that survives.
#[derive(Deserialize, Clone, Debug)]
pub(crate) struct Accepted {
    #[serde(flatten)]
    pub(crate) name: MutantName,
    pub(crate) reason: String,
}

impl Policy {
    /// # Errors
    /// The parser's message, with its line.
    pub(crate) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }
}
