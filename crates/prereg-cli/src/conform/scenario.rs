//! A scenario file: named blocks of lines, one operation a line, and the machine it was written for.

use super::machine::Machine;

/// A file of scenarios.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScenarioFile {
    /// The machine that its first comment names; the bare-metal POWER9 one if it names none.
    pub machine: Machine,
    /// In order.
    pub scenarios: Vec<Scenario>,
}

/// One scenario: it starts in a fresh process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scenario {
    /// What stands behind the word `scenario`.
    pub name: String,
    /// Its lines with their numbers in the file, from 1.
    pub lines: Vec<(usize, String)>,
}

impl ScenarioFile {
    /// Reads a file. Any text is one: lines before the first `scenario` are comments, unknown operations are answered when
    /// they are performed.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut scenarios: Vec<Scenario> = Vec::new();
        let mut machine = None;
        for (index, line) in text.lines().enumerate() {
            let line = line.trim_end_matches('\r');
            if line.split_whitespace().next() == Some("scenario") {
                let name = line.split_once(' ').map_or("", |(_, name)| name);
                scenarios.push(Scenario { name: name.to_owned(), lines: Vec::new() });
            } else if let Some(scenario) = scenarios.last_mut() {
                scenario.lines.push((index + 1, line.to_owned()));
            } else if machine.is_none() && line.trim_start().starts_with('#') {
                machine = Machine::named_in(line);
            }
        }
        Self { machine: machine.unwrap_or(Machine::PowerNv9), scenarios }
    }
}

/// The words of a line, without its comment.
pub(super) fn words(line: &str) -> Vec<&str> {
    let code = line.split_once('#').map_or(line, |(code, _)| code);
    code.split([' ', '\t']).filter(|word| !word.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_keep_their_numbers_and_the_first_comment_names_the_machine() {
        let file =
            ScenarioFile::parse("# needs 2M HugeTLB: pseries machine (radix)\n\nscenario a b # c\nmem A P\n");
        assert_eq!(file.machine, Machine::Pseries);
        assert_eq!(file.scenarios.len(), 1);
        assert_eq!(file.scenarios[0].name, "a b # c");
        assert_eq!(file.scenarios[0].lines, [(4, "mem A P".to_owned())]);
        assert_eq!(ScenarioFile::parse("nothing\n").scenarios, []);
    }

    #[test]
    fn comments_and_blanks_are_no_words() {
        assert_eq!(words(" a\t b #c"), ["a", "b"]);
        assert_eq!(words("#"), Vec::<&str>::new());
    }
}
