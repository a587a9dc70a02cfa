//! Performing scenarios: line by line, process by process.

use prereg::{Granule, OutOfMemory};
use prereg_sim::SimHost;

use super::call::{Call, Fate};
use super::expression::Kind;
use super::machine::{Machine, Shared};
use super::process::Process;
use super::scenario::{Scenario, words};
use super::transcript::{Answer, Line, Transcript};
use super::{memory, regions, vfio};

/// Words of an operation that are looked at.
const MOST_WORDS: usize = 24;
/// Processes inside each other.
const DEEPEST: usize = 32;

/// A run of one scenario.
struct Run<'a> {
    lines: &'a [(usize, String)],
    transcript: Transcript,
    /// The hosts of all processes, to look at when they have ended.
    hosts: Vec<SimHost>,
}

/// Performs `scenario` in a fresh process on `machine` with system pages of `granule`.
///
/// # Errors
/// [`OutOfMemory`] for the process' address space.
pub fn run(scenario: &Scenario, machine: Machine, granule: Granule) -> Result<Transcript, OutOfMemory> {
    let transcript = Transcript { name: scenario.name.clone(), ..Transcript::default() };
    let mut run = Run { lines: &scenario.lines, transcript, hosts: Vec::new() };
    let shared = Shared::new(machine);
    let mut process = Process::new(shared, granule)?;
    run.hosts.push(process.host.clone());
    let ended = run.block(&mut process, 0, scenario.lines.len(), 0);
    if let Some(signal) = ended {
        let last = scenario.lines.last().map_or(0, |(number, _)| *number);
        run.transcript.remarks.push((last, format!("killed by signal {signal}")));
    }
    drop(process);
    run.transcript.left = run.left();
    Ok(run.transcript)
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
        let child = match depth {
            DEEPEST => Err("too many processes inside each other".to_owned()),
            _ => parent.fork().map_err(|error| error.to_string()),
        };
        let exit = match child {
            Err(why) => {
                self.transcript.remarks.push((number, why));
                0
            }
            Ok(mut child) => {
                self.hosts.push(child.host.clone());
                let signal = self.block(&mut child, at + 1, end, depth + 1);
                -i64::from(signal.unwrap_or(0))
            }
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
        let mut fate = perform(&mut call);
        if let Fate::Answered(answer) = &mut fate {
            if call.process.watch_orphans() && answer.cause.is_empty() {
                answer.cause = "orphan";
            }
        }
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
