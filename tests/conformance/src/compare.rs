//! Classifies every line of a transcript: equal to the kernel's, explained by a rule, after a deviation that changed state, or
//! unexplained.

use std::collections::{BTreeMap, VecDeque};

use serde::Serialize;

use super::deviations::{Deviations, Locked, Recorded};
use super::transcript::{Line, Transcript};

/// Recorded answers by scenario name. A name that occurs twice is answered in order.
#[derive(Clone, Debug, Default)]
pub struct Answers(BTreeMap<String, VecDeque<Vec<String>>>);

impl Answers {
    /// Reads a stored transcript.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        let mut answers = Self::default();
        for block in prereg_scenario::transcript::parse(text) {
            answers.0.entry(block.name).or_default().push_back(block.lines);
        }
        answers
    }

    fn take(&mut self, name: &str) -> Option<Vec<String>> {
        self.0.get_mut(name.trim_end())?.pop_front()
    }

    /// The number of recorded scenarios that were not run.
    #[must_use]
    pub fn unused(&self) -> usize {
        self.0.values().map(VecDeque::len).sum()
    }
}

/// The classification of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Equal to the kernel's.
    Equal,
    /// Different by this rule.
    Explained(String),
    /// Different after a rule that taints: the states of kernel and prereg differ.
    AfterDeviation,
    /// Different for no recorded reason.
    Unexplained,
}

/// A line that differs from the kernel's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// Its line number in the scenario file.
    pub number: usize,
    /// prereg's line; `None` if only the kernel has one.
    pub ours: Option<String>,
    /// The kernel's line; `None` if only prereg has one.
    pub kernel: Option<String>,
    /// Its classification.
    pub verdict: Verdict,
}

/// The sums over all lines.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Scenarios.
    pub scenarios: u64,
    /// Lines compared.
    pub lines: u64,
    /// Lines equal to the kernel's.
    pub equal: u64,
    /// Lines that differ by a rule, by the rule's name.
    pub explained: BTreeMap<String, u64>,
    /// Lines that differ after a rule that taints.
    pub after_deviation: u64,
    /// Lines that differ for no recorded reason.
    pub unexplained: u64,
}

impl Totals {
    fn count(&mut self, verdict: &Verdict) {
        self.lines += 1;
        match verdict {
            Verdict::Equal => self.equal += 1,
            Verdict::Explained(rule) => *self.explained.entry(rule.clone()).or_default() += 1,
            Verdict::AfterDeviation => self.after_deviation += 1,
            Verdict::Unexplained => self.unexplained += 1,
        }
    }
}

/// The divergence of kernel and prereg within a scenario.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Divergence {
    /// The kernel has locked this many KiB more, and nothing else differs.
    Locked(i128),
    /// The states differ.
    State,
}

/// Compares transcripts with recorded answers.
#[derive(Debug)]
pub struct Comparator<'a> {
    deviations: &'a Deviations,
    answers: Answers,
    /// The sums so far.
    pub totals: Totals,
}

impl<'a> Comparator<'a> {
    /// A comparator with these rules and answers.
    #[must_use]
    pub fn new(deviations: &'a Deviations, answers: Answers) -> Self {
        Self { deviations, answers, totals: Totals::default() }
    }

    /// The number of recorded scenarios that were not run.
    #[must_use]
    pub fn unused(&self) -> usize {
        self.answers.unused()
    }

    /// Classifies the lines of one scenario; returns those that differ from the kernel's.
    pub fn compare(&mut self, ours: &Transcript) -> Vec<Difference> {
        self.totals.scenarios += 1;
        let recorded = self.answers.take(&ours.name).unwrap_or_default();
        let mut differences = Vec::new();
        let mut divergence = Divergence::Locked(0);
        for index in 0..recorded.len().max(ours.lines.len()) {
            let kernel = recorded.get(index);
            let line = ours.lines.get(index);
            let verdict = match (line, kernel) {
                (Some((_, line)), Some(kernel)) => self.classify(line, kernel, &mut divergence),
                _ => Verdict::Unexplained,
            };
            self.totals.count(&verdict);
            if verdict != Verdict::Equal {
                let number = line.or(ours.lines.last()).map_or(0, |(number, _)| *number);
                let ours = line.map(|(_, line)| line.to_string());
                differences.push(Difference { number, ours, kernel: kernel.cloned(), verdict });
            }
        }
        differences
    }

    fn classify(&self, line: &Line, kernel: &str, divergence: &mut Divergence) -> Verdict {
        let Line::Op { text, answer, locked_kib } = line else {
            return if line.to_string() == kernel { Verdict::Equal } else { Verdict::Unexplained };
        };
        let Some((their_text, their_answer)) = kernel.split_once(" => ") else { return Verdict::Unexplained };
        if text != their_text {
            return Verdict::Unexplained;
        }
        let theirs = Recorded::parse(their_answer);
        let Some(their_kib) = theirs.locked_kib else { return Verdict::Unexplained };
        let more = i128::from(their_kib) - i128::from(*locked_kib);
        if theirs.agrees(answer) && more == 0 {
            return Verdict::Equal;
        }
        let known = match *divergence {
            Divergence::Locked(known) => known,
            Divergence::State => 0,
        };
        if *divergence != Divergence::State && theirs.agrees(answer) && more == known {
            return Verdict::AfterDeviation;
        }
        let op = text.split(' ').next().unwrap_or("");
        if let Some(rule) = self.deviations.explain(op, &theirs, answer, more - known) {
            match (rule.taints, rule.lck) {
                (true, Locked::Leaked) if *divergence != Divergence::State => {
                    *divergence = Divergence::Locked(more);
                }
                (true, _) => *divergence = Divergence::State,
                (false, _) => {}
            }
            return Verdict::Explained(rule.id.clone());
        }
        if *divergence == Divergence::State { Verdict::AfterDeviation } else { Verdict::Unexplained }
    }
}
