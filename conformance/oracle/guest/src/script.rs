//! The text of the scenarios: which lines belong to which scenario, and the words of a line.
//!
//! A scenario reaches from its `scenario NAME` line to the next; what stands before the first belongs to none. A `#`
//! begins a comment. Words are separated by blanks and tabs.

/// One scenario: its name and the lines under it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Scenario<'a> {
    pub(crate) name: &'a str,
    pub(crate) lines: Vec<Line<'a>>,
}

/// One line that asks for something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Line<'a> {
    /// The operation and what follows it, without the target of an arrow.
    pub(crate) words: Vec<&'a str>,
    /// The name behind a closing `-> NAME`.
    pub(crate) into: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// The line that `text` says, if it says anything.
    pub(crate) fn parse(text: &'a str) -> Option<Self> {
        let text = text.split('#').next().unwrap_or_default();
        let mut words: Vec<&str> = text.split([' ', '\t']).filter(|word| !word.is_empty()).collect();
        let mut into = None;
        if let [_, .., "->", name] = words[..] {
            into = Some(name);
            words.truncate(words.len() - 2);
        }
        (!words.is_empty()).then_some(Self { words, into })
    }

    /// The operation.
    pub(crate) fn op(&self) -> &'a str {
        self.words[0]
    }

    /// The value of the first word `key=value`.
    pub(crate) fn option(&self, key: &str) -> Option<&'a str> {
        self.words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    /// Whether `word` stands on the line by itself.
    pub(crate) fn says(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    /// The line as the transcript repeats it: words, one blank between.
    pub(crate) fn text(&self) -> String {
        let mut text = self.words.join(" ");
        if let Some(name) = self.into {
            text.push_str(" -> ");
            text.push_str(name);
        }
        text
    }
}

/// The scenarios of a text, in their order.
pub(crate) fn scenarios(text: &str) -> Vec<Scenario<'_>> {
    let mut scenarios: Vec<Scenario<'_>> = Vec::new();
    for text in text.lines() {
        if let Some(rest) = text.trim_start().strip_prefix("scenario") {
            // `scenarios` would be an operation, an unknown one.
            if rest.is_empty() || rest.starts_with([' ', '\t']) {
                scenarios.push(Scenario { name: rest.trim(), lines: Vec::new() });
                continue;
            }
        }
        if let (Some(scenario), Some(line)) = (scenarios.last_mut(), Line::parse(text)) {
            scenario.lines.push(line);
        }
    }
    scenarios
}

/// The place of the `endchild` that closes the `child` before `first`, or the end of the lines.
pub(crate) fn end_of_child(lines: &[Line<'_>], first: usize) -> usize {
    let mut depth = 1_usize;
    for (place, line) in lines.iter().enumerate().skip(first) {
        match line.op() {
            "child" => depth += 1,
            "endchild" if depth == 1 => return place,
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
        let found = scenarios(text);
        assert_eq!(found.iter().map(|scenario| scenario.name).collect::<Vec<_>>(), ["a01 first one", "b"]);
        assert_eq!(found[0].lines.len(), 1);
        assert_eq!(found[0].lines[0].text(), "map c0 A 0 P rw");
        assert_eq!(found[1].lines[0].op(), "status");
    }

    #[test]
    fn a_closing_arrow_names_the_target_and_options_are_found_anywhere() {
        let line = Line::parse("create c0 16 1G 1 flags=1 -> W").expect("a line");
        assert_eq!(line.into, Some("W"));
        assert_eq!(line.words.last(), Some(&"flags=1"));
        assert_eq!((line.option("flags"), line.option("flag"), line.says("16")), (Some("1"), None, true));
        assert_eq!(line.text(), "create c0 16 1G 1 flags=1 -> W");
        assert_eq!(Line::parse("-> W").expect("a line").into, None, "an arrow needs something before it");
        assert_eq!(Line::parse("   # only a comment"), None);
    }

    #[test]
    fn a_child_ends_at_its_own_endchild() {
        let text = "scenario x\nchild\nchild\nendchild\nstatus\nendchild\nstatus\n";
        let lines = &scenarios(text)[0].lines;
        assert_eq!(end_of_child(lines, 1), 4);
        assert_eq!(end_of_child(lines, 2), 2);
        assert_eq!(end_of_child(lines, 5), lines.len(), "one that is never closed ends with the scenario");
    }
}
