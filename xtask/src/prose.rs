//! `prose.toml`: phrases that comments and documents must not contain.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use crate::diagnostic::Diagnostic;
use crate::texts::{Block, Kind, Text};

/// The whole file.
#[derive(Deserialize, Debug)]
#[serde(deny_unknown_fields)]
pub(crate) struct Policy {
    /// Words that no title or definition begins with.
    openers: Vec<String>,
    /// Phrases that stand nowhere.
    phrases: Vec<String>,
    /// Folders and files that are not yet reworded. The list may only shrink: an entry without a violation is reported.
    todo: BTreeSet<String>,
}

impl Policy {
    /// # Errors
    /// The parser's message, with its line.
    pub(crate) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// The violations outside the folders of `todo`, and entries of `todo` that are done.
    pub(crate) fn diagnostics(&self, texts: &[Text]) -> Vec<Diagnostic> {
        let mut diagnostics = Vec::new();
        let mut needed = BTreeSet::new();
        // The list itself contains the phrases.
        for text in texts.iter().filter(|text| text.file != "prose.toml") {
            let found = text.blocks.iter().flat_map(|block| self.block(&text.file, block));
            let entry = self.todo.iter().find(|entry| Path::new(&text.file).starts_with(entry));
            match entry {
                None => diagnostics.extend(found),
                Some(entry) if found.count() > 0 => _ = needed.insert(entry),
                Some(_) => {}
            }
        }
        for entry in self.todo.iter().filter(|entry| !needed.contains(entry)) {
            diagnostics.push(Diagnostic::in_file(
                Path::new("prose.toml"),
                format!("{entry} has no violation any more; strike it from `todo`"),
            ));
        }
        diagnostics
    }

    fn block(&self, file: &str, block: &Block) -> Vec<Diagnostic> {
        let (mut found, mut text, mut starts) = (Vec::new(), String::new(), Vec::new());
        if matches!(block.kind, Kind::Code | Kind::Indented) {
            return found;
        }
        for (number, line) in &block.lines {
            starts.push((text.len(), *number));
            text.push_str(&line.to_lowercase());
            text.push(' ');
        }
        let line =
            |at: usize| starts.iter().rev().find(|(start, _)| *start <= at).map_or(0, |(_, line)| *line);
        if block.kind == Kind::Title {
            let opener = self.openers.iter().find(|opener| begins(&text, opener));
            found.extend(opener.map(|opener| {
                Diagnostic::at(
                    Path::new(file),
                    line(0),
                    format!("begins with \"{opener}\"; name the thing by its term"),
                )
            }));
        }
        for phrase in &self.phrases {
            for at in occurrences(&text, phrase) {
                found.push(Diagnostic::at(
                    Path::new(file),
                    line(at),
                    format!("says \"{phrase}\"; use plain terms (prose.toml)"),
                ));
            }
        }
        found
    }
}

fn part_of_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_' || c == '\''
}

/// Whether `text` begins with the words `opener`.
fn begins(text: &str, opener: &str) -> bool {
    let rest = text.trim_start_matches(['*', '`', '-', ' ']).strip_prefix(&opener.to_lowercase());
    rest.is_some_and(|rest| !rest.starts_with(part_of_word))
}

/// The places of `phrase` in `text` as whole words, outside of backticks.
fn occurrences(text: &str, phrase: &str) -> Vec<usize> {
    let phrase = phrase.to_lowercase();
    let whole = |at: usize| {
        !text[..at].ends_with(part_of_word) && !text[at + phrase.len()..].starts_with(part_of_word)
    };
    let quoted = |at: usize| text[..at].matches('`').count() % 2 == 1;
    text.match_indices(&phrase).map(|(at, _)| at).filter(|&at| whole(at) && !quoted(at)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::texts::parser;

    const POLICY: &str =
        "openers = [\"What\", \"The same\"]\nphrases = [\"nobody\", \"gives back\"]\ntodo = [\"old\"]\n";

    fn found(files: &[(&str, &str)]) -> Vec<String> {
        let text = |&(file, source): &(&str, &str)| Text {
            file: file.to_owned(),
            blocks: parser(file).expect("a known kind")(source),
        };
        let texts: Vec<Text> = files.iter().map(text).collect();
        let policy = Policy::parse(POLICY).expect("valid");
        policy.diagnostics(&texts).iter().map(ToString::to_string).collect()
    }

    const OLD: (&str, &str) = ("old/a.rs", "/// What it is.\n");

    #[test]
    fn openers_are_found_at_the_beginning_of_titles_only() {
        assert_eq!(
            found(&[
                OLD,
                ("a.rs", "/// What it is.\nfn f() {}\n// What is this?\n"),
                ("b.md", "# The same again\n\nWhat?\n")
            ]),
            [
                "a.rs:1: begins with \"What\"; name the thing by its term",
                "b.md:1: begins with \"The same\"; name the thing by its term"
            ]
        );
        assert!(found(&[OLD, ("a.rs", "/// Whatever it is.\n")]).is_empty());
    }

    #[test]
    fn phrases_are_found_across_lines_and_not_in_words_and_code() {
        let source = "// So it gives\n// back, and Nobody waits.\n// `nobody` is a user; anybodynobody\n";
        let lines = found(&[OLD, ("a.rs", source)]);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[0].starts_with("a.rs:2: says \"nobody\""), "{lines:?}");
        assert!(lines[1].starts_with("a.rs:1: says \"gives back\""), "{lines:?}");
        assert!(found(&[OLD, ("a.md", "```\nnobody\n```\n")]).is_empty());
    }

    #[test]
    fn a_folder_that_is_done_is_struck_from_the_list() {
        let lines = found(&[("old/a.rs", "/// Done.\n")]);
        assert_eq!(lines, ["prose.toml: old has no violation any more; strike it from `todo`"]);
    }
}
