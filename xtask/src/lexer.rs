//! Splits Rust source into the tokens that the checks need: names, `::`, single punctuation, lifetimes, literals; and its
//! comments.
//!
//! Comments and the contents of literals are no tokens, so `"unsafe"` in a string or `use crate::x` in a comment is not taken
//! for code. Malformed source gives odd tokens but no error: rustc checks the syntax.

/// The kind of a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    /// A name or keyword; without the `r#` of a raw name.
    Name,
    /// `::`
    PathSep,
    /// Any other single punctuation character.
    Punct(char),
    /// `'a`
    Lifetime,
    /// A number, string or character, with its text.
    Literal,
}

/// A token with the line on which it begins, from 1, and its byte offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Token<'a> {
    pub(crate) kind: Kind,
    pub(crate) text: &'a str,
    pub(crate) line: usize,
    pub(crate) at: usize,
}

impl Token<'_> {
    pub(crate) fn is_name(&self, name: &str) -> bool {
        self.kind == Kind::Name && self.text == name
    }

    pub(crate) fn is_punct(&self, punct: char) -> bool {
        self.kind == Kind::Punct(punct)
    }

    /// The byte offset of its end.
    pub(crate) fn end(&self) -> usize {
        self.at + self.text.len()
    }
}

/// The comments of `source` in order: the line on which each begins, and its text.
pub(crate) fn comments(source: &str) -> Vec<(usize, &str)> {
    let mut cursor = Cursor { source, at: 0, line: 1, comments: Vec::new() };
    while cursor.next_token().is_some() {}
    cursor.comments
}

/// The tokens of `source` in order.
pub(crate) fn tokens(source: &str) -> Vec<Token<'_>> {
    let mut cursor = Cursor { source, at: 0, line: 1, comments: Vec::new() };
    let mut found = Vec::new();
    if source.starts_with("#!") && !source.starts_with("#![") {
        cursor.skip_line();
    }
    while let Some(token) = cursor.next_token() {
        found.push(token);
    }
    found
}

struct Cursor<'a> {
    source: &'a str,
    at: usize,
    line: usize,
    /// The comments that were skipped.
    comments: Vec<(usize, &'a str)>,
}

impl<'a> Cursor<'a> {
    fn rest(&self) -> &'a str {
        &self.source[self.at..]
    }

    /// The character `n` places ahead.
    fn peek(&self, n: usize) -> Option<char> {
        self.rest().chars().nth(n)
    }

    fn bump(&mut self) {
        if let Some(c) = self.peek(0) {
            self.line += usize::from(c == '\n');
            self.at += c.len_utf8();
        }
    }

    fn bump_while(&mut self, keep: impl Fn(char) -> bool) {
        while self.peek(0).is_some_and(&keep) {
            self.bump();
        }
    }

    fn skip_line(&mut self) {
        self.bump_while(|c| c != '\n');
    }

    /// Block comments nest in Rust.
    fn skip_block_comment(&mut self) {
        let mut depth = 0usize;
        while !self.rest().is_empty() {
            if self.rest().starts_with("/*") {
                depth += 1;
                self.bump();
                self.bump();
            } else if self.rest().starts_with("*/") {
                depth -= 1;
                self.bump();
                self.bump();
                if depth == 0 {
                    return;
                }
            } else {
                self.bump();
            }
        }
    }

    fn next_token(&mut self) -> Option<Token<'a>> {
        loop {
            let c = self.peek(0)?;
            if c.is_whitespace() {
                self.bump();
            } else if self.rest().starts_with("//") || self.rest().starts_with("/*") {
                let (start, line) = (self.at, self.line);
                if self.rest().starts_with("//") {
                    self.skip_line();
                } else {
                    self.skip_block_comment();
                }
                self.comments.push((line, &self.source[start..self.at]));
            } else {
                break;
            }
        }
        let (start, line) = (self.at, self.line);
        let c = self.peek(0)?;
        let kind = if self.literal_with_prefix() {
            Kind::Literal
        } else if is_name_start(c) {
            if self.rest().starts_with("r#") {
                self.bump();
                self.bump();
                let name = self.at;
                self.bump_while(is_name_part);
                return Some(Token { kind: Kind::Name, text: &self.source[name..self.at], line, at: name });
            }
            self.bump_while(is_name_part);
            Kind::Name
        } else if c.is_ascii_digit() {
            self.number();
            Kind::Literal
        } else if c == '\'' {
            self.quote()
        } else if self.rest().starts_with("::") {
            self.bump();
            self.bump();
            Kind::PathSep
        } else {
            self.bump();
            Kind::Punct(c)
        };
        Some(Token { kind, text: &self.source[start..self.at], line, at: start })
    }

    /// Strings of every prefix (`"`, `b"`, `c"`, `r#"`, `br"`, `cr"`) and `b'x'`. Returns false and consumes nothing for
    /// anything else.
    fn literal_with_prefix(&mut self) -> bool {
        let rest = self.rest();
        let prefix = rest.len() - rest.trim_start_matches(['b', 'c', 'r']).len();
        if prefix > 2 {
            return false;
        }
        let raw = rest[..prefix].ends_with('r');
        let hashes = if raw { rest[prefix..].chars().take_while(|&c| c == '#').count() } else { 0 };
        let quote = rest[prefix + hashes..].chars().next();
        if quote == Some('\'') && &rest[..prefix] == "b" {
            self.bump();
            self.quoted('\'');
            return true;
        }
        if quote != Some('"') {
            return false;
        }
        for _ in 0..prefix + hashes {
            self.bump();
        }
        if !raw {
            self.quoted('"');
            return true;
        }
        self.bump();
        let close = format!("\"{}", "#".repeat(hashes));
        while !self.rest().is_empty() && !self.rest().starts_with(&close) {
            self.bump();
        }
        for _ in 0..close.len() {
            self.bump();
        }
        true
    }

    /// From an opening quote to the closing one, with escapes.
    fn quoted(&mut self, quote: char) {
        self.bump();
        while let Some(c) = self.peek(0) {
            self.bump();
            if c == '\\' {
                self.bump();
            } else if c == quote {
                return;
            }
        }
    }

    /// After `'`: a character if a closing quote follows one character or an escape, otherwise a lifetime.
    fn quote(&mut self) -> Kind {
        if self.peek(1) == Some('\\') || self.peek(2) == Some('\'') {
            self.quoted('\'');
            return Kind::Literal;
        }
        self.bump();
        self.bump_while(is_name_part);
        Kind::Lifetime
    }

    /// In `1..2` the range, and in `1.max(2)` the method, do not belong to the number.
    fn number(&mut self) {
        self.bump_while(is_name_part);
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            self.bump();
            self.bump_while(is_name_part);
        }
    }
}

fn is_name_start(c: char) -> bool {
    c == '_' || c.is_alphabetic()
}

fn is_name_part(c: char) -> bool {
    c == '_' || c.is_alphanumeric()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<&str> {
        tokens(source).iter().map(|t| t.text).collect()
    }

    #[test]
    fn comments_vanish_and_block_comments_nest() {
        assert_eq!(texts("a // use crate::b\n/* x /* y */ unsafe */ c"), ["a", "c"]);
    }

    #[test]
    fn comments_are_kept_with_their_lines() {
        assert_eq!(comments("a // b\n/* c\n*/ \"// d\" // e"), [(1, "// b"), (2, "/* c\n*/"), (3, "// e")]);
    }

    #[test]
    fn strings_of_every_prefix_are_one_literal() {
        for source in
            [r#""a \" unsafe""#, r##"r#"un"safe"#"##, r#"b"unsafe""#, r#"c"x""#, r#"br"\""#, "b'\\''"]
        {
            let found = tokens(source);
            assert_eq!(found.len(), 1, "{source}");
            assert_eq!(found[0].kind, Kind::Literal, "{source}");
        }
    }

    #[test]
    fn lifetimes_are_not_characters() {
        let kinds: Vec<Kind> = tokens("'a 'x' '(' '\\n' 'é' 'static").iter().map(|t| t.kind).collect();
        use Kind::{Lifetime, Literal};
        assert_eq!(kinds, [Lifetime, Literal, Literal, Literal, Literal, Lifetime]);
    }

    #[test]
    fn raw_names_ranges_and_paths_split_right() {
        assert_eq!(
            texts("r#type 1..2 1.5e3 a::b::<C> 0xFFu64"),
            ["type", "1", ".", ".", "2", "1.5e3", "a", "::", "b", "::", "<", "C", ">", "0xFFu64"]
        );
    }

    #[test]
    fn names_that_begin_like_prefixes_stay_names() {
        assert_eq!(texts("bar crate rb br b"), ["bar", "crate", "rb", "br", "b"]);
    }

    #[test]
    fn lines_count_through_multiline_literals() {
        let found = tokens("a\n\"x\ny\"\nb");
        assert_eq!(found.iter().map(|t| t.line).collect::<Vec<_>>(), [1, 2, 4]);
    }

    #[test]
    fn unfinished_source_ends_quietly() {
        for source in ["\"abc", "r#\"abc", "/* /*", "'", "b'", "r#", "'\\"] {
            let _ = tokens(source);
        }
    }
}
