//! Commands in code blocks of documents: each must parse.
//!
//! `prereg` and `cargo xtask oracle|vm|mutants` are run with `--help` behind the command's own words: an unknown subcommand, option
//! or value is refused, and nothing else happens. For `cargo` the packages, programs and tests must exist, for `.ci/run` the steps.

use std::path::{Path, PathBuf};
use std::process::Command as Process;

use crate::diagnostic::Diagnostic;
use crate::error::{Error, output, read};
use crate::packages::{Metadata, Package};
use crate::texts::{Block, Kind, Text};

/// The rules of `cargo xtask`.
pub(crate) const RULES: [&str; 8] =
    ["layers", "sizes", "unsafe-ledger", "skips", "prose", "citations", "commands", "no-std"];

/// A command of a document.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Command {
    file: String,
    line: usize,
    words: Vec<String>,
}

/// The commands of README.md, CONTRIBUTING.md and docs/ that begin with a program of this workspace or with cargo.
pub(crate) fn of_documents(texts: &[Text]) -> Vec<Command> {
    let documents = texts.iter().filter(|text| text.file.ends_with(".md"));
    let mut commands = Vec::new();
    for text in documents {
        for block in text.blocks.iter().filter(|block| has_commands(block)) {
            let mut begun: Option<(usize, String)> = None;
            for (number, line) in &block.lines {
                let line = line.trim().trim_start_matches("$ ");
                let (first, whole) = match begun.take() {
                    Some((first, before)) => (first, format!("{before} {line}")),
                    None => (*number, line.to_owned()),
                };
                match whole.strip_suffix('\\') {
                    Some(rest) => begun = Some((first, rest.trim_end().to_owned())),
                    None => commands.extend(parse(&text.file, first, &whole)),
                }
            }
        }
    }
    commands
}

/// Whether a code block may have commands: an indented one only if it begins with one, because others are output.
fn has_commands(block: &Block) -> bool {
    let first = block.lines.first().and_then(|(_, line)| line.split_whitespace().next());
    match block.kind {
        Kind::Code => true,
        Kind::Indented => first.is_some_and(|word| PROGRAMS.contains(&word) || word == "$"),
        Kind::Title | Kind::Plain => false,
    }
}

/// The programs whose commands are checked.
const PROGRAMS: [&str; 4] = ["cargo", "prereg", "target/release/prereg", ".ci/run"];

fn parse(file: &str, line: usize, text: &str) -> Option<Command> {
    let text = text.split(" # ").next().unwrap_or(text);
    let words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    // Words of a shell are not understood here.
    let shell = words.iter().any(|word| word.contains(['|', '$', '\'', '"', '>', '<', '&', ';', '[', '…']));
    let program = words.first()?.as_str();
    let known = PROGRAMS.contains(&program);
    (known && !shell).then(|| Command { file: file.to_owned(), line, words })
}

/// Commands that do not parse.
pub(crate) fn diagnostics(commands: &[Command], metadata: &Metadata) -> Result<Vec<Diagnostic>, Error> {
    let checker = Checker {
        metadata,
        ci: read(&metadata.workspace_root, ".ci/run")?,
        prereg: metadata.target_directory.join("debug/prereg"),
        xtask: std::env::current_exe().map_err(|source| Error::Start { program: "xtask", source })?,
    };
    build(metadata)?;
    let mut diagnostics = Vec::new();
    for command in commands {
        if let Err(why) = checker.check(&command.words) {
            let place = Path::new(&command.file);
            let text = format!("`{}`: {why}", command.words.join(" "));
            diagnostics.push(Diagnostic::at(place, command.line, text));
        }
    }
    Ok(diagnostics)
}

/// Builds the program `prereg`.
fn build(metadata: &Metadata) -> Result<(), Error> {
    let mut cargo = Process::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(&metadata.workspace_root).args(["build", "--quiet", "--package", "prereg-cli"]);
    output("cargo build", &mut cargo).map(|_| ())
}

/// The programs, steps and packages that a command may name.
struct Checker<'a> {
    metadata: &'a Metadata,
    /// The text of `.ci/run`.
    ci: String,
    prereg: PathBuf,
    xtask: PathBuf,
}

impl Checker<'_> {
    fn check(&self, words: &[String]) -> Result<(), String> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match words[..] {
            ["prereg" | "target/release/prereg", ref rest @ ..] => run(&self.prereg, rest),
            [".ci/run", ref steps @ ..] => {
                let missing = steps.iter().find(|step| !self.ci.contains(&format!("\nstep_{step}()")));
                missing.map_or(Ok(()), |step| Err(format!("there is no step {step}")))
            }
            ["cargo", "xtask", ref rest @ ..] => self.xtask(rest),
            ["cargo", ref rest @ ..] => self.cargo(rest),
            _ => Ok(()),
        }
    }

    fn xtask(&self, words: &[&str]) -> Result<(), String> {
        if let Some(&"oracle" | &"vm" | &"mutants") = words.first() {
            return run(&self.xtask, words);
        }
        let unknown = words.iter().find(|word| !RULES.contains(word));
        unknown.map_or(Ok(()), |word| Err(format!("there is no rule {word}")))
    }

    fn cargo(&self, words: &[&str]) -> Result<(), String> {
        let (own, program) = match words.iter().position(|word| *word == "--") {
            Some(at) => (&words[..at], Some(&words[at + 1..])),
            None => (words, None),
        };
        // Another toolchain or another workspace.
        if own.iter().any(|word| word.starts_with('+') || word.starts_with("--manifest-path")) {
            return Ok(());
        }
        let value = |keys: [&str; 2]| {
            let at = own.iter().position(|word| keys.contains(word))?;
            own.get(at + 1).copied()
        };
        let package = value(["-p", "--package"]);
        let find = |name: &str| self.metadata.packages.iter().find(|package| package.name == name);
        let Some(name) = package else { return Ok(()) };
        let package: &Package = find(name).ok_or_else(|| format!("there is no package {name}"))?;
        for (key, kind) in [("--bin", "bin"), ("--test", "test"), ("--example", "example")] {
            let Some(wanted) = value([key, key]) else { continue };
            let target = package
                .targets
                .iter()
                .find(|target| target.name == wanted && target.kind.iter().any(|own| own == kind));
            if target.is_none() {
                return Err(format!("package {name} has no {kind} {wanted}"));
            }
        }
        match program {
            Some(words) if name == "prereg-cli" && own.first() == Some(&"run") => run(&self.prereg, words),
            _ => Ok(()),
        }
    }
}

/// Runs `program` with `words` and `--help`.
fn run(program: &Path, words: &[&str]) -> Result<(), String> {
    let output =
        Process::new(program).args(words).arg("--help").output().map_err(|error| error.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    Err(text.lines().find(|line| !line.trim().is_empty()).unwrap_or("refused").to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::texts::markdown;

    fn commands(source: &str) -> Vec<Command> {
        of_documents(&[Text { file: "README.md".to_owned(), blocks: markdown(source) }])
    }

    fn checked(line: &str) -> Result<(), String> {
        let json = "{\"workspace_root\":\"/w\",\"packages\":[{\"name\":\"a\",\"manifest_path\":\"/w/a/Cargo.toml\",\
                    \"dependencies\":[],\"targets\":[{\"name\":\"tool\",\"kind\":[\"bin\"],\"src_path\":\"/w/a/tool.rs\"}]}]}";
        let metadata: Metadata = serde_json::from_str(json).expect("valid");
        let words: Vec<String> = line.split(' ').map(str::to_owned).collect();
        let checker = Checker {
            metadata: &metadata,
            ci: "\nstep_test() {\n".to_owned(),
            prereg: "/nowhere".into(),
            xtask: "/nowhere".into(),
        };
        checker.check(&words)
    }

    #[test]
    fn commands_are_found_in_code_blocks_and_joined() {
        let found = commands(
            "cargo test\n\n```sh\ncargo run -p a \\\n  -- x # why\nqemu -m 1\n$ prereg doctor\necho | prereg x\n```\n\n    subject  ns\n    prereg   3\n\n    prereg bench\n",
        );
        let lines: Vec<(usize, String)> =
            found.iter().map(|command| (command.line, command.words.join(" "))).collect();
        assert_eq!(
            lines,
            [
                (4, "cargo run -p a -- x".to_owned()),
                (7, "prereg doctor".to_owned()),
                (14, "prereg bench".to_owned())
            ]
        );
    }

    #[test]
    fn packages_programs_rules_and_steps_must_exist() {
        for good in [
            "cargo test",
            "cargo run -p a --bin tool -- x",
            "cargo xtask layers sizes",
            ".ci/run test",
            "cargo +nightly test -p b",
        ] {
            assert_eq!(checked(good), Ok(()), "{good}");
        }
        for bad in ["cargo test -p b", "cargo run -p a --bin other", "cargo xtask layer", ".ci/run tests"] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }
}
