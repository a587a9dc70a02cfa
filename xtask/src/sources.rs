//! The Rust files of the workspace: their sizes, their `unsafe`, their ignored tests.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use crate::diagnostic::Diagnostic;
use crate::policy::Policy;
use crate::source::SourceFacts;

/// Limit of lines per file; tests count separately.
pub(crate) const LONGEST: usize = 800;

/// A longer file should say why.
pub(crate) const LONG: usize = 500;

/// All `.rs` files below `root`, without build results, corpora and hidden folders.
///
/// # Errors
/// The error of the first file that cannot be read.
pub(crate) fn read_tree(root: &Path) -> io::Result<BTreeMap<PathBuf, String>> {
    let mut files = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir)? {
            let entry = entry?;
            let (path, kind) = (entry.path(), entry.file_type()?);
            let name = entry.file_name().to_string_lossy().into_owned();
            if kind.is_dir()
                && !name.starts_with('.')
                && !["target", "corpus", "artifacts"].contains(&name.as_str())
            {
                open.push(path);
            } else if kind.is_file() && path.extension().is_some_and(|extension| extension == "rs") {
                let text = std::fs::read_to_string(&path)?;
                files.insert(path.strip_prefix(root).unwrap_or(&path).to_owned(), text);
            }
        }
    }
    Ok(files)
}

/// Lines of code and lines of tests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Lines {
    code: usize,
    tests: usize,
}

fn lines(path: &Path, source: &str) -> Lines {
    let total = source.lines().count();
    let facts = SourceFacts::of(source);
    let apart = facts.test_only
        || path.file_stem().is_some_and(|stem| stem == "tests")
        || path.components().any(|part| part.as_os_str() == "tests");
    let tests = if apart {
        total
    } else {
        facts.test_lines.iter().map(|(first, last)| last + 1 - first).sum::<usize>().min(total)
    };
    Lines { code: total - tests, tests }
}

/// Files over [`LONGEST`], and warnings about those over [`LONG`].
pub(crate) fn sizes(files: &BTreeMap<PathBuf, String>) -> (Vec<Diagnostic>, Vec<Diagnostic>) {
    let (mut diagnostics, mut warnings) = (Vec::new(), Vec::new());
    for (path, source) in files {
        let Lines { code, tests } = lines(path, source);
        for (count, what) in [(code, "lines of code"), (tests, "lines of tests")] {
            if count > LONGEST {
                diagnostics.push(Diagnostic::in_file(
                    path,
                    format!("{count} {what}, the end is {LONGEST}; split it by noun"),
                ));
            } else if count > LONG {
                warnings.push(Diagnostic::in_file(
                    path,
                    format!("{count} {what}; over {LONG} a file should say why"),
                ));
            }
        }
    }
    (diagnostics, warnings)
}

/// Files with `unsafe` that are not in the ledger or exceed it, and entries of the ledger that allow too much.
pub(crate) fn unsafe_ledger(files: &BTreeMap<PathBuf, String>, policy: &Policy) -> Vec<Diagnostic> {
    let mut diagnostics = Vec::new();
    for (path, source) in files {
        let sites = SourceFacts::of(source).unsafe_lines;
        let Some(&first) = sites.first() else { continue };
        let count = sites.len();
        match policy.unsafe_files.iter().find(|entry| Path::new(&entry.file) == path) {
            None => diagnostics.push(Diagnostic::at(
                path,
                first,
                format!("says `unsafe` ({count} times) and is not in layers.toml; move it into a module that is, or enter it with a reason"),
            )),
            Some(entry) if count > entry.most => diagnostics.push(Diagnostic::at(
                path,
                first,
                format!("says `unsafe` {count} times, the ledger in layers.toml allows {}", entry.most),
            )),
            Some(entry) if count < entry.most => diagnostics.push(Diagnostic::in_file(
                path,
                format!("says `unsafe` {count} times; lower its line in layers.toml from {}", entry.most),
            )),
            Some(_) => {}
        }
    }
    for entry in &policy.unsafe_files {
        let path = Path::new(&entry.file);
        if entry.reason.trim().is_empty() {
            diagnostics.push(Diagnostic::in_file(path, "stands in the ledger without a reason"));
        }
        if files.get(path).is_none_or(|source| SourceFacts::of(source).unsafe_lines.is_empty()) {
            diagnostics.push(Diagnostic::in_file(
                path,
                "stands in the ledger of layers.toml but has no `unsafe`; strike it",
            ));
        }
    }
    diagnostics
}

/// Ignored tests without a reason.
pub(crate) fn skips(files: &BTreeMap<PathBuf, String>) -> Vec<Diagnostic> {
    files
        .iter()
        .flat_map(|(path, source)| {
            SourceFacts::of(source).unexplained_ignores.into_iter().map(|line| {
                Diagnostic::at(path, line, "#[ignore] without a reason; write #[ignore = \"why\"]")
            })
        })
        .collect()
}

/// Tests that a script leaves out (`--skip NAME`) and that do not exist: a renamed test would run where it cannot pass.
pub(crate) fn stale_skips(script: &Path, text: &str, files: &BTreeMap<PathBuf, String>) -> Vec<Diagnostic> {
    let exists = |name: &str| {
        let forms = [format!("fn {name}("), format!("mod {name};"), format!("mod {name} {{")];
        files.values().any(|source| forms.iter().any(|form| source.contains(form)))
    };
    let words: Vec<(usize, &str)> = (1..)
        .zip(text.lines())
        .flat_map(|(line, text)| text.split_whitespace().map(move |word| (line, word)))
        .collect();
    words
        .windows(2)
        .filter(|pair| pair[0].1 == "--skip")
        .map(|pair| pair[1])
        .filter(|(_, name)| name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') && !exists(name))
        .map(|(line, name)| {
            Diagnostic::at(script, line, format!("--skip {name}: there is no such test or module"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_that_leaves_out_a_test_that_was_renamed_is_found() {
        let files = tree(&[("a.rs", "mod slow;\nfn counts_pages() {}".to_owned())]);
        let text = "cargo test -- --skip slow\ncargo test -- \\\n    --skip counts_page --skip counts_pages\nprintf -- '--skip %s ' $half";
        let found = stale_skips(Path::new(".ci/run"), text, &files);
        assert_eq!(
            found.iter().map(ToString::to_string).collect::<Vec<_>>(),
            [".ci/run:3: --skip counts_page: there is no such test or module"]
        );
    }

    fn tree(files: &[(&str, String)]) -> BTreeMap<PathBuf, String> {
        files.iter().map(|(path, source)| (PathBuf::from(path), source.clone())).collect()
    }

    fn policy(entries: &str) -> Policy {
        Policy::parse(&format!("outside_tests = []\ncrate = []\n{entries}")).unwrap()
    }

    #[test]
    fn a_file_may_have_800_lines_and_its_tests_800_more() {
        let code = "fn f() {}\n".repeat(LONGEST);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{}}}\n", "fn t() {}\n".repeat(LONGEST - 3));
        let full = format!("{code}{tests}");
        assert_eq!(lines(Path::new("a.rs"), &full), Lines { code: LONGEST, tests: LONGEST });
        let (diagnostics, warnings) = sizes(&tree(&[("a.rs", full)]));
        assert!(diagnostics.is_empty());
        assert_eq!(warnings.len(), 2);
        let (diagnostics, _) = sizes(&tree(&[("a.rs", format!("{code}fn g() {{}}\n"))]));
        assert_eq!(diagnostics[0].to_string(), "a.rs: 801 lines of code, the end is 800; split it by noun");
    }

    #[test]
    fn files_of_tests_are_tests_as_a_whole() {
        for path in ["src/space/tests.rs", "tests/replay.rs", "src/tests/a.rs"] {
            assert_eq!(lines(Path::new(path), "fn f() {}\n"), Lines { code: 0, tests: 1 }, "{path}");
        }
    }

    #[test]
    fn unsafe_outside_the_ledger_fails_and_inside_it_passes() {
        let files =
            tree(&[("src/sys.rs", "unsafe fn f() {}".to_owned()), ("src/a.rs", "// unsafe\n".to_owned())]);
        let listed = policy("[[unsafe]]\nfile = \"src/sys.rs\"\nreason = \"system calls\"\nmost = 1\n");
        assert!(unsafe_ledger(&files, &listed).is_empty());
        let found = unsafe_ledger(&files, &policy(""));
        assert_eq!(found.len(), 1);
        assert!(found[0].to_string().starts_with("src/sys.rs:1: says `unsafe` (1 times)"), "{}", found[0]);
    }

    #[test]
    fn the_ledger_may_not_lag_behind_the_code() {
        let files = tree(&[("a.rs", "unsafe fn f() { unsafe {} }".to_owned()), ("b.rs", String::new())]);
        let entry = |file: &str, most: usize, reason: &str| {
            format!("[[unsafe]]\nfile = \"{file}\"\nreason = \"{reason}\"\nmost = {most}\n")
        };
        for (entries, says) in [
            (entry("a.rs", 1, "x"), "allows 1"),
            (entry("a.rs", 3, "x"), "lower its line"),
            (entry("a.rs", 2, " "), "without a reason"),
            (entry("a.rs", 2, "x") + &entry("b.rs", 1, "x"), "strike it"),
            (entry("a.rs", 2, "x") + &entry("gone.rs", 1, "x"), "strike it"),
        ] {
            let found = unsafe_ledger(&files, &policy(&entries));
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].to_string().contains(says), "{}", found[0]);
        }
    }

    #[test]
    fn an_ignored_test_without_a_reason_is_found() {
        let found = skips(&tree(&[("a.rs", "#[test]\n#[ignore]\nfn f() {}".to_owned())]));
        assert_eq!(found[0].to_string(), "a.rs:2: #[ignore] without a reason; write #[ignore = \"why\"]");
    }
}
