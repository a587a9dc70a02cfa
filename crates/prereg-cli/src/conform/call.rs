//! One operation of a scenario: its words, and the process that performs it.

use std::rc::Rc;

use super::expression::Kind;
use super::machine::OpenFile;
use super::process::Process;
use super::transcript::Answer;

/// What an operation led to.
pub(super) enum Fate {
    Answered(Answer),
    /// The process is gone, by this signal; there is no line.
    Killed(u32),
}

/// One operation and the process that performs it.
pub(super) struct Call<'a> {
    pub(super) process: &'a mut Process,
    pub(super) words: &'a [String],
    pub(super) target: Option<&'a str>,
    /// Why the line cannot be read, if it cannot.
    pub(super) wrong: Option<String>,
}

impl Call<'_> {
    /// The operation.
    pub(super) fn op(&self) -> &'static str {
        let op = self.words.first().map_or("", String::as_str);
        OPS.iter().find(|known| **known == op).copied().unwrap_or("")
    }

    /// Whether there are `count` words; else the line is unreadable.
    pub(super) fn needs(&mut self, count: usize) -> bool {
        if self.words.len() < count {
            self.wrong.get_or_insert_with(|| format!("needs {} words more", count - self.words.len()));
        }
        self.words.len() >= count
    }

    pub(super) fn word(&self, at: usize) -> &str {
        self.words.get(at).map_or("", String::as_str)
    }

    /// The name behind `->`.
    pub(super) fn target(&self) -> Option<&str> {
        self.target
    }

    fn sum(&mut self, text: &str) -> u64 {
        self.process.names.sum(text, self.process.page(), &mut self.wrong)
    }

    pub(super) fn number(&mut self, at: usize) -> u64 {
        let word = self.word(at).to_owned();
        self.sum(&word)
    }

    /// What stands behind `key=`.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.words.iter().find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
    }

    pub(super) fn option(&mut self, key: &str) -> Option<u64> {
        let text = self.text(key)?.to_owned();
        Some(self.sum(&text))
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.words.iter().any(|word| word == name)
    }

    fn descriptor_named(&mut self, name: &str) -> Option<u64> {
        match self.process.names.get(name) {
            Some(variable) if variable.kind == Kind::File => Some(variable.value),
            _ => {
                self.wrong.get_or_insert_with(|| format!("no file '{name}'"));
                None
            }
        }
    }

    pub(super) fn descriptor(&mut self, at: usize) -> Option<u64> {
        let name = self.word(at).to_owned();
        self.descriptor_named(&name)
    }

    pub(super) fn file_named(&mut self, name: &str) -> Option<Rc<OpenFile>> {
        let descriptor = self.descriptor_named(name);
        self.process.file(descriptor)
    }

    pub(super) fn file(&mut self, at: usize) -> Option<Rc<OpenFile>> {
        let name = self.word(at).to_owned();
        self.file_named(&name)
    }

    /// Where new memory of `bytes` goes.
    pub(super) fn place(&mut self, bytes: u64) -> u64 {
        let at = self.process.next_memory;
        self.process.next_memory = at.wrapping_add(bytes.wrapping_add(0x7fff_ffff) & !0x3fff_ffff);
        at
    }
}

/// Every operation but `child`.
const OPS: [&str; 47] = [
    "let",
    "mem",
    "memrep",
    "munmap",
    "mprotect",
    "mlock",
    "munlock",
    "dontneed",
    "nohuge",
    "touch",
    "rlimit_memlock",
    "drop_ipc_lock",
    "drop_sys_resource",
    "setuid",
    "container",
    "group",
    "device",
    "v2",
    "gstatus",
    "dup",
    "close",
    "attach",
    "detach",
    "set_iommu",
    "check_ext",
    "info",
    "enable",
    "disable",
    "register",
    "unregister",
    "create",
    "remove",
    "map",
    "unmap",
    "raw",
    "status",
    "m.new",
    "m.newdev",
    "m.get",
    "m.put",
    "m.lookup",
    "m.ua_to_hpa",
    "m.is_devmem",
    "m.inc",
    "m.dec",
    "m.preregistered",
    "endchild",
];
