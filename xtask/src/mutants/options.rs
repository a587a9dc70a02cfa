//! The command line of `cargo xtask mutants`.

pub(crate) const USAGE: &str = "\
usage: cargo xtask mutants --all [--record] | --changed BASE [--minutes M] | --list
                           [--kind logic|orders] [--file TEXT] [--jobs N]

Changes the code in small ways and looks whether a test notices: cargo-mutants changes what functions return and what
operators do (`logic`), the generator of this program weakens memory orderings and removes fences (`orders`). What is
changed, by which tests, and which mutants may survive for what reason stands in mutants.toml. Ends with 0, with 1 when a
mutant survived that is not listed there or when that list says too much, with 2 when the mutants could not be tried.

  --all      every mutant
  --changed  mutants of lines that differ from the commit BASE, a sample of them when there are too many for M minutes
  --list     prints the names of the mutants
  --record   writes the result into docs/mutation-testing.md
  --minutes  4 without it
  --kind     only cargo-mutants' mutants, or only memory-order mutants
  --file     only mutants of files whose path contains TEXT
  --jobs     mutants that are tried at once; 2 without it
";

/// The chosen mutants.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Selection {
    All,
    Changed { base: String },
    List,
}

/// The generator.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Logic,
    Orders,
}

/// The parsed command line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Options {
    pub(crate) selection: Selection,
    pub(crate) record: bool,
    pub(crate) minutes: u64,
    /// By default both.
    pub(crate) kind: Option<Kind>,
    /// Part of a path; empty for all files.
    pub(crate) file: String,
    pub(crate) jobs: usize,
}

impl Options {
    /// The options, or `None` if the words ask for help.
    ///
    /// # Errors
    /// The reason why the words are wrong.
    pub(crate) fn parse(words: &[String]) -> Result<Option<Self>, String> {
        let mut selection = None;
        let mut options = Self {
            selection: Selection::List,
            record: false,
            minutes: 4,
            kind: None,
            file: String::new(),
            jobs: 2,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().cloned().ok_or_else(|| format!("{word} needs a value"));
            let chosen = match word.as_str() {
                "--all" => Some(Selection::All),
                "--changed" => Some(Selection::Changed { base: value()? }),
                "--list" => Some(Selection::List),
                "--help" | "-h" => return Ok(None),
                "--record" => {
                    options.record = true;
                    None
                }
                "--minutes" => {
                    options.minutes = positive(word, &value()?)? as u64;
                    None
                }
                "--jobs" => {
                    options.jobs = positive(word, &value()?)?;
                    None
                }
                "--file" => {
                    options.file = value()?;
                    None
                }
                "--kind" => {
                    options.kind = Some(match value()?.as_str() {
                        "logic" => Kind::Logic,
                        "orders" => Kind::Orders,
                        other => return Err(format!("kind {other} is neither logic nor orders")),
                    });
                    None
                }
                _ => return Err(format!("{word} is not understood")),
            };
            if chosen.is_some() && std::mem::replace(&mut selection, chosen).is_some() {
                return Err("only one of --all, --changed and --list can be chosen".to_owned());
            }
        }
        options.selection = selection.ok_or("one of --all, --changed and --list must be chosen")?;
        let whole = options.selection == Selection::All && options.kind.is_none() && options.file.is_empty();
        if options.record && !whole {
            return Err("--record is for a whole run: --all without --kind and --file".to_owned());
        }
        Ok(Some(options))
    }

    pub(crate) fn wants(&self, kind: Kind) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind)
    }
}

fn positive(word: &str, value: &str) -> Result<usize, String> {
    value
        .parse()
        .ok()
        .filter(|&number| number > 0)
        .ok_or_else(|| format!("{word} needs a number above 0, not {value}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Option<Options>, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        Options::parse(&words)
    }

    #[test]
    fn one_selection_is_needed_and_one_is_enough() {
        assert!(parse("").is_err() && parse("--all --list").is_err() && parse("--changed").is_err());
        let options =
            parse("--changed HEAD~3 --minutes 7 --kind orders --file door").expect("right").expect("no help");
        assert_eq!(options.selection, Selection::Changed { base: "HEAD~3".to_owned() });
        assert_eq!((options.minutes, options.file.as_str()), (7, "door"));
        assert!(options.wants(Kind::Orders) && !options.wants(Kind::Logic));
        assert_eq!(parse("--help"), Ok(None));
    }

    #[test]
    fn only_a_whole_run_is_recorded() {
        assert!(parse("--all --record").is_ok());
        for line in ["--all --record --kind logic", "--all --record --file door", "--changed HEAD --record"] {
            assert!(parse(line).is_err(), "{line}");
        }
        assert!(parse("--all --jobs 0").is_err() && parse("--all --minutes x").is_err());
    }
}
