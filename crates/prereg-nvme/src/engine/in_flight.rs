//! Commands in flight: fetched and not completed yet.

use super::counters::Kind;
use crate::spec::Status;

/// The origin of a command in flight.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Owner {
    /// The guest.
    Guest {
        /// Submission queue.
        sq: u16,
        /// Command identifier.
        cid: u16,
    },
    /// The controller: a flush of all disks.
    Controller,
}

/// A command in flight.
#[derive(Clone, Copy, Debug)]
pub(crate) struct InFlight {
    /// The origin of a command in flight.
    pub(crate) owner: Owner,
    /// Its kind for counters.
    pub(crate) kind: Kind,
    /// When it was fetched, in nanoseconds.
    pub(crate) started: u64,
    /// Bytes to transfer, zero or deallocate.
    pub(crate) bytes: u64,
    /// Its namespace, for the error log.
    pub(crate) nsid: u32,
    /// Its first block, for the error log.
    pub(crate) lba: u64,
    /// Disk requests that are not done.
    pub(crate) parts: u32,
    /// The first failure.
    pub(crate) status: Status,
}

/// Commands in flight, by tag.
#[derive(Debug, Default)]
pub(crate) struct InFlightTable {
    list: Vec<Option<InFlight>>,
    free: Vec<usize>,
}

impl InFlightTable {
    /// Adds a command; returns its tag.
    pub(crate) fn begin(&mut self, in_flight: InFlight) -> u64 {
        if let Some(at) = self.free.pop() {
            self.list[at] = Some(in_flight);
            return at as u64;
        }
        self.list.push(Some(in_flight));
        (self.list.len() - 1) as u64
    }

    /// The command of a tag.
    pub(crate) fn get(&mut self, tag: u64) -> Option<&mut InFlight> {
        self.list.get_mut(usize::try_from(tag).ok()?)?.as_mut()
    }

    /// Removes a command.
    pub(crate) fn end(&mut self, tag: u64) -> Option<InFlight> {
        let at = usize::try_from(tag).ok()?;
        let in_flight = self.list.get_mut(at)?.take()?;
        self.free.push(at);
        Some(in_flight)
    }

    /// Commands in flight.
    pub(crate) fn count(&self) -> usize {
        self.list.len() - self.free.len()
    }

    /// The tags in use.
    pub(crate) fn tags(&self) -> Vec<u64> {
        (0..).zip(&self.list).filter(|(_, one)| one.is_some()).map(|(tag, _)| tag).collect()
    }
}
