//! Tries memory-order mutants, each in a copy of the workspace, with the cheapest tests first.
//!
//! loom explores every interleaving of the models; the core's tests notice effects without a race; miri runs the core's tests
//! with many seeds, a high rate of preemption, and emulated weak memory. The first failing test kills the mutant.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Instant;

use super::error::Error;
use super::logic::quiet_environment;
use super::name::MutantName;
use super::orders::OrderMutant;
use super::policy::{MiriTest, Policy};
use super::process::{self, limited, seconds_until};
use super::report::Verdict;
use super::tree::{TARGET, Trees};
use prereg_vm::cache::Cache;

/// Time limit of a build in seconds.
const BUILD_LIMIT: u64 = 900;

/// A way to run tests.
#[derive(Clone, Copy, Debug)]
enum Stage<'a> {
    Loom(&'a str),
    Plain,
    Miri(&'a MiriTest),
}

impl Stage<'_> {
    fn name(self) -> String {
        match self {
            Self::Loom(test) => format!("loom {test}"),
            Self::Plain => "tests".to_owned(),
            Self::Miri(test) => format!("miri {} {}", test.test, test.filter).trim_end().to_owned(),
        }
    }

    /// Time limit of the tests in seconds: several times their duration on a busy machine.
    fn limit(self) -> u64 {
        match self {
            Self::Loom(_) | Self::Plain => 300,
            Self::Miri(_) => 1800,
        }
    }

    /// The tests in the copy at `tree`; with `build_only` they are only built.
    fn command(self, tree: &Path, build_only: bool) -> Command {
        let mut command = Command::new("cargo");
        quiet_environment(&mut command);
        match self {
            Self::Loom(test) => {
                command.args(["test", "--package", "prereg-models", "--profile", "mutants", "--test", test]);
                // A separate folder, because the flag is part of every build result.
                command
                    .env("RUSTFLAGS", "--cfg loom")
                    .env("CARGO_TARGET_DIR", tree.join(TARGET).join("loom"));
                command.env("CARGO_PROFILE_MUTANTS_OPT_LEVEL", "3");
            }
            Self::Plain => {
                command.args(["test", "--package", "prereg", "--profile", "mutants", "--lib", "--tests"]);
            }
            Self::Miri(test) => {
                command.env_remove("RUSTUP_TOOLCHAIN").env_remove("CARGO").env_remove("RUSTC");
                command.args(["+nightly", "miri", "test", "--package", "prereg", "--test", &test.test]);
                command.env("CARGO_TARGET_DIR", tree.join(TARGET).join("miri"));
                let seeds = test.seeds;
                command.env("MIRIFLAGS", format!("-Zmiri-many-seeds=0..{seeds} -Zmiri-preemption-rate=0.1"));
            }
        }
        match self {
            _ if build_only => _ = command.arg("--no-run"),
            Self::Miri(test) if !test.filter.is_empty() => _ = command.args(["--", &test.filter]),
            _ => {}
        }
        command.current_dir(tree);
        command
    }
}

/// Tries `mutants` in the copies until `deadline`; the rest is `Untested`.
///
/// # Errors
/// Tests that fail without a change; an error of the file system.
pub(crate) fn run(
    cache: &Cache,
    trees: &Trees,
    policy: &Policy,
    mutants: &[OrderMutant],
    deadline: Option<Instant>,
) -> Result<Vec<(MutantName, Verdict)>, Error> {
    let logs = cache.folder("orders")?;
    if mutants.is_empty() {
        return Ok(Vec::new());
    }
    let queue = Mutex::new(mutants.iter().enumerate().collect::<VecDeque<_>>());
    let results = Mutex::new(vec![Verdict::Untested; mutants.len()]);
    let workers: Vec<Result<(), Error>> = thread::scope(|scope| {
        let work = |tree: &PathBuf| -> Result<(), Error> {
            let copy = tree.file_name().unwrap_or_default().to_string_lossy();
            let log = logs.join(format!("unchanged-{copy}.log"));
            // Miri takes minutes: one run is enough, and none if time is short.
            let miri = deadline.is_none() && tree == &trees.folders[0];
            let mut unchanged = stages(policy, "");
            unchanged.retain(|stage| miri || !matches!(stage, Stage::Miri(_)));
            let unchanged = attempt(tree, &unchanged, &log, deadline)?;
            if !matches!(unchanged, Verdict::Survived | Verdict::Untested) {
                return Err(Error::Unchanged { verdict: unchanged, log });
            }
            loop {
                let next = queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some((index, mutant)) = next else { return Ok(()) };
                let file = tree.join(&mutant.name.file);
                let original = fs::read_to_string(&file).map_err(Error::file(&file))?;
                fs::write(&file, mutant.apply(&original)).map_err(Error::file(&file))?;
                let stages = stages(policy, &mutant.name.file);
                let verdict = attempt(tree, &stages, &logs.join(format!("{index}.log")), deadline);
                fs::write(&file, &original).map_err(Error::file(&file))?;
                let verdict = verdict?;
                println!("{verdict:10} {}", mutant.name);
                results.lock().unwrap_or_else(PoisonError::into_inner)[index] = verdict;
            }
        };
        let workers: Vec<_> = trees.folders.iter().map(|tree| scope.spawn(move || work(tree))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap_or(Err(Error::Panicked))).collect()
    });
    workers.into_iter().collect::<Result<(), Error>>()?;
    let verdicts = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    Ok(mutants.iter().map(|mutant| mutant.name.clone()).zip(verdicts).collect())
}

/// The stages for a mutant of `file`, the cheapest first; the model with the file's name comes first.
fn stages<'a>(policy: &'a Policy, file: &str) -> Vec<Stage<'a>> {
    let name = Path::new(file).file_stem().unwrap_or_default().to_string_lossy();
    let mut models: Vec<&String> = policy.orders.loom_tests.iter().collect();
    models.sort_by_key(|&model| *model != name);
    let loom = models.into_iter().map(|model| Stage::Loom(model));
    loom.chain([Stage::Plain]).chain(policy.orders.miri_tests.iter().map(Stage::Miri)).collect()
}

/// Runs the stages on the copy at `tree`.
fn attempt(
    tree: &Path,
    stages: &[Stage<'_>],
    log: &Path,
    deadline: Option<Instant>,
) -> Result<Verdict, Error> {
    for &stage in stages {
        // Miri builds in its test run: `--no-run` would only cost a start.
        let build = !matches!(stage, Stage::Miri(_));
        for build_only in [true, false].into_iter().filter(|&build_only| build || !build_only) {
            let limit = if build_only { BUILD_LIMIT } else { stage.limit() };
            let left = seconds_until(deadline);
            if left == Some(0) {
                return Ok(Verdict::Untested);
            }
            let bounded = left.map_or(limit, |left| left.min(limit));
            let mut command = limited(&stage.command(tree, build_only), Some(bounded));
            let file = fs::File::create(log).map_err(Error::file(log))?;
            let twin = file.try_clone().map_err(Error::file(log))?;
            let status = process::status(command.stdout(file).stderr(twin))?;
            if status.success() {
                continue;
            }
            return Ok(match status.code() {
                Some(124) if bounded < limit => Verdict::Untested,
                Some(124 | 137) => Verdict::TimedOut,
                _ if build_only => Verdict::Unviable,
                _ => Verdict::Killed(format!("{}{}", stage.name(), failed_test(log))),
            });
        }
    }
    Ok(Verdict::Survived)
}

/// `: NAME` of the first failed test, or empty if the log has none.
fn failed_test(log: &Path) -> String {
    let text = fs::read(log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let failed = text.lines().find_map(|line| {
        let name = line.strip_prefix("test ")?.split(" ... ").next()?;
        line.trim_end().ends_with("FAILED").then(|| name.split(" - ").next().unwrap_or(name).to_owned())
    });
    failed.map(|name| format!(": {name}")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_model_of_the_file_comes_first_and_miri_last() {
        let policy = "scope = []\n[orders]\nfolders = []\nfences = []\nloom_tests = [\"door\", \"gate\", \"publish\"]\n\
                      miri_tests = [{ test = \"stress\", seeds = 2 }]\n";
        let policy = Policy::parse(policy).expect("right");
        let names: Vec<String> = stages(&policy, "src/gate.rs").iter().map(|stage| stage.name()).collect();
        assert_eq!(names, ["loom gate", "loom door", "loom publish", "tests", "miri stress"]);
    }

    #[test]
    fn the_test_that_failed_is_named() {
        let dir = tempfile::tempdir().expect("a folder");
        let log = dir.path().join("log");
        fs::write(&log, "test a ... ok\ntest b - should panic ... FAILED\ntest result: FAILED. 1 passed")
            .expect("writable");
        assert_eq!(failed_test(&log), ": b");
        fs::write(&log, "error: Undefined Behavior").expect("writable");
        assert_eq!(failed_test(&log), "");
    }
}
