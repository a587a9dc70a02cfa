//! One operation of a scenario: its words, and the process that performs it.

use std::rc::Rc;

use prereg_scenario::names::Malformed;
use prereg_scenario::script;
use prereg_scenario::transcript::Answer;

use super::machine::OpenFile;
use super::process::Process;

/// The end of an operation.
pub(super) enum Outcome {
    Answered(Answer),
    /// A signal killed the process; the line has no answer.
    Killed(u32),
}

/// One operation and the process that performs it.
pub(super) struct Operation<'a> {
    pub(super) process: &'a mut Process,
    pub(super) words: &'a [String],
    /// The name behind `->`.
    pub(super) target: Option<&'a str>,
    /// The first reason why the line cannot be parsed.
    pub(super) malformed: Option<String>,
}

impl<'a> Operation<'a> {
    /// The first word.
    pub(super) fn name(&self) -> &'a str {
        self.word(0)
    }

    /// Whether there are `count` words; otherwise the line is malformed.
    pub(super) fn needs(&mut self, count: usize) -> bool {
        if self.words.len() < count {
            self.malformed.get_or_insert_with(|| format!("needs {} words more", count - self.words.len()));
        }
        self.words.len() >= count
    }

    /// The word at `index`; empty if there is none.
    pub(super) fn word(&self, index: usize) -> &'a str {
        self.words.get(index).map_or("", String::as_str)
    }

    /// The value, or `None` after noting that the line is malformed.
    fn parsed<T>(&mut self, result: Result<T, Malformed>) -> Option<T> {
        result.map_err(|Malformed(why)| self.malformed.get_or_insert(why)).ok()
    }

    fn sum(&mut self, text: &str) -> u64 {
        let sum = self.process.names.sum(text);
        self.parsed(sum).unwrap_or(0)
    }

    /// The value of the word at `index`; 0 if it is malformed.
    pub(super) fn number(&mut self, index: usize) -> u64 {
        self.sum(self.word(index))
    }

    /// The text behind `key=`.
    pub(super) fn text(&self, key: &str) -> Option<&'a str> {
        script::option(self.words, key)
    }

    /// The value behind `key=`.
    pub(super) fn option(&mut self, key: &str) -> Option<u64> {
        let text = self.text(key)?;
        Some(self.sum(text))
    }

    /// Whether `name` is one of the words.
    pub(super) fn flag(&self, name: &str) -> bool {
        script::flag(self.words, name)
    }

    fn descriptor_named(&mut self, name: &str) -> Option<u64> {
        let file = self.process.names.file(name);
        self.parsed(file)
    }

    /// The descriptor that the word at `index` names.
    pub(super) fn descriptor(&mut self, index: usize) -> Option<u64> {
        self.descriptor_named(self.word(index))
    }

    /// The open file `name`.
    pub(super) fn file_named(&mut self, name: &str) -> Option<Rc<OpenFile>> {
        let descriptor = self.descriptor_named(name);
        self.process.file(descriptor)
    }

    /// The open file that the word at `index` names.
    pub(super) fn file(&mut self, index: usize) -> Option<Rc<OpenFile>> {
        self.file_named(self.word(index))
    }

    /// The address for `bytes` of new memory.
    pub(super) fn place(&mut self, bytes: u64) -> u64 {
        let at = self.process.next_memory;
        self.process.next_memory = at.wrapping_add(bytes.wrapping_add(0x7fff_ffff) & !0x3fff_ffff);
        at
    }
}
