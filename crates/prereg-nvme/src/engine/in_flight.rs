//! Commands under way: taken from a submission queue, not answered yet.

use super::counters::Kind;
use crate::spec::Status;

/// For whom something is under way.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// The guest: submission queue and command.
    Guest {
        /// The queue.
        sq: u16,
        /// The command.
        cid: u16,
    },
    /// The controller itself, which makes all data durable.
    Controller,
}

/// A command under way.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// For whom.
    pub owner: Owner,
    /// What it is counted as.
    pub kind: Kind,
    /// When it was taken, in nanoseconds.
    pub started: u64,
    /// Bytes it moves or names.
    pub bytes: u64,
    /// What it named, for the error log.
    pub nsid: u32,
    /// Likewise.
    pub lba: u64,
    /// Pieces of work that are not done.
    pub parts: u32,
    /// The first failure of a part.
    pub status: Status,
}

/// Commands under way, by tag.
#[derive(Debug, Default)]
pub struct InFlightTable {
    list: Vec<Option<InFlight>>,
    free: Vec<usize>,
}

impl InFlightTable {
    /// Takes a command; gives its tag.
    pub fn begin(&mut self, in_flight: InFlight) -> u64 {
        if let Some(at) = self.free.pop() {
            self.list[at] = Some(in_flight);
            return at as u64;
        }
        self.list.push(Some(in_flight));
        (self.list.len() - 1) as u64
    }

    /// The command of a tag.
    pub fn get(&mut self, tag: u64) -> Option<&mut InFlight> {
        self.list.get_mut(usize::try_from(tag).ok()?)?.as_mut()
    }

    /// The end of a command.
    pub fn end(&mut self, tag: u64) -> Option<InFlight> {
        let at = usize::try_from(tag).ok()?;
        let in_flight = self.list.get_mut(at)?.take()?;
        self.free.push(at);
        Some(in_flight)
    }

    /// How many are under way.
    #[must_use]
    pub fn count(&self) -> usize {
        self.list.len() - self.free.len()
    }

    /// The tags under way.
    #[must_use]
    pub fn tags(&self) -> Vec<u64> {
        (0..).zip(&self.list).filter(|(_, one)| one.is_some()).map(|(tag, _)| tag).collect()
    }
}
