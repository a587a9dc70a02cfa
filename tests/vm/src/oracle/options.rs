//! The command line of `cargo xtask oracle`.

use std::path::PathBuf;

use super::page_size::PageSize;

pub(crate) const USAGE: &str = "\
usage: cargo xtask oracle [--page-size 4k|64k|both] [--set NAME]... [--scenarios DIR] [--answers DIR] [--fresh]

Boots real kernels in an emulator, records their answers to the conformance scenarios and compares them with the stored ones.

  --page-size  page size of the kernel; both by default
  --set        only this set, such as vfio or random-regions, with or without stored answers; may be repeated;
               by default every set that has stored answers
  --scenarios  folder of NAME.scn instead of conformance/scenarios
  --answers    folder of NAME-4k.txt and NAME-64k.txt instead of conformance/answers
  --fresh      starts with an empty cache: fetches and builds everything again
";

/// The parsed command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    pub(crate) page_sizes: Vec<PageSize>,
    /// Empty: every set with stored answers.
    pub(crate) sets: Vec<String>,
    pub(crate) scenarios: Option<PathBuf>,
    pub(crate) answers: Option<PathBuf>,
    pub(crate) fresh: bool,
}

impl Options {
    /// The options, or `None` if the words ask for help.
    ///
    /// # Errors
    /// The reason why the words are wrong.
    pub(crate) fn parse(words: &[String]) -> Result<Option<Self>, String> {
        let mut options = Self {
            page_sizes: PageSize::ALL.to_vec(),
            sets: Vec::new(),
            scenarios: None,
            answers: None,
            fresh: false,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--page-size" => {
                    let name = value()?;
                    options.page_sizes = match name.as_str() {
                        "both" => PageSize::ALL.to_vec(),
                        _ => vec![
                            PageSize::parse(name)
                                .ok_or_else(|| format!("page size {name} is none of 4k, 64k and both"))?,
                        ],
                    };
                }
                "--set" => {
                    let name = value()?;
                    if name.contains('/') {
                        return Err(format!("set {name} is a path; name the folder with --scenarios"));
                    }
                    options.sets.push(name.clone());
                }
                "--scenarios" => options.scenarios = Some(PathBuf::from(value()?)),
                "--answers" => options.answers = Some(PathBuf::from(value()?)),
                "--fresh" => options.fresh = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown word {word}")),
            }
        }
        Ok(Some(options))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        Options::parse(&line.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn without_words_both_page_sizes_and_every_stored_set_are_asked() {
        let options = parse("").expect("no words are right").expect("no help is asked for");
        assert_eq!(options.page_sizes, PageSize::ALL);
        assert!(options.sets.is_empty() && !options.fresh);
    }

    #[test]
    fn words_choose_and_wrong_words_are_refused() {
        let options = parse("--page-size 64k --set vfio --set regions").expect("right").expect("no help");
        assert_eq!(options.page_sizes, [PageSize::Large]);
        assert_eq!(options.sets, ["vfio", "regions"]);
        assert_eq!(parse("--help"), Ok(None));
        for wrong in ["--page-size", "--page-size 16k", "--set", "--set ../vfio", "vfio", "--answers"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
