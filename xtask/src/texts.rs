//! The texts that `prose` and `citations` check: comments of source files and paragraphs of Markdown, with their lines.

use std::path::Path;

use crate::error::Error;
use crate::lexer::comments;

/// The text of a file for human readers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Text {
    /// From the workspace root.
    pub(crate) file: String,
    pub(crate) blocks: Vec<Block>,
}

/// A comment, a paragraph, a heading, or a block of code in Markdown.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Block {
    pub(crate) kind: Kind,
    /// The lines with their numbers, without comment signs.
    pub(crate) lines: Vec<(usize, String)>,
}

/// The kind of a block.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A documentation comment or a heading: it begins with the name of a thing.
    Title,
    /// Any other comment or paragraph.
    Plain,
    /// A fenced code block of Markdown.
    Code,
    /// An indented code block of Markdown: commands, or the output of one.
    Indented,
}

/// Reads the texts of `files`; other kinds of files are skipped.
pub(crate) fn read(root: &Path, files: &[String]) -> Result<Vec<Text>, Error> {
    let mut texts = Vec::new();
    for file in files {
        let Some(parse) = parser(file) else { continue };
        let bytes =
            std::fs::read(root.join(file)).map_err(|source| Error::Read { file: file.clone(), source })?;
        texts.push(Text { file: file.clone(), blocks: parse(&String::from_utf8_lossy(&bytes)) });
    }
    Ok(texts)
}

/// The parser for a file of this name.
pub(crate) fn parser(file: &str) -> Option<fn(&str) -> Vec<Block>> {
    let name = file.rsplit('/').next().unwrap_or(file);
    if file.starts_with("LICENSE") || name == "Cargo.lock" || file.contains("conformance/scenarios") {
        return None;
    }
    match name.rsplit_once('.').map_or("", |(_, end)| end) {
        "rs" => Some(rust),
        "md" => Some(markdown),
        "toml" | "sh" | "service" | "config" => Some(hash),
        "c" | "h" => Some(rust),
        _ if file.starts_with(".ci/")
            || file.starts_with("conformance/vm/")
            || file.starts_with(".githooks/") =>
        {
            Some(hash)
        }
        _ => None,
    }
}

/// Adjoining lines with the same sign are one comment.
fn rust(source: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut before = (0, "");
    for (line, text) in comments(source) {
        let sign = ["//!", "///", "//"].into_iter().find(|sign| text.starts_with(sign));
        let Some(sign) = sign else {
            let lines = text.trim_start_matches("/*").trim_end_matches("*/").lines();
            let lines = (line..).zip(lines.map(|line| line.trim().trim_start_matches("* ").to_owned()));
            blocks.push(Block { kind: Kind::Plain, lines: lines.collect() });
            continue;
        };
        let rest = text[sign.len()..].trim().to_owned();
        let blank = rest.is_empty();
        match blocks.last_mut() {
            Some(block) if before == (line - 1, sign) && !blank => block.lines.push((line, rest)),
            _ if blank => {}
            _ => {
                let kind = if sign == "//" { Kind::Plain } else { Kind::Title };
                // Only the first paragraph of a documentation comment is its title.
                let continued = sign != "//" && before == (line - 1, sign);
                let kind = if continued { Kind::Plain } else { kind };
                blocks.push(Block { kind, lines: vec![(line, rest)] });
            }
        }
        // A blank comment line ends a paragraph but continues the comment.
        before = (line, sign);
        if blank {
            blocks.push(Block { kind: Kind::Plain, lines: Vec::new() });
        }
    }
    blocks.retain(|block| !block.lines.is_empty());
    blocks
}

/// Comments that begin with `#`.
fn hash(source: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut before = 0;
    for (number, line) in (1..).zip(source.lines()) {
        let Some(text) = line.trim_start().strip_prefix('#') else { continue };
        if text.starts_with('!') || text.trim().is_empty() {
            continue;
        }
        match blocks.last_mut() {
            Some(block) if before + 1 == number => block.lines.push((number, text.trim().to_owned())),
            _ => blocks.push(Block { kind: Kind::Plain, lines: vec![(number, text.trim().to_owned())] }),
        }
        before = number;
    }
    blocks
}

/// Paragraphs, headings and code blocks.
pub(crate) fn markdown(source: &str) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    let mut open = false;
    let mut fence: Option<usize> = None;
    for (number, line) in (1..).zip(source.lines()) {
        if line.trim_start().starts_with("```") {
            fence = match fence {
                None => {
                    blocks.push(Block { kind: Kind::Code, lines: Vec::new() });
                    Some(number)
                }
                Some(_) => None,
            };
            open = false;
            continue;
        }
        let indented = line.starts_with("    ") && !open;
        let text = line.trim().to_owned();
        if fence.is_some() {
            if let Some(block) = blocks.last_mut() {
                block.lines.push((number, line.to_owned()));
            }
        } else if text.is_empty() {
            open = false;
        } else if indented {
            match blocks.last_mut() {
                Some(block)
                    if block.kind == Kind::Indented
                        && block.lines.last().is_some_and(|(last, _)| last + 1 == number) =>
                {
                    block.lines.push((number, text));
                }
                _ => blocks.push(Block { kind: Kind::Indented, lines: vec![(number, text)] }),
            }
        } else if let Some(heading) = text.strip_prefix('#') {
            let heading = heading.trim_start_matches('#').trim().to_owned();
            blocks.push(Block { kind: Kind::Title, lines: vec![(number, heading)] });
            open = false;
        } else {
            match blocks.last_mut() {
                Some(block) if open => block.lines.push((number, text)),
                _ => blocks.push(Block { kind: Kind::Plain, lines: vec![(number, text)] }),
            }
            open = true;
        }
    }
    blocks
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(blocks: &[Block]) -> Vec<(Kind, usize, String)> {
        let joined =
            |block: &Block| block.lines.iter().map(|(_, line)| line.as_str()).collect::<Vec<_>>().join(" ");
        blocks.iter().map(|block| (block.kind, block.lines[0].0, joined(block))).collect()
    }

    #[test]
    fn comments_are_joined_and_code_and_strings_are_left_out() {
        let source = "//! Head\n//! goes on.\n//!\n//! More.\n\n/// Doc.\nfn f() {\n    let a = \"// no\"; // why\n    // one\n    // two\n}\n";
        assert_eq!(
            shape(&rust(source)),
            [
                (Kind::Title, 1, "Head goes on.".to_owned()),
                (Kind::Plain, 4, "More.".to_owned()),
                (Kind::Title, 6, "Doc.".to_owned()),
                (Kind::Plain, 8, "why one two".to_owned()),
            ]
        );
    }

    #[test]
    fn markdown_has_headings_paragraphs_and_code() {
        let source = "# Title\n\nOne\ntwo.\n\n```sh\ncargo test\n```\n\n    cargo run\n    it\n";
        assert_eq!(
            shape(&markdown(source)),
            [
                (Kind::Title, 1, "Title".to_owned()),
                (Kind::Plain, 3, "One two.".to_owned()),
                (Kind::Code, 7, "cargo test".to_owned()),
                (Kind::Indented, 10, "cargo run it".to_owned()),
            ]
        );
    }
}
