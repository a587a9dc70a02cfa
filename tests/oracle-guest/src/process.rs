//! The state of a scenario's process, and the words of the lines that it performs.

use std::fs;

use prereg_scenario::names::{Malformed, Names};
use prereg_scenario::script::{self, Line};

use crate::boot::Host;

/// Address of a scenario's first anonymous memory: far from the program, and equal in every run.
const FIRST_MEMORY: u64 = 0x2_0000_0000;

/// State that a process of a scenario keeps from line to line; a child gets a copy.
#[derive(Clone, Debug)]
pub(crate) struct Process<'a> {
    pub(crate) host: &'a Host,
    pub(crate) names: Names,
    /// Address of the next memory.
    pub(crate) next_memory: u64,
    /// The opened device of the module `mm_iommu_test`.
    pub(crate) region_calls: Option<i32>,
}

impl<'a> Process<'a> {
    pub(crate) fn new(host: &'a Host) -> Self {
        Self { host, names: Names::new(host.page), next_memory: FIRST_MEMORY, region_calls: None }
    }

    /// The value of the word at `index`.
    pub(crate) fn sum(&self, line: &Line, index: usize) -> Result<u64, Malformed> {
        self.names.sum(word(line, index)?)
    }

    /// The value of the option `key`, if it is given.
    pub(crate) fn option(&self, line: &Line, key: &str) -> Result<Option<u64>, Malformed> {
        script::option(&line.words, key).map(|text| self.names.sum(text)).transpose()
    }

    /// The descriptor of the open file `name`.
    pub(crate) fn file_named(&self, name: &str) -> Result<i32, Malformed> {
        let descriptor = self.names.file(name)?;
        i32::try_from(descriptor).map_err(|_| Malformed(format!("'{name}' is no descriptor")))
    }

    /// The descriptor of the open file that the word at `index` names.
    pub(crate) fn file(&self, line: &Line, index: usize) -> Result<i32, Malformed> {
        self.file_named(word(line, index)?)
    }
}

/// The word at `index`; 0 is the operation.
pub(crate) fn word(line: &Line, index: usize) -> Result<&str, Malformed> {
    line.words.get(index).map(String::as_str).ok_or_else(|| Malformed(format!("word {index} is missing")))
}

/// A number of the calling process's `/proc/self/status`; -1 if there is none.
pub(crate) fn status(key: &str) -> i64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(-1)
}
