//! The house rules as code: `cargo xtask RULE...`.
//!
//! Every rule reads the tree and returns findings; only this file prints and sets the exit code. What is allowed stands
//! in `layers.toml`, not here. `cargo xtask oracle`, `vm` and `mutants` are no rules but commands of their own.

use std::path::Path;
use std::process::{Command, ExitCode};

use crate::finding::Finding;
use crate::modules::Crate;
use crate::packages::Metadata;
use crate::policy::Policy;

mod facts;
mod finding;
mod graph;
mod modules;
mod mutants;
mod no_std;
mod packages;
mod policy;
mod sources;
mod token;

const USAGE: &str = "\
usage: cargo xtask RULE...
       cargo xtask oracle|vm|mutants [--help]

  layers         crate imports as layers.toml allows them; no circle of modules inside a crate
  sizes          no file over 800 lines, its tests counted apart
  unsafe-ledger  `unsafe` only in the files that layers.toml lists
  skips          no #[ignore] without a reason
  no-std         the no_std crates build for a bare target (nightly with rust-src; skipped without, unless CI=true)

  oracle         asks real kernels the conformance scenarios again and compares with the stored answers
  vm             boots guests that use what is built here: an NVMe disk over vfio-user, VFIO of real kernels
  mutants        changes the code in small ways and fails when no test notices
";

/// Why the rules could not even be read.
#[derive(Debug, thiserror::Error)]
enum Trouble {
    #[error("cargo metadata could not be run: {0}")]
    Start(std::io::Error),
    #[error("cargo metadata failed:\n{0}")]
    Metadata(String),
    #[error("cargo metadata gave something else than expected: {0}")]
    Json(#[from] serde_json::Error),
    #[error("{file} cannot be read: {source}")]
    Read { file: String, source: std::io::Error },
    #[error("layers.toml: {0}")]
    Policy(#[from] toml::de::Error),
}

fn main() -> ExitCode {
    let rules: Vec<String> = std::env::args().skip(1).collect();
    let command: Option<fn(&Path, &[String]) -> ExitCode> = match rules.first().map(String::as_str) {
        Some("oracle") => Some(prereg_vm::oracle::command),
        Some("vm") => Some(prereg_vm::suites::command),
        Some("mutants") => Some(mutants::command),
        _ => None,
    };
    if let Some(command) = command {
        return match metadata() {
            Ok(metadata) => command(&metadata.workspace_root, &rules[1..]),
            Err(trouble) => {
                eprintln!("xtask: {trouble}");
                ExitCode::from(2)
            }
        };
    }
    let known = ["layers", "sizes", "unsafe-ledger", "skips", "no-std"];
    if rules.is_empty() || rules.iter().any(|rule| !known.contains(&rule.as_str())) {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    }
    match check(&rules) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(trouble) => {
            eprintln!("xtask: {trouble}");
            ExitCode::from(2)
        }
    }
}

/// Runs the rules in the order given; true when none found anything.
fn check(rules: &[String]) -> Result<bool, Trouble> {
    let metadata = metadata()?;
    let root = &metadata.workspace_root;
    let file = root.join("layers.toml");
    let text = std::fs::read_to_string(&file)
        .map_err(|source| Trouble::Read { file: file.display().to_string(), source })?;
    let policy = Policy::parse(&text)?;
    let files = sources::read_tree(root)
        .map_err(|source| Trouble::Read { file: root.display().to_string(), source })?;
    let mut clean = true;
    for rule in rules {
        let (findings, closing) = match rule.as_str() {
            "layers" => {
                let mut findings = packages::edge_findings(&metadata, &policy);
                let (found, trees) = module_findings(&metadata);
                findings.extend(found);
                (findings, format!("{} crates, {trees} module trees", metadata.packages.len()))
            }
            "sizes" => {
                let (findings, warnings) = sources::sizes(&files);
                for warning in warnings {
                    eprintln!("note: {warning}");
                }
                (findings, format!("{} files", files.len()))
            }
            "unsafe-ledger" => {
                let listed = policy.unsafe_files.len();
                (sources::unsafe_ledger(&files, &policy), format!("{listed} files may say unsafe"))
            }
            "skips" => (sources::skips(&files), format!("{} files", files.len())),
            _ => match no_std::build(&metadata) {
                no_std::Outcome::Built(rooms) => (Vec::new(), format!("built {}", rooms.join(", "))),
                no_std::Outcome::Broken(findings) => (findings, String::new()),
                no_std::Outcome::Skipped(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => (
                    vec![Finding::in_crate("prereg", format!("no-std cannot be checked: {reason}"))],
                    String::new(),
                ),
                no_std::Outcome::Skipped(reason) => {
                    println!("{rule}: skipped: {reason}");
                    continue;
                }
            },
        };
        for finding in &findings {
            eprintln!("error: {finding}");
        }
        if findings.is_empty() {
            println!("{rule}: ok ({closing})");
        } else {
            println!("{rule}: {} broken", findings.len());
            clean = false;
        }
    }
    Ok(clean)
}

/// The circles inside every library and program, and how many of those there are.
fn module_findings(metadata: &Metadata) -> (Vec<Finding>, usize) {
    let (mut findings, mut trees) = (Vec::new(), 0);
    let read = |path: &Path| std::fs::read_to_string(metadata.workspace_root.join(path)).ok();
    for package in &metadata.packages {
        for target in package.targets.iter().filter(|target| target.ships()) {
            trees += 1;
            let root = target.src_path.strip_prefix(&metadata.workspace_root).unwrap_or(&target.src_path);
            match Crate::read(&target.name, root, &read) {
                Ok(tree) => findings.extend(tree.findings()),
                Err(missing) => findings.extend(missing),
            }
        }
    }
    (findings, trees)
}

fn metadata() -> Result<Metadata, Trouble> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .map_err(Trouble::Start)?;
    if !output.status.success() {
        return Err(Trouble::Metadata(String::from_utf8_lossy(&output.stderr).into_owned()));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
