//! Mutants of return values and operators, made and tried by cargo-mutants.
//!
//! cargo-mutants works in each copy of the workspace with the build results of earlier runs, so that a mutant costs an
//! incremental build and the tests of its crate. The results are read from `outcomes.json`, which cargo-mutants writes after
//! every mutant, so that an interrupted run has results.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::thread;
use std::time::Instant;

use serde::Deserialize;

use super::error::Error;
use super::name::{MutantName, number};
use super::policy::{Excluded, Policy, Scope};
use super::process::{self, limited, seconds_until};
use super::report::Verdict;
use super::tree::{TARGET, Trees};
use prereg_vm::cache::Cache;

/// Minimum of seconds for one `cargo test`: on a busy machine a mutant must not look like an endless loop.
const TEST_TIMEOUT: &str = "60";

/// Exit codes of cargo-mutants after a complete run: all killed, some missed, some timed out.
const FINISHED: [i32; 3] = [0, 2, 3];

/// Exit code of `timeout` after the time limit.
const TIME_WAS_UP: i32 = 124;

/// A mutant of cargo-mutants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct LogicMutant {
    pub(crate) name: MutantName,
    /// The name with line and column that cargo-mutants uses.
    id: String,
    /// Index of its scope.
    scope: usize,
}

impl LogicMutant {
    /// Whether both are the same change.
    pub(crate) fn is(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

/// A mutant in the output of cargo-mutants.
#[derive(Deserialize)]
struct Listed {
    name: String,
    file: String,
    span: Span,
}

#[derive(Deserialize)]
struct Span {
    start: Position,
}

#[derive(Deserialize)]
struct Position {
    line: usize,
}

/// `outcomes.json`.
#[derive(Deserialize)]
struct Outcomes {
    outcomes: Vec<Outcome>,
}

#[derive(Deserialize)]
struct Outcome {
    scenario: Scenario,
    summary: String,
}

#[derive(Deserialize)]
enum Scenario {
    Baseline,
    Mutant(Listed),
}

/// All mutants of the scopes of `policy` in the copy at `tree`, without excluded ones; with `diff` only those of its lines. And
/// the classes of `policy` that excluded nothing.
///
/// # Errors
/// The message of cargo-mutants.
pub(crate) fn list<'a>(
    tree: &Path,
    policy: &'a Policy,
    diff: Option<&Path>,
) -> Result<(Vec<LogicMutant>, Vec<&'a Excluded>), Error> {
    let mut found = Vec::new();
    for (index, scope) in policy.scope.iter().enumerate() {
        let mut command = cargo_mutants(tree, scope);
        command.args(["--list", "--json"]);
        if let Some(diff) = diff {
            command.arg("--in-diff").arg(diff);
        }
        let listed: Vec<Listed> = match process::output(&mut command)?.trim() {
            // The output if the difference touches no mutant.
            "" => Vec::new(),
            json => serde_json::from_str(json)?,
        };
        found.extend(named(tree, listed, index)?);
    }
    let covers = |class: &Excluded, mutant: &LogicMutant| mutant.name.to_string().contains(&class.text);
    let mut idle: Vec<&Excluded> = policy.excluded.iter().collect();
    idle.retain(|class| !found.iter().any(|mutant| covers(class, mutant)));
    found.retain(|mutant| !policy.excluded.iter().any(|class| covers(class, mutant)));
    Ok((found, idle))
}

/// Names `listed`; their files are read from `tree`.
fn named(tree: &Path, listed: Vec<Listed>, scope: usize) -> Result<Vec<LogicMutant>, Error> {
    let mut sources: BTreeMap<String, String> = BTreeMap::new();
    let mut found = Vec::new();
    for mutant in listed {
        if !sources.contains_key(&mutant.file) {
            let path = tree.join(&mutant.file);
            sources.insert(mutant.file.clone(), fs::read_to_string(&path).map_err(Error::file(&path))?);
        }
        let name = MutantName::new(
            &mutant.file,
            without_position(&mutant),
            &sources[&mutant.file],
            mutant.span.start.line,
        );
        found.push(LogicMutant { name, id: mutant.name, scope });
    }
    number(found.iter_mut().map(|mutant| &mut mutant.name));
    Ok(found)
}

/// The part of `file:line:column: mutation` behind the position.
fn without_position(mutant: &Listed) -> &str {
    let rest = mutant.name.strip_prefix(&mutant.file).unwrap_or(&mutant.name);
    rest.split_once(": ").map_or(rest, |(_, mutation)| mutation)
}

fn cargo_mutants(tree: &Path, scope: &Scope) -> Command {
    let mut command = Command::new("cargo");
    quiet_environment(&mut command);
    command.args(["mutants", "--colors", "never", "--dir"]).arg(tree).args(["--package", &scope.package]);
    for file in &scope.files {
        command.args(["--file", file]);
    }
    command
}

/// Build results belong into the copies, so variables that redirect them are removed, and with them the one that would turn off
/// the profile's incremental builds, without which a mutant costs the build of its crate.
pub(crate) fn quiet_environment(command: &mut Command) {
    for name in [
        "CARGO_TARGET_DIR",
        "CARGO_BUILD_TARGET_DIR",
        "CARGO_INCREMENTAL",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "MIRIFLAGS",
    ] {
        command.env_remove(name);
    }
    command.env("CARGO_TERM_COLOR", "never");
}

/// Tries `mutants`, distributed over the copies, until `deadline`; the rest is `Untested`.
///
/// # Errors
/// A copy whose tests fail without a change; the message of cargo-mutants.
pub(crate) fn run(
    cache: &Cache,
    trees: &Trees,
    policy: &Policy,
    mutants: &[LogicMutant],
    deadline: Option<Instant>,
) -> Result<Vec<(MutantName, Verdict)>, Error> {
    let jobs = trees.folders.len();
    let parts: Vec<Result<BTreeMap<String, Verdict>, Error>> = thread::scope(|scope| {
        let workers: Vec<_> = trees
            .folders
            .iter()
            .enumerate()
            .map(|(job, tree)| {
                let share: Vec<&LogicMutant> = mutants.iter().skip(job).step_by(jobs).collect();
                let output = cache.folder(&format!("logic-{job}"));
                scope.spawn(move || run_share(tree, &output?, policy, &share, deadline))
            })
            .collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(Err(Error::Panicked))).collect()
    });
    let mut verdicts = BTreeMap::new();
    for part in parts {
        verdicts.extend(part?);
    }
    Ok(mutants
        .iter()
        .map(|mutant| (mutant.name.clone(), verdicts.remove(&mutant.id).unwrap_or(Verdict::Untested)))
        .collect())
}

fn run_share(
    tree: &Path,
    output: &Path,
    policy: &Policy,
    share: &[&LogicMutant],
    deadline: Option<Instant>,
) -> Result<BTreeMap<String, Verdict>, Error> {
    let mut verdicts = BTreeMap::new();
    for (index, scope) in policy.scope.iter().enumerate() {
        let ids: Vec<&str> =
            share.iter().filter(|mutant| mutant.scope == index).map(|mutant| mutant.id.as_str()).collect();
        if ids.is_empty() || seconds_until(deadline) == Some(0) {
            continue;
        }
        let mut command = cargo_mutants(tree, scope);
        command
            .args(["--in-place", "--no-shuffle", "--minimum-test-timeout", TEST_TIMEOUT, "--output"])
            .arg(output);
        for argument in &scope.tests {
            command.arg(format!("--cargo-arg={argument}"));
        }
        for id in ids {
            command.arg("--re").arg(format!("^{}$", escaped(id)));
        }
        let file = output.join("mutants.out/outcomes.json");
        // The results of an earlier run must not be read.
        let _ = fs::remove_file(&file);
        let mut status = process::status(&mut limited(&command, seconds_until(deadline)))?;
        if !is_over(status) {
            // A compiler that was ended by the deadline of an earlier run leaves incremental results that do not link.
            let _ = fs::remove_dir_all(tree.join(TARGET));
            status = process::status(&mut limited(&command, seconds_until(deadline)))?;
        }
        if !is_over(status) {
            return Err(Error::CargoMutants { status: status.to_string(), output: output.to_owned() });
        }
        let Ok(json) = fs::read(&file) else { continue };
        let outcomes: Outcomes = serde_json::from_slice(&json)?;
        for outcome in outcomes.outcomes {
            let Scenario::Mutant(mutant) = outcome.scenario else { continue };
            let verdict = match outcome.summary.as_str() {
                "CaughtMutant" => Verdict::Killed("tests".to_owned()),
                "MissedMutant" => Verdict::Survived,
                "Timeout" => Verdict::TimedOut,
                "Unviable" => Verdict::Unviable,
                // Interrupted.
                _ => Verdict::Untested,
            };
            verdicts.insert(mutant.name, verdict);
        }
    }
    Ok(verdicts)
}

/// Whether cargo-mutants tried all mutants, or as many as there was time for.
fn is_over(status: ExitStatus) -> bool {
    status.code().is_some_and(|code| code == TIME_WAS_UP || FINISHED.contains(&code))
}

/// `text` as a regular expression that matches only it.
fn escaped(text: &str) -> String {
    text.chars().fold(String::new(), |mut pattern, c| {
        if "\\.+*?()|[]{}^$#&-~".contains(c) {
            pattern.push('\\');
        }
        pattern.push(c);
        pattern
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mutants_are_named_without_their_position() {
        let json = r#"[{"name": "src/a.rs:2:7: replace == with != in f", "file": "src/a.rs",
            "span": {"start": {"line": 2, "column": 7}, "end": {"line": 2, "column": 9}}}]"#;
        let listed: Vec<Listed> = serde_json::from_str(json).expect("as cargo-mutants writes it");
        let dir = tempfile::tempdir().expect("a folder");
        fs::create_dir(dir.path().join("src")).expect("writable");
        fs::write(dir.path().join("src/a.rs"), "fn f() {\n    a == b\n}\n").expect("writable");
        let found = named(dir.path(), listed, 0).expect("the file is there");
        assert_eq!(found[0].name.to_string(), "src/a.rs: replace == with != in f at `a == b`");
    }

    #[test]
    fn outcomes_are_read_as_cargo_mutants_writes_them() {
        let json = r#"{"outcomes": [{"scenario": "Baseline", "summary": "Success"},
            {"scenario": {"Mutant": {"name": "n", "file": "f", "span": {"start": {"line": 1}}}}, "summary": "Timeout"}],
            "total_mutants": 1}"#;
        let read: Outcomes = serde_json::from_str(json).expect("valid");
        assert!(matches!(&read.outcomes[0].scenario, Scenario::Baseline));
        assert!(matches!(&read.outcomes[1].scenario, Scenario::Mutant(mutant) if mutant.name == "n"));
    }

    #[test]
    fn names_are_escaped_for_a_regular_expression() {
        assert_eq!(escaped("a.rs: f -> Vec<u8> with vec![0]"), r"a\.rs: f \-> Vec<u8> with vec!\[0\]");
    }
}
