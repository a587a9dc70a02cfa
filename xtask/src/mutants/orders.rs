//! Memory-order mutants of a source file: orderings weakened by one step, fences removed, statements exchanged.
//!
//! cargo-mutants makes none of these. They are found among the tokens, so comments and strings do not count, and test code is
//! left alone. An ordering outside of a call, or in an unknown call, is an error: otherwise it would never be weakened.

use std::ops::Range;

use super::name::{MutantName, number};
use super::policy::{Exchange, Orders};
use crate::lexer::{Kind, Token, tokens};
use crate::source::SourceFacts;

/// A change of a file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct OrderMutant {
    pub(crate) name: MutantName,
    /// Changed lines of the original, from 1.
    pub(crate) lines: Vec<usize>,
    /// Byte ranges of the original and their replacements, in order, without overlap.
    edits: Vec<(Range<usize>, String)>,
}

impl OrderMutant {
    /// The changed text of `source`.
    pub(crate) fn apply(&self, source: &str) -> String {
        let mut changed = String::with_capacity(source.len());
        let mut from = 0;
        for (range, text) in &self.edits {
            changed.push_str(&source[from..range.start]);
            changed.push_str(text);
            from = range.end;
        }
        changed.push_str(&source[from..]);
        changed
    }
}

/// All memory-order mutants of `file` with the text `source`, in source order, then the exchanges.
///
/// # Errors
/// An unknown use of an ordering, or an exchange that does not apply.
pub(crate) fn mutants(file: &str, source: &str, orders: &Orders) -> Result<Vec<OrderMutant>, String> {
    let tokens = tokens(source);
    let functions = functions(&tokens);
    let test_lines = SourceFacts::of(source).test_lines;
    let in_test = |line: usize| test_lines.iter().any(|&(first, last)| (first..=last).contains(&line));
    let code = Code { file, source, tokens: &tokens, functions: &functions };
    let mut found = Vec::new();
    for (index, token) in tokens.iter().enumerate() {
        if token.kind != Kind::Name || in_test(token.line) {
            continue;
        }
        if let Some(ordering) = code.ordering(index) {
            found.extend(code.weakened(index, ordering)?);
        } else if orders.fences.iter().any(|fence| token.is_name(fence)) {
            found.extend(code.removed(index));
        }
    }
    for exchange in orders.exchange.iter().filter(|exchange| exchange.file == file) {
        found.push(code.exchanged(exchange)?);
    }
    number(found.iter_mut().map(|mutant| &mut mutant.name));
    Ok(found)
}

/// A name behind `Ordering::`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ordering {
    Relaxed,
    Acquire,
    Release,
    AcqRel,
    SeqCst,
}

impl Ordering {
    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "Relaxed" => Self::Relaxed,
            "Acquire" => Self::Acquire,
            "Release" => Self::Release,
            "AcqRel" => Self::AcqRel,
            "SeqCst" => Self::SeqCst,
            _ => return None,
        })
    }

    /// The next weaker orderings of the operation.
    fn weaker(self, operation: Operation) -> &'static [Self] {
        use Operation::{Fence, Load, ReadModifyWrite, Store};
        match (operation, self) {
            (_, Self::Relaxed) => &[],
            // There is no Relaxed fence; its removal is another mutant.
            (Fence, Self::Acquire | Self::Release) => &[],
            (Load, Self::SeqCst) => &[Self::Acquire],
            (Store, Self::SeqCst) => &[Self::Release],
            (Fence | ReadModifyWrite, Self::SeqCst) => &[Self::AcqRel],
            (_, Self::AcqRel) => &[Self::Acquire, Self::Release],
            (_, Self::Acquire | Self::Release) => &[Self::Relaxed],
        }
    }
}

/// The operation that an ordering is an argument of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Operation {
    Load,
    Store,
    ReadModifyWrite,
    Fence,
}

impl Operation {
    /// The operation that orders the argument at `position` of a call of `name`, and a text that distinguishes it from the
    /// call's other ordering.
    fn of(name: &str, position: usize) -> Option<(Self, &'static str)> {
        Some(match (name, position) {
            ("load", 0) => (Self::Load, ""),
            ("store", 1) => (Self::Store, ""),
            ("fence" | "compiler_fence", 0) => (Self::Fence, ""),
            ("compare_exchange" | "compare_exchange_weak", 2) => (Self::ReadModifyWrite, " success"),
            ("compare_exchange" | "compare_exchange_weak", 3) => (Self::Load, " failure"),
            ("fetch_update", 0) => (Self::ReadModifyWrite, " success"),
            ("fetch_update", 1) => (Self::Load, " failure"),
            (name, 1) if name == "swap" || name.starts_with("fetch_") => (Self::ReadModifyWrite, ""),
            _ => return None,
        })
    }
}

/// A function with a body: its name with its type's, and its tokens from `fn` to the closing brace.
#[derive(Debug)]
struct Function {
    name: String,
    tokens: Range<usize>,
}

/// A file with its tokens and functions.
struct Code<'a> {
    file: &'a str,
    source: &'a str,
    tokens: &'a [Token<'a>],
    functions: &'a [Function],
}

impl Code<'_> {
    /// The ordering at the token, if `Ordering::` precedes it.
    fn ordering(&self, index: usize) -> Option<Ordering> {
        let prefix = index.checked_sub(2).map(|first| &self.tokens[first..index])?;
        let is_path = prefix[0].is_name("Ordering") && prefix[1].kind == Kind::PathSep;
        Ordering::of(self.tokens[index].text).filter(|_| is_path)
    }

    /// The name of the innermost function around a token.
    fn function(&self, index: usize) -> &str {
        let around = self.functions.iter().filter(|function| function.tokens.contains(&index));
        around.min_by_key(|function| function.tokens.len()).map_or("", |function| &function.name)
    }

    fn mutant(&self, index: usize, what: &str, edits: Vec<(Range<usize>, String)>) -> OrderMutant {
        let line = |offset: usize| self.source[..offset].matches('\n').count() + 1;
        let lines = edits.iter().flat_map(|(range, _)| line(range.start)..=line(range.end)).collect();
        let mutation = format!("{}: {what}", self.function(index));
        let name = MutantName::new(self.file, &mutation, self.source, self.tokens[index].line);
        OrderMutant { name, lines, edits }
    }

    /// The mutants of the ordering at `index`.
    fn weakened(&self, index: usize, ordering: Ordering) -> Result<Vec<OrderMutant>, String> {
        let unknown = || {
            let place = format!("{}:{}", self.file, self.tokens[index].line);
            format!("{place}: Ordering::{ordering:?} is no argument of an operation that is known here")
        };
        let (open, position) = self.argument(index).ok_or_else(unknown)?;
        let callee = open.checked_sub(1).ok_or_else(unknown)?;
        let name = self.tokens[callee].text;
        let (operation, which) = Operation::of(name, position).ok_or_else(unknown)?;
        let called = match self.receiver(callee) {
            Some(receiver) => format!("{receiver}.{name}"),
            None => name.to_owned(),
        };
        let token = self.tokens[index];
        let weaker = ordering.weaker(operation).iter();
        Ok(weaker
            .map(|weaker| {
                let what = format!("{called}{which}: {ordering:?} to {weaker:?}");
                self.mutant(index, &what, vec![(token.at..token.end(), format!("{weaker:?}"))])
            })
            .collect())
    }

    /// The mutant without the call of the fence at `index`; `None` if it is no call.
    fn removed(&self, index: usize) -> Option<OrderMutant> {
        let open = index + 1;
        if !self.tokens.get(open)?.is_punct('(') || (index > 0 && self.tokens[index - 1].is_name("fn")) {
            return None;
        }
        let close = self.closing(open)?;
        let first = self.expression_start(index);
        let range = self.tokens[first].at..self.tokens[close].end();
        let text: String = self.tokens[first..=close].iter().map(|token| token.text).collect();
        Some(self.mutant(index, &format!("without {text}"), vec![(range, "()".to_owned())]))
    }

    /// The mutant with the two pieces of `exchange` exchanged.
    fn exchanged(&self, exchange: &Exchange) -> Result<OrderMutant, String> {
        let place = format!("exchange in {}, {}", exchange.file, exchange.function);
        let mut bodies = self.functions.iter().filter(|function| function.name == exchange.function);
        let (Some(function), None) = (bodies.next(), bodies.next()) else {
            return Err(format!("{place}: there is not exactly one function of that name"));
        };
        let find = |piece: &str| {
            let wanted = tokens(piece);
            let mut starts = function.tokens.clone().filter(|&start| {
                let here = self.tokens.get(start..start + wanted.len());
                here.is_some_and(|here| here.iter().map(|t| t.text).eq(wanted.iter().map(|t| t.text)))
            });
            match (starts.next(), starts.next()) {
                (Some(start), None) if !wanted.is_empty() => Ok(start..start + wanted.len()),
                _ => Err(format!("{place}: `{piece}` does not occur exactly once")),
            }
        };
        let (first, second) = (find(&exchange.first)?, find(&exchange.second)?);
        if first.end > second.start {
            return Err(format!("{place}: the second piece does not follow the first"));
        }
        let bytes = |piece: &Range<usize>| self.tokens[piece.start].at..self.tokens[piece.end - 1].end();
        let (one, two) = (bytes(&first), bytes(&second));
        let texts = (self.source[one.clone()].to_owned(), self.source[two.clone()].to_owned());
        let what = format!("exchanged `{}` and `{}`", exchange.first, exchange.second);
        Ok(self.mutant(first.start, &what, vec![(one, texts.1), (two, texts.0)]))
    }

    /// The opening parenthesis of the call with this argument, and the argument's position.
    fn argument(&self, index: usize) -> Option<(usize, usize)> {
        let (mut depth, mut commas) = (0usize, 0);
        for at in (0..index).rev() {
            match self.tokens[at].kind {
                Kind::Punct(')' | ']' | '}') => depth += 1,
                Kind::Punct('(') if depth == 0 => return Some((at, commas)),
                Kind::Punct('[' | '{') if depth == 0 => return None,
                Kind::Punct('(' | '[' | '{') => depth -= 1,
                Kind::Punct(',') if depth == 0 => commas += 1,
                _ => {}
            }
        }
        None
    }

    /// The parenthesis that closes the one at `open`.
    fn closing(&self, open: usize) -> Option<usize> {
        let mut depth = 0usize;
        for (at, token) in self.tokens.iter().enumerate().skip(open) {
            match token.kind {
                Kind::Punct('(') => depth += 1,
                Kind::Punct(')') if depth == 1 => return Some(at),
                Kind::Punct(')') => depth -= 1,
                _ => {}
            }
        }
        None
    }

    /// The bracket that opens the group which ends at `close`.
    fn opening(&self, close: usize) -> usize {
        let mut depth = 0usize;
        for at in (0..=close).rev() {
            match self.tokens[at].kind {
                Kind::Punct(')' | ']' | '}') => depth += 1,
                Kind::Punct('(' | '[' | '{') if depth == 1 => return at,
                Kind::Punct('(' | '[' | '{') => depth -= 1,
                _ => {}
            }
        }
        0
    }

    /// The receiver of the method at `callee`, by its last name: `state` for `self.state.load`, `cells` for
    /// `self.cells[i].load`, `get()` for `chunks.get(i)?.load`.
    fn receiver(&self, callee: usize) -> Option<String> {
        let dot = callee.checked_sub(1).filter(|&dot| self.tokens[dot].is_punct('.'))?;
        let mut at = dot.checked_sub(1)?;
        let mut called = "";
        loop {
            match self.tokens[at].kind {
                Kind::Name => return Some(format!("{}{called}", self.tokens[at].text)),
                Kind::Punct('?') => at = at.checked_sub(1)?,
                Kind::Punct(']') => at = self.opening(at).checked_sub(1)?,
                Kind::Punct(')') => {
                    called = "()";
                    at = self.opening(at).checked_sub(1)?;
                }
                _ => return None,
            }
        }
    }

    /// The beginning of the path or method chain whose last name is at `index`.
    fn expression_start(&self, index: usize) -> usize {
        let mut start = index;
        while start >= 2 {
            let link = self.tokens[start - 1];
            if !(link.is_punct('.') || link.kind == Kind::PathSep) {
                break;
            }
            start -= 2;
            while start > 0 && matches!(self.tokens[start].kind, Kind::Punct(')' | ']')) {
                start = self.opening(start).saturating_sub(1);
            }
        }
        start
    }
}

/// The functions with bodies, ordered by their ends.
fn functions(tokens: &[Token<'_>]) -> Vec<Function> {
    /// The owner of an open brace.
    enum Body {
        Type(String),
        Function { name: String, first: usize },
        Other,
    }
    let mut found = Vec::new();
    let mut open: Vec<Body> = Vec::new();
    // The owner of the next brace outside of parentheses.
    let mut next: Option<Body> = None;
    let mut parentheses = 0usize;
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let name_behind = || tokens.get(at + 1).filter(|name| name.kind == Kind::Name);
        match token.kind {
            Kind::Name if token.text == "fn" => {
                if let Some(name) = name_behind() {
                    let owner = open.iter().rev().find_map(|body| match body {
                        Body::Type(owner) => Some(owner),
                        _ => None,
                    });
                    let name = owner.map_or(name.text.to_owned(), |owner| format!("{owner}::{}", name.text));
                    next = Some(Body::Function { name, first: at });
                }
            }
            Kind::Name if token.text == "trait" => {
                next = name_behind().map(|name| Body::Type(name.text.to_owned()));
            }
            Kind::Name if token.text == "impl" && begins_item(tokens, at) => {
                next = Some(Body::Type(implementor(&tokens[at + 1..])));
            }
            Kind::Punct('(' | '[') => parentheses += 1,
            Kind::Punct(')' | ']') => parentheses = parentheses.saturating_sub(1),
            Kind::Punct(';') if parentheses == 0 => next = None,
            Kind::Punct('{') => {
                open.push(if parentheses == 0 { next.take().unwrap_or(Body::Other) } else { Body::Other });
            }
            Kind::Punct('}') => {
                if let Some(Body::Function { name, first }) = open.pop() {
                    found.push(Function { name, tokens: first..at + 1 });
                }
            }
            _ => {}
        }
        at += 1;
    }
    found
}

/// Whether `impl` at `index` begins an item, not a type.
fn begins_item(tokens: &[Token<'_>], index: usize) -> bool {
    index == 0
        || matches!(tokens[index - 1].kind, Kind::Punct('}' | '{' | ';' | ']'))
        || tokens[index - 1].is_name("unsafe")
}

/// The name of the type that an `impl` is for; `header` begins behind the word.
fn implementor(header: &[Token<'_>]) -> String {
    let mut depth = 0usize;
    let (mut name, mut complete) = (String::new(), false);
    for (index, token) in header.iter().enumerate() {
        match token.kind {
            Kind::Punct('<') => {
                complete |= depth == 0 && !name.is_empty();
                depth += 1;
            }
            // Not the end of `->`.
            Kind::Punct('>') if !(index > 0 && header[index - 1].is_punct('-')) => {
                depth = depth.saturating_sub(1);
            }
            Kind::Punct('{' | ';') => break,
            Kind::Name if depth == 0 && token.text == "where" => break,
            Kind::Name if depth == 0 && token.text == "for" => {
                name.clear();
                complete = false;
            }
            Kind::Name if depth == 0 && !complete => token.text.clone_into(&mut name),
            _ => {}
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders(exchange: Vec<Exchange>) -> Orders {
        Orders {
            folders: Vec::new(),
            fences: vec!["fence".to_owned(), "heavy".to_owned()],
            loom_tests: Vec::new(),
            miri_tests: Vec::new(),
            exchange,
        }
    }

    fn names(source: &str) -> Vec<String> {
        let found = mutants("a.rs", source, &orders(Vec::new())).expect("understood");
        found.into_iter().map(|mutant| mutant.name.mutation).collect()
    }

    #[test]
    fn each_ordering_is_weakened_by_one_step() {
        let source = "impl<T: Into<U>> Trait<T> for some::Gate<T> {
            fn leave(&self) {
                self.word.load(Ordering::Relaxed);
                self.words[f(1, 2)].load(Ordering::SeqCst);
                self.chunks.get(1)?.store(g(), Ordering::Release);
                self.word.compare_exchange(a, b | c, Ordering::AcqRel, Ordering::Acquire);
                WORD.fetch_add(1, Ordering::SeqCst);
                fence(Ordering::AcqRel);
            }
        }";
        assert_eq!(
            names(source),
            [
                "Gate::leave: words.load: SeqCst to Acquire",
                "Gate::leave: get().store: Release to Relaxed",
                "Gate::leave: word.compare_exchange success: AcqRel to Acquire",
                "Gate::leave: word.compare_exchange success: AcqRel to Release",
                "Gate::leave: word.compare_exchange failure: Acquire to Relaxed",
                "Gate::leave: WORD.fetch_add: SeqCst to AcqRel",
                "Gate::leave: without fence(Ordering::AcqRel)",
                "Gate::leave: fence: AcqRel to Acquire",
                "Gate::leave: fence: AcqRel to Release",
            ]
        );
    }

    #[test]
    fn calls_of_fences_are_removed_and_their_definitions_are_not() {
        let source = "impl Engine {
            fn heavy(&self, books: &Books) { match self { A => fence(Ordering::SeqCst), B => {} } }
            fn close(&self) { self.door(1)[2].close(|| self.heavy(&books), 1); self.barrier.heavy(); }
        }";
        let found = mutants("a.rs", source, &orders(Vec::new())).expect("understood");
        let changed: Vec<String> =
            found.iter().filter(|m| m.name.mutation.contains("without")).map(|m| m.apply(source)).collect();
        assert_eq!(changed.len(), 3);
        assert!(changed[0].contains("A => (), B"), "{}", changed[0]);
        assert!(changed[1].contains("close(|| (), 1)"), "{}", changed[1]);
        assert!(changed[2].contains("1); (); }"), "{}", changed[2]);
    }

    #[test]
    fn code_of_tests_is_left_alone() {
        let source = "#[cfg(test)]\nmod tests {\n fn t() { a.load(Ordering::Acquire); }\n}\nfn f() {}\n";
        assert!(names(source).is_empty());
    }

    #[test]
    fn an_ordering_outside_a_known_operation_is_an_error() {
        for source in
            ["fn f() { let order = Ordering::Acquire; }", "fn f() { a.cmp_and_swap(Ordering::Acquire); }"]
        {
            let error = mutants("a.rs", source, &orders(Vec::new())).expect_err("unknown");
            assert!(error.starts_with("a.rs:1: Ordering::Acquire"), "{error}");
        }
    }

    #[test]
    fn two_pieces_change_places() {
        let source = "fn f() {\n    a.store( 1 );\n    fence();\n    b.load();\n}\n";
        let exchange = |first: &str, second: &str| Exchange {
            file: "a.rs".to_owned(),
            function: "f".to_owned(),
            first: first.to_owned(),
            second: second.to_owned(),
        };
        let found = mutants("a.rs", source, &orders(vec![exchange("a.store(1);", "b.load();")]));
        let found = found.expect("both occur once");
        let last = found.last().expect("one");
        assert_eq!(last.apply(source), "fn f() {\n    b.load();\n    fence();\n    a.store( 1 );\n}\n");
        assert_eq!(last.lines, [2, 4]);
        for (first, second) in [("c();", "b.load();"), ("b.load();", "a.store(1);"), ("(", ")")] {
            assert!(mutants("a.rs", source, &orders(vec![exchange(first, second)])).is_err());
        }
    }

    #[test]
    fn functions_are_named_with_their_type() {
        let source = "fn free(f: impl Fn() -> [u8; 2]) -> impl Iterator<Item = u8> where T: X { if a { b } }
            impl<T, O: Owner<T>> Published<T, O> where T: Y { fn new() {} }
            unsafe impl<F> Send for a::b::Seat<F> where F: Fn() -> u8 {}
            trait Home { fn give(&self); fn take(&self) {} }
            mod inner { fn deep() { fn nested() {} } }";
        let found = functions(&tokens(source));
        let names: Vec<&str> = found.iter().map(|function| function.name.as_str()).collect();
        assert_eq!(names, ["free", "Published::new", "Home::take", "nested", "deep"]);
    }
}
