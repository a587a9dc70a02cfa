//! Scenario files: blocks of lines, one operation per line.
//!
//! A scenario reaches from its `scenario NAME` line to the next one. `#` begins a comment. Words are separated by blanks and
//! tabs. Lines before the first scenario belong to none; comments among them are kept, since one may name the machine.

/// A parsed scenario file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Script {
    /// Comment lines before the first scenario.
    pub comments: Vec<String>,
    /// The scenarios in file order.
    pub scenarios: Vec<Scenario>,
}

/// A scenario. It runs in a fresh process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scenario {
    /// The text behind the word `scenario`.
    pub name: String,
    /// Its operations.
    pub lines: Vec<Line>,
    /// The number of the first line behind the scenario, from 1.
    pub end: usize,
}

/// One operation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Line {
    /// Line number in the file, from 1.
    pub number: usize,
    /// The operation and its arguments, without a closing `-> NAME`. Never empty.
    pub words: Vec<String>,
    /// The name of a closing `-> NAME`.
    pub target: Option<String>,
}

impl Script {
    /// Parses a file. Never fails: unknown operations are reported when they are performed.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut script = Self::default();
        let mut number = 0;
        for line in text.lines() {
            number += 1;
            if let Some(name) = scenario_name(line) {
                if let Some(last) = script.scenarios.last_mut() {
                    last.end = number;
                }
                script.scenarios.push(Scenario { name: name.to_owned(), ..Scenario::default() });
            } else if let Some(scenario) = script.scenarios.last_mut() {
                scenario.lines.extend(Line::parse(number, line));
            } else if line.trim_start().starts_with('#') {
                script.comments.push(line.to_owned());
            }
        }
        if let Some(last) = script.scenarios.last_mut() {
            last.end = number + 1;
        }
        script
    }
}

/// The name of a `scenario NAME` line.
fn scenario_name(line: &str) -> Option<&str> {
    let rest = line.trim_start().strip_prefix("scenario")?;
    (rest.is_empty() || rest.starts_with(char::is_whitespace)).then(|| rest.trim())
}

impl Line {
    /// Parses line `number`; `None` if it has no words.
    #[must_use]
    pub fn parse(number: usize, text: &str) -> Option<Self> {
        let code = text.split_once('#').map_or(text, |(code, _)| code).trim_end_matches('\r');
        let mut words: Vec<String> =
            code.split([' ', '\t']).filter(|word| !word.is_empty()).map(str::to_owned).collect();
        let mut target = None;
        if words.len() > 2 && words[words.len() - 2] == "->" {
            target = words.pop();
            words.pop();
        }
        (!words.is_empty()).then_some(Self { number, words, target })
    }

    /// The operation.
    #[must_use]
    pub fn op(&self) -> &str {
        self.words.first().map_or("", String::as_str)
    }

    /// The line as transcripts repeat it: its words with one blank between them.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = self.words.join(" ");
        if let Some(name) = &self.target {
            text.push_str(" -> ");
            text.push_str(name);
        }
        text
    }
}

/// The value of the first word `key=value`.
#[must_use]
pub fn option<'a>(words: &'a [String], key: &str) -> Option<&'a str> {
    words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
}

/// Whether `word` is one of the words.
#[must_use]
pub fn flag(words: &[String], word: &str) -> bool {
    words.iter().any(|other| other == word)
}

/// The index of the `endchild` that closes the `child` before `first`, or the number of lines.
#[must_use]
pub fn end_of_child(lines: &[Line], first: usize) -> usize {
    let mut depth = 1_usize;
    for (index, line) in lines.iter().enumerate().skip(first) {
        match line.op() {
            "child" => depth += 1,
            "endchild" if depth == 1 => return index,
            "endchild" => depth -= 1,
            _ => {}
        }
    }
    lines.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_belong_to_the_scenario_above_them() {
        let text =
            "# head\nmem A P\nscenario a01 first one\n\n  map  c0\tA 0 P rw # why\nscenario b\nstatus\n";
        let script = Script::parse(text);
        assert_eq!(script.comments, ["# head"]);
        let scenarios = script.scenarios;
        assert_eq!(
            scenarios.iter().map(|scenario| &*scenario.name).collect::<Vec<_>>(),
            ["a01 first one", "b"]
        );
        assert_eq!(scenarios.iter().map(|scenario| scenario.end).collect::<Vec<_>>(), [6, 8]);
        assert_eq!(scenarios[0].lines.len(), 1);
        assert_eq!(scenarios[0].lines[0].text(), "map c0 A 0 P rw");
        assert_eq!(scenarios[0].lines[0].number, 5);
        assert_eq!(scenarios[1].lines[0].op(), "status");
        assert_eq!(Script::parse("nothing\n").scenarios, []);
    }

    #[test]
    fn lines_keep_their_numbers_and_names_their_hashes() {
        let script =
            Script::parse("# needs 2M HugeTLB: pseries machine (radix)\n\nscenario a b # c\r\nmem A P\r\n");
        assert_eq!(script.scenarios.len(), 1);
        assert_eq!(script.scenarios[0].name, "a b # c");
        assert_eq!(script.scenarios[0].lines[0].number, 4);
        assert_eq!(script.scenarios[0].lines[0].words, ["mem", "A", "P"]);
        assert!(Script::parse("scenarios x\n").scenarios.is_empty(), "another word, so an operation");
    }

    #[test]
    fn comments_and_blanks_are_no_words() {
        assert_eq!(Line::parse(1, " a\t b #c").expect("a line").words, ["a", "b"]);
        assert_eq!(Line::parse(1, "#"), None);
        assert_eq!(Line::parse(1, "   # only a comment"), None);
    }

    #[test]
    fn a_closing_arrow_names_the_target_and_options_are_found_anywhere() {
        let line = Line::parse(1, "create c0 16 1G 1 flags=1 -> W").expect("a line");
        assert_eq!(line.target.as_deref(), Some("W"));
        assert_eq!(line.words.last().map(String::as_str), Some("flags=1"));
        assert_eq!((option(&line.words, "flags"), option(&line.words, "flag")), (Some("1"), None));
        assert!(flag(&line.words, "16"));
        assert_eq!(line.text(), "create c0 16 1G 1 flags=1 -> W");
        assert_eq!(
            Line::parse(1, "-> W").expect("a line").target,
            None,
            "an arrow needs something before it"
        );
    }

    #[test]
    fn a_child_ends_at_its_own_endchild() {
        let text = "scenario x\nchild\nchild\nendchild\nstatus\nendchild\nstatus\n";
        let lines = &Script::parse(text).scenarios[0].lines;
        assert_eq!(end_of_child(lines, 1), 4);
        assert_eq!(end_of_child(lines, 2), 2);
        assert_eq!(end_of_child(lines, 5), lines.len(), "one that is never closed ends with the scenario");
    }
}
