//! Files that comments and documents name, and the targets of relative links.
//!
//! A citation is a word with a `/` whose first part is a folder of the workspace, or the name of a Rust, Markdown or TOML file.
//! A path may be given from the workspace root, from the file's own folder or any folder above it, and a Rust file by its name alone.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use crate::diagnostic::Diagnostic;
use crate::texts::{Kind, Text};

/// Names of files that are not of this workspace: those of others, of users and of build tools.
const FOREIGN: [&str; 8] =
    ["Cargo.toml", "serve.toml", "mod.rs", "main.rs", "lib.rs", "tests.rs", "build.rs", "config.toml"];

/// Citations without a file, and links without a target.
pub(crate) fn diagnostics(texts: &[Text], tracked: &[String]) -> Vec<Diagnostic> {
    let tree = Tree::new(tracked);
    let mut diagnostics = Vec::new();
    for text in texts {
        let file = Path::new(&text.file);
        for block in text.blocks.iter().filter(|block| !matches!(block.kind, Kind::Code | Kind::Indented)) {
            for (number, line) in &block.lines {
                for word in citations(line) {
                    if !tree.names(file, word) {
                        diagnostics.push(Diagnostic::at(
                            file,
                            *number,
                            format!("names {word}, which is not in the repository"),
                        ));
                    }
                }
                if text.file.ends_with(".md") {
                    for target in links(line).filter(|target| !tree.links(file, target, texts)) {
                        diagnostics.push(Diagnostic::at(
                            file,
                            *number,
                            format!("links to {target}, which does not exist"),
                        ));
                    }
                }
            }
        }
    }
    diagnostics
}

/// The paths and the folders of the workspace.
struct Tree {
    paths: BTreeSet<PathBuf>,
    names: BTreeSet<String>,
    top: BTreeSet<String>,
}

impl Tree {
    fn new(tracked: &[String]) -> Self {
        let mut paths = BTreeSet::new();
        for file in tracked {
            paths.extend(Path::new(file).ancestors().map(Path::to_owned));
        }
        let name = |path: &PathBuf| Some(path.file_name()?.to_string_lossy().into_owned());
        let names = paths.iter().filter_map(name).collect();
        let folders = tracked.iter().filter_map(|file| Some(file.split_once('/')?.0.to_owned()));
        Self { names, top: folders.collect(), paths }
    }

    /// Whether `word` of `file` names a file or folder, or nothing of this workspace.
    fn names(&self, file: &Path, word: &str) -> bool {
        let first = word.split('/').next().unwrap_or(word);
        let name = word.rsplit('/').next().unwrap_or(word);
        let ours = word.contains('/') && self.top.contains(first);
        if FOREIGN.contains(&name) && !ours {
            return true;
        }
        // QEMU's documents, and the pattern of a name.
        if name.ends_with(".rst") || name.starts_with("NNNN") {
            return true;
        }
        let module = name.ends_with(".rs") || name.ends_with(".md") || name.ends_with(".toml");
        if !ours && !module {
            return true;
        }
        let pattern = word
            .find(['*', '{', '$', '<'])
            .map_or(word, |at| word[..at].rfind('/').map_or("", |end| &word[..end]));
        let near = file.ancestors().skip(1).any(|folder| {
            self.paths.contains(&clean(&folder.join(pattern)))
                || self.paths.contains(&clean(&folder.join("src").join(pattern)))
        });
        // The end of a path is enough.
        near || (self.names.contains(name) && self.paths.iter().any(|path| path.ends_with(word)))
    }

    fn links(&self, file: &Path, target: &str, texts: &[Text]) -> bool {
        let (path, anchor) =
            target.split_once('#').map_or((target, None), |(path, anchor)| (path, Some(anchor)));
        let path = if path.is_empty() {
            file.to_owned()
        } else {
            clean(&file.parent().unwrap_or(Path::new("")).join(path))
        };
        if !self.paths.contains(&path) {
            return false;
        }
        let Some(anchor) = anchor else { return true };
        let document = texts.iter().find(|text| Path::new(&text.file) == path);
        let headings =
            document.into_iter().flat_map(|text| &text.blocks).filter(|block| block.kind == Kind::Title);
        headings.into_iter().any(|block| block.lines.iter().any(|(_, heading)| slug(heading) == anchor))
    }
}

/// `path` without `.` and `..`.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => _ = cleaned.pop(),
            Component::Normal(name) => cleaned.push(name),
            _ => {}
        }
    }
    cleaned
}

/// The words of `line` that may be paths.
fn citations(line: &str) -> impl Iterator<Item = &str> {
    let words = line.split(|c: char| c.is_whitespace() || "`\"'()[]<>|,;=:#".contains(c));
    let words = words.map(|word| word.trim_end_matches(['.', '!', '?']).trim_end_matches('/'));
    let paths = words.filter(|word| {
        let name = word.rsplit('/').next().unwrap_or(word);
        let file = [".rs", ".md", ".toml"].iter().any(|end| name.len() > end.len() && name.ends_with(end));
        // Absolute paths and addresses are not of this workspace.
        (file || word.contains('/'))
            && !word.starts_with(['/', '~', '$', '-', '@', '{', '.'])
            && !word.contains("//")
    });
    paths.filter(move |word| !line.contains(&format!("://{word}")) && !line.contains(&format!("/{word}")))
}

/// The relative targets of Markdown links in `line`.
fn links(line: &str) -> impl Iterator<Item = &str> {
    let targets = line.match_indices("](").filter_map(|(at, _)| Some(line[at + 2..].split_once(')')?.0));
    targets.filter(|target| !target.contains("://") && !target.starts_with("mailto:"))
}

/// The anchor of a heading, as forges make it.
fn slug(heading: &str) -> String {
    let kept = heading.to_lowercase();
    kept.chars()
        .filter(|c| c.is_alphanumeric() || " -_".contains(*c))
        .map(|c| if c == ' ' { '-' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::texts::parser;

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let tracked: Vec<String> = files.iter().map(|(file, _)| (*file).to_owned()).collect();
        let text = |&(file, source): &(&str, &str)| Text {
            file: file.to_owned(),
            blocks: parser(file).expect("a known kind")(source),
        };
        let texts: Vec<Text> = files.iter().map(text).collect();
        diagnostics(&texts, &tracked).iter().map(ToString::to_string).collect()
    }

    const FILES: [(&str, &str); 3] = [
        ("docs/contract.md", "# The contract\n\n## Clause 1: pins\n"),
        ("crates/core/src/gate.rs", "fn f() {}\n"),
        ("layers.toml", "a = 1\n"),
    ];

    #[test]
    fn existing_files_may_be_named_in_every_usual_way() {
        let source = "//! See docs/contract.md, `crates/core/src/gate.rs`, `gate.rs`, `src/gate.rs`, layers.toml and docs/*.md.\n\
                      //! Not ours: /proc/self/maps, linux/vfio.h, https://example.org/docs/gone.md, and/or, Cargo.toml.\n";
        let files = [&FILES[..], &[("crates/core/src/door.rs", source)]].concat();
        assert_eq!(found(&files), Vec::<String>::new());
    }

    #[test]
    fn a_file_that_does_not_exist_is_found() {
        let source = "/// As `door.rs` and docs/gone.md say.\n// In crates/core/gone/.\n";
        let files = [&FILES[..], &[("crates/core/src/a.rs", source)]].concat();
        assert_eq!(
            found(&files),
            [
                "crates/core/src/a.rs:1: names door.rs, which is not in the repository",
                "crates/core/src/a.rs:1: names docs/gone.md, which is not in the repository",
                "crates/core/src/a.rs:2: names crates/core/gone, which is not in the repository",
            ]
        );
    }

    #[test]
    fn links_need_a_file_and_a_heading() {
        let good = "See [it](docs/contract.md#clause-1-pins), [this](#top) and [them](https://example.org).\n\n# Top\n";
        assert_eq!(found(&[&FILES[..], &[("README.md", good)]].concat()), Vec::<String>::new());
        let bad = "See [it](docs/contract.md#clause-2) and [that](docs/contracts.md).\n";
        let lines = found(&[&FILES[..], &[("README.md", bad)]].concat());
        assert!(lines.iter().any(|line| line.contains("links to docs/contract.md#clause-2")), "{lines:?}");
        assert!(lines.iter().any(|line| line.contains("links to docs/contracts.md")), "{lines:?}");
    }
}
