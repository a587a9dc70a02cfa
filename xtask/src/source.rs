//! Facts of a source file: its modules, imports, paths, names, test-only lines and `unsafe` words.
//!
//! One pass over the tokens with a stack of inline modules. Code under a `cfg` that holds only in tests gives no facts but its
//! lines. Limits: names that macros define are not seen (a path to one ends at the module it names, which is right except for
//! glob re-exports), and an import inside a function counts for the whole module.

use std::collections::BTreeSet;

use crate::lexer::{Kind, Token, tokens};

/// A `mod name;`, or an inline `mod name { }`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ModDecl {
    /// Enclosing inline modules, outermost first.
    pub(crate) within: Vec<String>,
    pub(crate) name: String,
    pub(crate) inline: bool,
    /// `#[path = "..."]`
    pub(crate) path: Option<String>,
    pub(crate) test_only: bool,
}

/// One leaf of a `use` tree, or a path in an expression or type.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PathUse {
    pub(crate) within: Vec<String>,
    pub(crate) segments: Vec<String>,
    pub(crate) line: usize,
    pub(crate) import: Option<Import>,
}

/// The binding of a leaf of a `use` tree.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Import {
    /// The bound name; `None` for a glob. `_` binds nothing and is never looked up.
    pub(crate) name: Option<String>,
    /// `pub` in any form: the name is reachable through this module.
    pub(crate) public: bool,
}

/// The facts of a file.
#[derive(Default, Debug)]
pub(crate) struct SourceFacts {
    /// A `#![cfg(test)]` file.
    pub(crate) test_only: bool,
    pub(crate) mods: Vec<ModDecl>,
    pub(crate) uses: Vec<PathUse>,
    /// Items by inline module: `([], "Foo")`.
    pub(crate) items: BTreeSet<(Vec<String>, String)>,
    /// `#[macro_export]` macros, which live at the crate root.
    pub(crate) exported_macros: BTreeSet<String>,
    /// Every name outside imports.
    pub(crate) words: BTreeSet<String>,
    /// Lines that only a test build sees, `first..=last`.
    pub(crate) test_lines: Vec<(usize, usize)>,
    /// Lines with the keyword `unsafe`, tests included; a line twice if it stands there twice.
    pub(crate) unsafe_lines: Vec<usize>,
    /// Lines with `#[ignore]` without a reason.
    pub(crate) unexplained_ignores: Vec<usize>,
}

impl SourceFacts {
    pub(crate) fn of(source: &str) -> Self {
        let tokens = tokens(source);
        let mut facts = Self {
            unsafe_lines: tokens.iter().filter(|t| t.is_name("unsafe")).map(|t| t.line).collect(),
            unexplained_ignores: unexplained_ignores(&tokens),
            ..Self::default()
        };
        Reader { tokens: &tokens, at: 0, depth: 0, scopes: Vec::new(), facts: &mut facts }.read();
        facts
    }
}

/// `#[ignore]` is three tokens and a bracket; with a reason it has a `=`.
fn unexplained_ignores(tokens: &[Token<'_>]) -> Vec<usize> {
    tokens
        .windows(4)
        .filter(|w| w[0].is_punct('#') && w[1].is_punct('[') && w[2].is_name("ignore") && w[3].is_punct(']'))
        .map(|w| w[2].line)
        .collect()
}

/// The attributes before an item.
#[derive(Default)]
struct Attributes {
    test_only: bool,
    path: Option<String>,
    macro_export: bool,
    first_line: Option<usize>,
}

struct Reader<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    /// Open braces.
    depth: usize,
    /// Enclosing inline modules, with the brace depth inside each.
    scopes: Vec<(String, usize)>,
    facts: &'a mut SourceFacts,
}

impl<'a> Reader<'a> {
    fn token(&self, ahead: usize) -> Option<&'a Token<'a>> {
        self.tokens.get(self.at + ahead)
    }

    fn is_punct(&self, ahead: usize, punct: char) -> bool {
        self.token(ahead).is_some_and(|t| t.is_punct(punct))
    }

    fn is_name(&self, ahead: usize, name: &str) -> bool {
        self.token(ahead).is_some_and(|t| t.is_name(name))
    }

    fn kind(&self, ahead: usize) -> Option<Kind> {
        self.token(ahead).map(|t| t.kind)
    }

    fn within(&self) -> Vec<String> {
        self.scopes.iter().map(|(name, _)| name.clone()).collect()
    }

    /// Whether the reader is directly in a module, not in a body.
    fn at_module_level(&self) -> bool {
        self.depth == self.scopes.last().map_or(0, |&(_, depth)| depth)
    }

    fn read(&mut self) {
        let mut attributes = Attributes::default();
        let mut public = false;
        while let Some(token) = self.token(0) {
            if token.is_punct('#')
                && (self.is_punct(1, '[') || (self.is_punct(1, '!') && self.is_punct(2, '[')))
            {
                self.attribute(&mut attributes);
                continue;
            }
            if attributes.test_only {
                self.skip_test_item(&attributes);
                attributes = Attributes::default();
                continue;
            }
            if token.is_name("pub") {
                public = true;
                self.at += 1;
                if self.is_punct(0, '(') {
                    self.skip_group();
                }
                continue;
            }
            if token.is_name("mod") && self.kind(1) == Some(Kind::Name) {
                self.module(&attributes);
            } else if token.is_name("use") && !self.is_punct(1, '<') {
                self.import(public);
            } else {
                self.other(&attributes);
            }
            attributes = Attributes::default();
            public = false;
        }
    }

    /// Reads `#[...]` or `#![...]`.
    fn attribute(&mut self, attributes: &mut Attributes) {
        let line = self.tokens[self.at].line;
        let inner = self.is_punct(1, '!');
        self.at += if inner { 2 } else { 1 };
        let start = self.at + 1;
        self.skip_group();
        let body = &self.tokens[start.min(self.at)..self.at.saturating_sub(1).max(start.min(self.at))];
        let test_only = match body.first() {
            Some(first) if first.is_name("cfg") => cfg_without_test(&body[1..]) == Truth::No,
            Some(first) => (first.is_name("test") || first.is_name("bench")) && body.len() == 1,
            None => false,
        };
        if inner {
            self.facts.test_only |= test_only;
            return;
        }
        attributes.first_line.get_or_insert(line);
        attributes.test_only |= test_only;
        if let [name, equals, value] = body {
            if name.is_name("path") && equals.is_punct('=') && value.kind == Kind::Literal {
                attributes.path = Some(value.text.trim_matches('"').to_owned());
            }
        }
        attributes.macro_export |= body.first().is_some_and(|first| first.is_name("macro_export"));
    }

    /// Skips from an opening bracket to its partner. Brackets of all kinds count, so `[(])` misleads it at most until the end
    /// of the file.
    fn skip_group(&mut self) {
        let mut depth = 0usize;
        while let Some(token) = self.token(0) {
            self.at += 1;
            match token.kind {
                Kind::Punct('(' | '[' | '{') => depth += 1,
                Kind::Punct(')' | ']' | '}') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        return;
                    }
                }
                _ => {}
            }
        }
    }

    /// Skips the code of a test-only attribute: an item, statement, field or match arm.
    fn skip_test_item(&mut self, attributes: &Attributes) {
        const TO_SEMICOLON: [&str; 3] = ["use", "let", "const"];
        const ITEMS: [&str; 14] = [
            "mod",
            "fn",
            "struct",
            "enum",
            "union",
            "trait",
            "impl",
            "type",
            "static",
            "unsafe",
            "extern",
            "async",
            "macro_rules",
            "pub",
        ];
        let first = self.at;
        if self.is_name(0, "pub") {
            self.at += 1;
            if self.is_punct(0, '(') {
                self.skip_group();
            }
        }
        if self.is_name(0, "mod") && self.kind(1) == Some(Kind::Name) {
            let name = self.tokens[self.at + 1].text.to_owned();
            let (within, inline) = (self.within(), self.is_punct(2, '{'));
            let path = attributes.path.clone();
            self.facts.mods.push(ModDecl { within, name, inline, path, test_only: true });
        }
        let const_fn = self.is_name(0, "const") && (self.is_name(1, "fn") || self.is_name(1, "unsafe"));
        let to_semicolon = !const_fn && TO_SEMICOLON.iter().any(|word| self.is_name(0, word));
        let item = const_fn || ITEMS.iter().any(|word| self.is_name(0, word));
        while let Some(token) = self.token(0) {
            match token.kind {
                Kind::Punct('{') => {
                    self.skip_group();
                    if !to_semicolon {
                        break;
                    }
                }
                Kind::Punct('(' | '[') => self.skip_group(),
                Kind::Punct(')' | ']' | '}') => break,
                Kind::Punct(';') => {
                    self.at += 1;
                    break;
                }
                Kind::Punct(',') if !item && !to_semicolon => {
                    self.at += 1;
                    break;
                }
                _ => self.at += 1,
            }
        }
        let end = self.at.saturating_sub(1).max(first).min(self.tokens.len().saturating_sub(1));
        let first_line = attributes.first_line.unwrap_or(self.tokens[end].line);
        self.facts.test_lines.push((first_line, self.tokens[end].line));
    }

    fn module(&mut self, attributes: &Attributes) {
        let name = self.tokens[self.at + 1].text.to_owned();
        let inline = self.is_punct(2, '{');
        if !inline && !self.is_punct(2, ';') {
            self.at += 1;
            return;
        }
        let within = self.within();
        let path = attributes.path.clone();
        self.facts.mods.push(ModDecl { within, name: name.clone(), inline, path, test_only: false });
        self.at += 3;
        if inline {
            self.depth += 1;
            self.scopes.push((name, self.depth));
        }
    }

    fn import(&mut self, public: bool) {
        let line = self.tokens[self.at].line;
        self.at += 1;
        // A leading `::` always names another crate; an empty first segment marks it.
        let prefix = if self.kind(0) == Some(Kind::PathSep) { vec![String::new()] } else { Vec::new() };
        let within = self.within();
        self.use_tree(prefix, &within, line, public);
        while let Some(token) = self.token(0) {
            self.at += 1;
            if token.is_punct(';') {
                break;
            }
        }
    }

    /// One branch of a `use` tree; ends at `,`, `}` or `;`.
    fn use_tree(&mut self, mut path: Vec<String>, within: &[String], line: usize, public: bool) {
        let leaf = |facts: &mut SourceFacts, segments: Vec<String>, name: Option<String>| {
            let import = Some(Import { name, public });
            facts.uses.push(PathUse { within: within.to_vec(), segments, line, import });
        };
        loop {
            match self.token(0).map(|t| (t.kind, t.text)) {
                Some((Kind::PathSep, _)) => self.at += 1,
                Some((Kind::Punct('$'), _)) => self.at += 1,
                Some((Kind::Punct('*'), _)) => {
                    self.at += 1;
                    leaf(self.facts, path, None);
                    return;
                }
                Some((Kind::Punct('{'), _)) => {
                    self.at += 1;
                    loop {
                        match self.token(0).map(|t| t.kind) {
                            Some(Kind::Punct('}')) => {
                                self.at += 1;
                                return;
                            }
                            Some(Kind::Punct(',')) => self.at += 1,
                            Some(Kind::Punct(';')) | None => return,
                            Some(_) => {
                                let before = self.at;
                                self.use_tree(path.clone(), within, line, public);
                                // Unknown tokens in the tree (macro fragments) are skipped.
                                self.at = self.at.max(before + 1);
                            }
                        }
                    }
                }
                Some((Kind::Name, "as")) => {
                    let name = self.token(1).map(|t| t.text.to_owned());
                    self.at += 2;
                    leaf(self.facts, strip_self(path), name);
                    return;
                }
                Some((Kind::Name, segment)) => {
                    path.push(segment.to_owned());
                    self.at += 1;
                }
                _ => {
                    let path = strip_self(path);
                    if let Some(name) = path.last().cloned() {
                        leaf(self.facts, path, Some(name));
                    }
                    return;
                }
            }
        }
    }

    /// Everything else: braces, item names, paths.
    fn other(&mut self, attributes: &Attributes) {
        const NAMED: [&str; 9] =
            ["fn", "struct", "enum", "union", "trait", "type", "const", "static", "macro_rules"];
        let token = self.tokens[self.at];
        match token.kind {
            Kind::Punct('{') => self.depth += 1,
            Kind::Punct('}') => {
                self.depth = self.depth.saturating_sub(1);
                if self.scopes.last().is_some_and(|&(_, inside)| inside > self.depth) {
                    self.scopes.pop();
                }
            }
            Kind::Name => {
                if NAMED.contains(&token.text) && self.at_module_level() {
                    let skip = if self.is_punct(1, '!') || self.is_name(1, "mut") { 2 } else { 1 };
                    // In `const unsafe fn f`, `fn` names the item.
                    let names = |t: &&Token<'_>| {
                        t.kind == Kind::Name && !["fn", "unsafe", "extern"].contains(&t.text)
                    };
                    if let Some(name) = self.token(skip).filter(names) {
                        if token.text == "macro_rules" && attributes.macro_export {
                            self.facts.exported_macros.insert(name.text.to_owned());
                        }
                        self.facts.items.insert((self.within(), name.text.to_owned()));
                    }
                }
                self.path();
                return;
            }
            _ => {}
        }
        self.at += 1;
    }

    /// A path of two or more names (`a::b`); ends before `::<` and anything else.
    fn path(&mut self) {
        let first = self.tokens[self.at];
        let before = self.at.checked_sub(1).map(|at| self.tokens[at].kind);
        let mut segments = vec![first.text.to_owned()];
        self.facts.words.insert(first.text.to_owned());
        self.at += 1;
        while self.kind(0) == Some(Kind::PathSep) && self.kind(1) == Some(Kind::Name) {
            let segment = self.tokens[self.at + 1].text.to_owned();
            self.facts.words.insert(segment.clone());
            segments.push(segment);
            self.at += 2;
        }
        let starts_here = !matches!(before, Some(Kind::PathSep | Kind::Punct('.')));
        if segments.len() > 1 && starts_here {
            let within = self.within();
            self.facts.uses.push(PathUse { within, segments, line: first.line, import: None });
        }
    }
}

/// `use a::b::{self}` names `a::b`.
fn strip_self(mut path: Vec<String>) -> Vec<String> {
    if path.len() > 1 && path.last().is_some_and(|last| last == "self") {
        path.pop();
    }
    path
}

/// The value of a `cfg` predicate if `test` is off and everything else unknown.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Truth {
    Yes,
    No,
    Unknown,
}

/// Evaluates the tokens behind `cfg`: a parenthesised predicate.
fn cfg_without_test(tokens: &[Token<'_>]) -> Truth {
    match tokens {
        [open, inner @ .., close] if open.is_punct('(') && close.is_punct(')') => predicate(inner),
        _ => Truth::Unknown,
    }
}

fn predicate(tokens: &[Token<'_>]) -> Truth {
    let Some(head) = tokens.first() else { return Truth::Unknown };
    if tokens.len() == 1 && head.is_name("test") {
        return Truth::No;
    }
    let parts: Vec<Truth> = match tokens {
        [_, open, inner @ .., close] if open.is_punct('(') && close.is_punct(')') => {
            arguments(inner).into_iter().map(predicate).collect()
        }
        _ => return Truth::Unknown,
    };
    match head.text {
        "all" if parts.contains(&Truth::No) => Truth::No,
        "all" if parts.iter().all(|&p| p == Truth::Yes) => Truth::Yes,
        "any" if parts.contains(&Truth::Yes) => Truth::Yes,
        "any" if parts.iter().all(|&p| p == Truth::No) => Truth::No,
        "not" if parts == [Truth::No] => Truth::Yes,
        "not" if parts == [Truth::Yes] => Truth::No,
        _ => Truth::Unknown,
    }
}

/// Splits at commas outside of parentheses.
fn arguments<'t, 's>(tokens: &'t [Token<'s>]) -> Vec<&'t [Token<'s>]> {
    let mut depth = 0usize;
    tokens
        .split(|token| {
            match token.kind {
                Kind::Punct('(') => depth += 1,
                Kind::Punct(')') => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && token.is_punct(',')
        })
        .filter(|part| !part.is_empty())
        .collect()
}

#[cfg(test)]
mod tests;
