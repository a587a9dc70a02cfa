//! Performing scenarios: line by line, process by process.

use std::rc::Rc;

use prereg::Granule;
use prereg_sim::SimHost;

use super::expression::Kind;
use super::machine::{Machine, OpenFile, Shared};
use super::process::Process;
use super::scenario::{Scenario, words};
use super::transcript::{Answer, Line, Transcript};
use super::{memory, regions, vfio};

/// Words of an operation that are looked at.
const MOST_WORDS: usize = 24;
/// Processes inside each other.
const DEEPEST: usize = 32;

/// What an operation led to.
pub(super) enum Fate {
    Answered(Answer),
    /// The process is gone, by this signal; there is no line.
    Killed(u32),
}

/// One operation and the process that performs it.
pub(super) struct Call<'a> {
    pub(super) process: &'a mut Process,
    words: &'a [String],
    target: Option<&'a str>,
    wrong: Option<String>,
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

/// A run of one scenario.
struct Run<'a> {
    lines: &'a [(usize, String)],
    transcript: Transcript,
    /// The hosts of all processes, to look at when they have ended.
    hosts: Vec<SimHost>,
}

/// Performs `scenario` in a fresh process on `machine` with system pages of `granule`.
#[must_use]
pub fn run(scenario: &Scenario, machine: Machine, granule: Granule) -> Transcript {
    let transcript = Transcript { name: scenario.name.clone(), ..Transcript::default() };
    let mut run = Run { lines: &scenario.lines, transcript, hosts: Vec::new() };
    let shared = Shared::new(machine);
    let mut process = Process::new(shared, granule);
    run.hosts.push(process.host.clone());
    let ended = run.block(&mut process, 0, scenario.lines.len(), 0);
    if let Some(signal) = ended {
        let last = scenario.lines.last().map_or(0, |(number, _)| *number);
        run.transcript.remarks.push((last, format!("killed by signal {signal}")));
    }
    drop(process);
    run.transcript.left = run.left();
    run.transcript
}

impl Run<'_> {
    fn left(&self) -> Option<String> {
        let pinned: u64 = self.hosts.iter().map(SimHost::pinned_pages).sum();
        let charged: u64 = self.hosts.iter().map(SimHost::charged_pages).sum();
        (pinned + charged > 0).then(|| format!("{pinned} pages pinned, {charged} pages charged"))
    }

    /// Performs lines `from..to`; the signal that ended the process, if one did.
    fn block(&mut self, process: &mut Process, from: usize, to: usize, depth: usize) -> Option<u32> {
        let lines = self.lines;
        let mut at = from;
        while at < to {
            let (number, line) = &lines[at];
            let words = words(line);
            if words.first() == Some(&"child") {
                let end = self.end_of_child(at, to);
                self.child(process, at, end, depth);
                at = end + 1;
                continue;
            }
            at += 1;
            if words.is_empty() {
                continue;
            }
            let (line, fate) = self.operation(process, *number, &words);
            match fate {
                None => self.transcript.lines.push((*number, line)),
                Some(signal) => return Some(signal),
            }
        }
        None
    }

    /// The index of the `endchild` that belongs to the `child` at `at`, or `to`.
    fn end_of_child(&self, at: usize, to: usize) -> usize {
        let mut depth = 0usize;
        for index in at..to {
            match self.lines[index].1.split_whitespace().next() {
                Some("child") => depth += 1,
                Some("endchild") if depth == 1 => return index,
                Some("endchild") => depth -= 1,
                _ => {}
            }
        }
        to
    }

    fn child(&mut self, parent: &mut Process, at: usize, end: usize, depth: usize) {
        let number = self.lines[at].0;
        self.transcript.lines.push((number, Line::Child));
        let exit = if depth == DEEPEST {
            self.transcript.remarks.push((number, "too many processes inside each other".to_owned()));
            0
        } else {
            let mut child = parent.fork();
            self.hosts.push(child.host.clone());
            let signal = self.block(&mut child, at + 1, end, depth + 1);
            -i64::from(signal.unwrap_or(0))
        };
        let number = self.lines.get(end).map_or(number + end - at, |(number, _)| *number);
        let answer = Answer::done().with(format!("exit={exit}"));
        let line = Line::Op { text: "} endchild".to_owned(), answer, locked_kib: parent.locked_kib() };
        self.transcript.lines.push((number, line));
    }

    /// Performs one operation: its line, or the signal that ended the process.
    fn operation(&mut self, process: &mut Process, number: usize, words: &[&str]) -> (Line, Option<u32>) {
        let mut all: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
        name_page_counts(process, &mut all);
        let text = all.join(" ");
        all.truncate(MOST_WORDS);
        let arrow = all.len() > 2 && all[all.len() - 2] == "->";
        let (words, target) = match arrow {
            true => (&all[..all.len() - 2], all.last().map(String::as_str)),
            false => (&all[..], None),
        };
        let mut call = Call { process, words, target, wrong: None };
        let fate = perform(&mut call);
        let (wrong, locked_kib) = (call.wrong.take(), process.locked_kib());
        let line = match (wrong, fate) {
            (_, Fate::Killed(signal)) => return (Line::Unreadable(text), Some(signal)),
            (Some(wrong), _) => {
                self.transcript.remarks.push((number, wrong));
                Line::Unreadable(text)
            }
            (None, Fate::Answered(answer)) => Line::Op { text, answer, locked_kib },
        };
        (line, None)
    }
}

/// `N` in a region operation, behind a piece of memory and where no variable has that name, is how many system pages the
/// memory has: the recorded answers show the number.
fn name_page_counts(process: &Process, words: &mut [String]) {
    if !words[0].starts_with("m.") || process.names.get("N").is_some() {
        return;
    }
    for at in 1..words.len() {
        if words[at] != "N" {
            continue;
        }
        if let Some(Kind::Memory(bytes)) = process.names.get(&words[at - 1]).map(|variable| variable.kind) {
            words[at] = (bytes / process.page()).to_string();
        }
    }
}

fn perform(call: &mut Call<'_>) -> Fate {
    if let Some(fate) = memory::perform(call) {
        return fate;
    }
    if let Some(answer) = vfio::perform(call).or_else(|| regions::perform(call)) {
        return Fate::Answered(answer);
    }
    let answer = match call.op() {
        "let" if call.needs(3) => {
            let value = call.number(2);
            let name = call.word(1).to_owned();
            call.process.names.set(&name, Kind::Number, value);
            Answer::done()
        }
        "status" => Answer::done().with("pin=0"),
        _ => {
            let op = call.word(0).to_owned();
            call.wrong.get_or_insert_with(|| format!("unknown operation '{op}'"));
            Answer::done()
        }
    };
    Fate::Answered(answer)
}
