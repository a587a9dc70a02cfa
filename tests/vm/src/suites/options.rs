//! The command line of `cargo xtask vm`.

use super::case::Suite;

pub(crate) const USAGE: &str = "\
usage: cargo xtask vm [--suite nvme|strangers|vfio|iommufd|all] [--only NAME]... [--list] [--keep] [--fresh]

Boots guests in an emulator that use the devices and back ends of this workspace: an NVMe disk of `prereg serve` over
vfio-user, and VFIO of the guest's kernel through `prereg selftest`. Packages come from the machine's own sources and are
kept in the user's cache. Exit status: 0 all passed, 1 a case failed, 2 an artifact is missing.

  --suite  nvme and vfio by default; strangers puts Debian's tools, firmware and bootloaders on the disk (fetched once);
           iommufd builds a kernel first (20 minutes, once); all is all four
  --only   only this case; may be repeated
  --list   prints the names of the cases
  --keep   also keeps consoles and disks of cases that passed
  --fresh  starts with an empty cache
";

/// The parsed command line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Options {
    /// By default the short ones.
    pub(crate) suites: Vec<Suite>,
    /// Empty: all cases of the suites.
    pub(crate) only: Vec<String>,
    pub(crate) list: bool,
    pub(crate) keep: bool,
    pub(crate) fresh: bool,
}

impl Options {
    /// The options, or `None` if the words ask for help.
    ///
    /// # Errors
    /// The reason why the words are wrong.
    pub(crate) fn parse(words: &[String]) -> Result<Option<Self>, String> {
        let mut options = Self { suites: vec![Suite::Nvme, Suite::Vfio], ..Self::default() };
        let mut named = false;
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            match word.as_str() {
                "--suite" => {
                    let name = value()?;
                    let suite = Suite::ALL.into_iter().find(|suite| suite.name() == name);
                    options.suites = match (suite, name.as_str()) {
                        (Some(suite), _) => vec![suite],
                        (None, "all") => Suite::ALL.to_vec(),
                        (None, _) => {
                            return Err(format!(
                                "suite {name} is none of nvme, strangers, vfio, iommufd and all"
                            ));
                        }
                    };
                    named = true;
                }
                "--only" => options.only.push(value()?.clone()),
                "--list" => options.list = true,
                "--keep" => options.keep = true,
                "--fresh" => options.fresh = true,
                "--help" | "-h" => return Ok(None),
                _ => return Err(format!("unknown word {word}")),
            }
        }
        // Names are unique across suites.
        if !named && (options.list || !options.only.is_empty()) {
            options.suites = Suite::ALL.to_vec();
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

    fn suites(line: &str) -> Vec<Suite> {
        parse(line).expect("right").expect("no help is asked for").suites
    }

    #[test]
    fn what_takes_long_is_run_only_for_who_asks() {
        assert_eq!(suites(""), [Suite::Nvme, Suite::Vfio]);
        assert_eq!(suites("--keep"), [Suite::Nvme, Suite::Vfio]);
        assert_eq!(suites("--suite strangers"), [Suite::Strangers]);
        assert_eq!(suites("--suite iommufd"), [Suite::Iommufd]);
        assert_eq!(suites("--suite all"), Suite::ALL);
        assert_eq!(suites("--only some-case"), Suite::ALL);
        assert_eq!(suites("--suite vfio --only some-case"), [Suite::Vfio]);
    }

    #[test]
    fn wrong_words_are_refused() {
        assert_eq!(parse("--help"), Ok(None));
        for wrong in ["--suite", "--suite scsi", "--only", "nvme", "--keep=1"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
