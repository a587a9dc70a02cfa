//! A scenario set: one file of scenarios for one kernel on one machine.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use super::machine::Machine;
use super::options::Options;
use super::page_size::PageSize;
use crate::error::Error;

/// Scenarios, and their stored answers if there are any.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ScenarioSet {
    name: String,
    pub(crate) page_size: PageSize,
    pub(crate) machine: Machine,
    pub(crate) scenarios: PathBuf,
    pub(crate) answers: Option<PathBuf>,
}

impl fmt::Display for ScenarioSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.name, self.page_size.name())
    }
}

/// The sets that `options` choose, by name and page size.
///
/// # Errors
/// [`Error::File`] for a folder that cannot be read, [`Error::Missing`] if no set is left.
pub(crate) fn find(root: &Path, options: &Options) -> Result<Vec<ScenarioSet>, Error> {
    let scenarios = options.scenarios.clone().unwrap_or_else(|| root.join("conformance/scenarios"));
    let answers = options.answers.clone().unwrap_or_else(|| root.join("conformance/answers"));
    let mut names = options.sets.clone();
    if names.is_empty() {
        let entries = fs::read_dir(&scenarios).map_err(Error::file(&scenarios))?;
        let files = entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        names = files.filter_map(|file| Some(file.strip_suffix(".scn")?.to_owned())).collect();
        names.sort();
    }
    let mut sets = Vec::new();
    for name in names {
        for page_size in &options.page_sizes {
            let set = ScenarioSet {
                page_size: *page_size,
                machine: Machine::of_set(&name),
                scenarios: scenarios.join(format!("{name}.scn")),
                answers: Some(answers.join(format!("{name}-{}.txt", page_size.name())))
                    .filter(|path| path.exists()),
                name: name.clone(),
            };
            if !set.scenarios.exists() {
                return Err(Error::Missing {
                    place: scenarios,
                    what: format!("{name}.scn"),
                    remedy: "name one that is there",
                });
            }
            // A set without stored answers is recorded only by name.
            if set.answers.is_some() || !options.sets.is_empty() {
                sets.push(set);
            }
        }
    }
    if sets.is_empty() {
        return Err(Error::Missing {
            place: answers,
            what: "stored answers to these scenarios".to_owned(),
            remedy: "name sets with --set to ask them all the same",
        });
    }
    Ok(sets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_without_stored_answers_are_asked_only_by_name() {
        let root = tempfile::tempdir().expect("a folder");
        let (scenarios, answers) =
            (root.path().join("conformance/scenarios"), root.path().join("conformance/answers"));
        for folder in [&scenarios, &answers] {
            fs::create_dir_all(folder).expect("a writable folder");
        }
        for file in [scenarios.join("one.scn"), scenarios.join("two.scn"), answers.join("one-64k.txt")] {
            fs::write(file, "").expect("a writable folder");
        }
        let named = |words: &[&str]| -> Result<Vec<String>, Error> {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            let options = Options::parse(&words).expect("right words").expect("no help");
            Ok(find(root.path(), &options)?.iter().map(ScenarioSet::to_string).collect())
        };
        assert_eq!(named(&[]).expect("one set"), ["one-64k"]);
        assert_eq!(named(&["--set", "two"]).expect("by name"), ["two-4k", "two-64k"]);
        assert!(named(&["--page-size", "4k"]).is_err(), "nothing is stored for 4 KiB");
        assert!(named(&["--set", "three"]).is_err(), "there is no such file");
    }
}
