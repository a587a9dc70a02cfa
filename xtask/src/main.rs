//! Checks of the workspace that no other tool has: `cargo xtask RULE...`.
//!
//! A rule reads the tree and returns diagnostics; only this file prints and sets the exit code. `layers.toml` and `prose.toml`
//! hold what is allowed. `cargo xtask oracle`, `vm` and `mutants` are commands of their own.

use std::path::Path;
use std::process::{Command, ExitCode};

use serde::Deserialize;

use crate::diagnostic::Diagnostic;
use crate::error::{Error, output, read};
use crate::modules::ModuleTree;
use crate::packages::Metadata;
use crate::policy::Policy;

mod citations;
mod commands;
mod diagnostic;
mod error;
mod graph;
mod lexer;
mod modules;
mod mutants;
mod no_std;
mod packages;
mod policy;
mod prose;
mod source;
mod sources;
mod texts;

const USAGE: &str = "\
usage: cargo xtask RULE...
       cargo xtask oracle|vm|mutants [--help]

  layers         crate imports as layers.toml allows them; no circle of modules inside a crate
  sizes          no file over 800 lines, its tests counted apart
  unsafe-ledger  `unsafe` only in the files that layers.toml lists
  skips          no #[ignore] without a reason; every `--skip` of .ci/run names a test
  prose          no phrase of prose.toml in comments and documents
  citations      every file that a comment or a document names exists; every relative link has a target
  commands       every command of README.md and docs/ parses
  no-std         the no_std crates build for a bare target (nightly with rust-src; skipped without, unless CI=true)

  oracle         records the answers of real kernels to the conformance scenarios and compares with the stored ones
  vm             boots guests on the devices and back ends: an NVMe disk over vfio-user, VFIO of real kernels
  mutants        makes small changes to the code and fails if no test notices one
";

fn main() -> ExitCode {
    let rules: Vec<String> = std::env::args().skip(1).collect();
    let command: Option<fn(&Path, &[String]) -> ExitCode> = match rules.first().map(String::as_str) {
        Some("oracle") => Some(prereg_vm::oracle::command),
        Some("vm") => Some(prereg_vm::suites::command),
        Some("mutants") => Some(mutants::command),
        _ => None,
    };
    if let Some(command) = command {
        return match metadata(None) {
            Ok(metadata) => command(&metadata.workspace_root, &rules[1..]),
            Err(error) => {
                eprintln!("xtask: {error}");
                ExitCode::from(2)
            }
        };
    }
    if rules.is_empty() || rules.iter().any(|rule| !commands::RULES.contains(&rule.as_str())) {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    }
    match check(&rules) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::from(2)
        }
    }
}

/// Runs the rules in the order given; true if there is no violation.
fn check(rules: &[String]) -> Result<bool, Error> {
    let metadata = metadata(None)?;
    let root = &metadata.workspace_root;
    let policy = Policy::parse(&read(root, "layers.toml")?)
        .map_err(|source| Error::Toml { file: "layers.toml", source })?;
    let files = sources::read_tree(root)
        .map_err(|source| Error::Read { file: root.display().to_string(), source })?;
    let mut clean = true;
    for rule in rules {
        let (diagnostics, closing) = match rule.as_str() {
            "layers" => {
                let mut diagnostics = packages::edge_diagnostics(&metadata, &policy);
                let (found, trees) = module_diagnostics(&metadata)?;
                diagnostics.extend(found);
                (diagnostics, format!("{} crates, {trees} module trees", metadata.packages.len()))
            }
            "sizes" => {
                let (diagnostics, warnings) = sources::sizes(&files);
                for warning in warnings {
                    eprintln!("note: {warning}");
                }
                (diagnostics, format!("{} files", files.len()))
            }
            "unsafe-ledger" => {
                let listed = policy.unsafe_files.len();
                (sources::unsafe_ledger(&files, &policy), format!("{listed} files may contain unsafe"))
            }
            "skips" => {
                let mut diagnostics = sources::skips(&files);
                let script = Path::new(".ci/run");
                diagnostics.extend(sources::stale_skips(script, &read(root, ".ci/run")?, &files));
                (diagnostics, format!("{} files", files.len()))
            }
            "prose" => {
                let policy = prose::Policy::parse(&read(root, "prose.toml")?)
                    .map_err(|source| Error::Toml { file: "prose.toml", source })?;
                let texts = texts::read(root, &tracked(root)?)?;
                (policy.diagnostics(&texts), format!("{} files", texts.len()))
            }
            "citations" => {
                let tracked = tracked(root)?;
                let texts = texts::read(root, &tracked)?;
                (citations::diagnostics(&texts, &tracked), format!("{} files", texts.len()))
            }
            "commands" => {
                let texts = texts::read(root, &tracked(root)?)?;
                let commands = commands::of_documents(&texts);
                (commands::diagnostics(&commands, &metadata)?, format!("{} commands", commands.len()))
            }
            _ => match no_std::build(&metadata) {
                no_std::Outcome::Built(crates) => (Vec::new(), format!("built {}", crates.join(", "))),
                no_std::Outcome::Broken(diagnostics) => (diagnostics, String::new()),
                no_std::Outcome::Skipped(reason) if std::env::var("CI").is_ok_and(|ci| ci == "true") => (
                    vec![Diagnostic::in_crate("prereg", format!("no-std cannot be checked: {reason}"))],
                    String::new(),
                ),
                no_std::Outcome::Skipped(reason) => {
                    println!("{rule}: skipped: {reason}");
                    continue;
                }
            },
        };
        for diagnostic in &diagnostics {
            eprintln!("error: {diagnostic}");
        }
        if diagnostics.is_empty() {
            println!("{rule}: ok ({closing})");
        } else {
            println!("{rule}: {} broken", diagnostics.len());
            clean = false;
        }
    }
    Ok(clean)
}

/// The module cycles of every library and program, those of excluded workspaces included, and the number of module trees.
fn module_diagnostics(metadata: &Metadata) -> Result<(Vec<Diagnostic>, usize), Error> {
    let root = &metadata.workspace_root;
    let excluded = excluded(root)?;
    let excluded = excluded.iter().map(|folder| self::metadata(Some(&root.join(folder).join("Cargo.toml"))));
    let excluded = excluded.collect::<Result<Vec<Metadata>, Error>>()?;
    let (mut diagnostics, mut trees) = (Vec::new(), 0);
    let read = |path: &Path| std::fs::read_to_string(root.join(path)).ok();
    for package in excluded.iter().chain([metadata]).flat_map(|metadata| &metadata.packages) {
        for target in package.targets.iter().filter(|target| target.ships()) {
            trees += 1;
            let file = target.src_path.strip_prefix(root).unwrap_or(&target.src_path);
            match ModuleTree::read(&target.name, file, &read) {
                Ok(tree) => diagnostics.extend(tree.diagnostics()),
                Err(missing) => diagnostics.extend(missing),
            }
        }
    }
    Ok((diagnostics, trees))
}

/// The folders of workspaces inside this one: `exclude` of the root manifest.
fn excluded(root: &Path) -> Result<Vec<String>, Error> {
    #[derive(Deserialize)]
    struct Manifest {
        workspace: Workspace,
    }
    #[derive(Deserialize)]
    struct Workspace {
        exclude: Vec<String>,
    }
    let manifest: Manifest = toml::from_str(&read(root, "Cargo.toml")?)
        .map_err(|source| Error::Toml { file: "Cargo.toml", source })?;
    Ok(manifest.workspace.exclude)
}

/// The files that git tracks, from the root, in order.
fn tracked(root: &Path) -> Result<Vec<String>, Error> {
    let mut git = Command::new("git");
    let text = output(
        "git",
        git.arg("-C").arg(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]),
    )?;
    let mut files: Vec<String> =
        text.split('\0').filter(|name| !name.is_empty()).map(str::to_owned).collect();
    // A file that is deleted but not yet committed is still listed.
    files.retain(|name| root.join(name).exists());
    files.sort();
    files.dedup();
    Ok(files)
}

/// The packages of the workspace of `manifest`, or of the current folder.
fn metadata(manifest: Option<&Path>) -> Result<Metadata, Error> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["metadata", "--no-deps", "--format-version", "1"]);
    if let Some(manifest) = manifest {
        cargo.arg("--manifest-path").arg(manifest);
    }
    Ok(serde_json::from_str(&output("cargo metadata", &mut cargo)?)?)
}
