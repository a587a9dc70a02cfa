//! Performs a scenario: line by line, process by process.

use prereg::{Granule, OutOfMemory};
use prereg_scenario::names::Kind;
use prereg_scenario::script::{self, Scenario};
use prereg_scenario::transcript::{Answer, END_OF_CHILD};
use prereg_sim::SimHost;

use super::machine::{Machine, Shared};
use super::operation::{Operation, Outcome};
use super::process::Process;
use super::transcript::{Line, Transcript};
use super::{memory, regions, vfio};

/// The recorder of the stored answers reads this many words of a line.
const MOST_WORDS: usize = 24;
/// Nesting limit of child processes.
const DEEPEST: usize = 32;

/// A run of one scenario.
struct Run<'a> {
    scenario: &'a Scenario,
    transcript: Transcript,
    /// The hosts of all processes, for the leak check after they ended.
    hosts: Vec<SimHost>,
}

/// Performs `scenario` in a fresh process on `machine` with system pages of `granule`.
///
/// # Errors
/// [`OutOfMemory`] for the process's address space.
pub fn run(scenario: &Scenario, machine: Machine, granule: Granule) -> Result<Transcript, OutOfMemory> {
    let transcript = Transcript { name: scenario.name.clone(), ..Transcript::default() };
    let mut run = Run { scenario, transcript, hosts: Vec::new() };
    let mut process = Process::new(Shared::new(machine), granule)?;
    run.hosts.push(process.host.clone());
    if let Some(signal) = run.block(&mut process, 0, scenario.lines.len(), 0) {
        run.transcript.remarks.push((scenario.end.saturating_sub(1), format!("killed by signal {signal}")));
    }
    drop(process);
    run.transcript.leak = run.leak();
    Ok(run.transcript)
}

impl Run<'_> {
    fn leak(&self) -> Option<String> {
        let pinned: u64 = self.hosts.iter().map(SimHost::pinned_pages).sum();
        let charged: u64 = self.hosts.iter().map(SimHost::charged_pages).sum();
        (pinned + charged > 0).then(|| format!("{pinned} pages pinned, {charged} pages charged"))
    }

    /// Performs lines `from..to`; returns the signal that killed the process, if any.
    fn block(&mut self, process: &mut Process, from: usize, to: usize, depth: usize) -> Option<u32> {
        let mut index = from;
        while index < to {
            let line = &self.scenario.lines[index];
            if line.op() == "child" {
                let end = script::end_of_child(&self.scenario.lines[..to], index + 1);
                self.child(process, index, end, depth);
                index = end + 1;
                continue;
            }
            index += 1;
            let number = line.number;
            match self.operation(process, line) {
                Ok(line) => self.transcript.lines.push((number, line)),
                Err(signal) => return Some(signal),
            }
        }
        None
    }

    fn child(&mut self, parent: &mut Process, first: usize, end: usize, depth: usize) {
        let number = self.scenario.lines[first].number;
        self.transcript.lines.push((number, Line::Child));
        let child = match depth {
            DEEPEST => Err("too many nested processes".to_owned()),
            _ => parent.fork().map_err(|error| error.to_string()),
        };
        let exit = match child {
            Err(why) => {
                self.transcript.remarks.push((number, why));
                0
            }
            Ok(mut child) => {
                self.hosts.push(child.host.clone());
                let signal = self.block(&mut child, first + 1, end, depth + 1);
                -i64::from(signal.unwrap_or(0))
            }
        };
        let number = self.scenario.lines.get(end).map_or(self.scenario.end, |line| line.number);
        let answer = Answer::done().with(format!("exit={exit}"));
        let line = Line::Op { text: END_OF_CHILD.to_owned(), answer, locked_kib: parent.locked_kib() };
        self.transcript.lines.push((number, line));
    }

    /// Performs one operation; the error is the signal that killed the process.
    fn operation(&mut self, process: &mut Process, line: &script::Line) -> Result<Line, u32> {
        let mut line = line.clone();
        process.names.spell_page_counts(&mut line.words);
        let text = line.text();
        let target = line.target.as_deref().filter(|_| line.words.len() + 2 <= MOST_WORDS);
        let words = &line.words[..line.words.len().min(MOST_WORDS)];
        let mut op = Operation { process, words, target, malformed: None };
        let mut answer = match perform(&mut op) {
            Outcome::Answered(answer) => answer,
            Outcome::Killed(signal) => return Err(signal),
        };
        if op.process.watch_orphans() && answer.cause.is_empty() {
            answer.cause = "orphan";
        }
        let malformed = op.malformed.take();
        Ok(match malformed {
            Some(why) => {
                self.transcript.remarks.push((line.number, why));
                Line::ParseError(text)
            }
            None => Line::Op { text, answer, locked_kib: process.locked_kib() },
        })
    }
}

fn perform(op: &mut Operation<'_>) -> Outcome {
    if let Some(outcome) = memory::perform(op) {
        return outcome;
    }
    if let Some(answer) = vfio::perform(op).or_else(|| regions::perform(op)) {
        return Outcome::Answered(answer);
    }
    let answer = match op.name() {
        "let" if op.needs(3) => {
            let value = op.number(2);
            op.process.names.set(op.word(1), Kind::Number, value);
            Answer::done()
        }
        "status" => Answer::done().with("pin=0"),
        name => {
            op.malformed.get_or_insert_with(|| format!("unknown operation '{name}'"));
            Answer::done()
        }
    };
    Outcome::Answered(answer)
}
