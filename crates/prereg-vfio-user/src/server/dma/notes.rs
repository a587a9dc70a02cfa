//! Notes about clients' memory, for the log: refused maps, failed pins and pinning that ended early, once a client and kind.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::error::MapMemoryError;

/// What happened to a client's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NoteKind {
    /// A DMA_MAP was refused because there was no room for its memory, or for one more mapping, file or piece of it.
    MapRefused,
    /// Memory that was mapped could not be pinned: the device's accesses to it fail.
    PinFailed,
    /// There was no room to pin more of a mapping in the background: the rest of it is tried again when a device reaches it.
    BackgroundEnded,
}

/// The first thing of a kind that happened to a client. Later ones are only counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct MemoryNote {
    /// The client's number.
    pub client: u64,
    /// What happened.
    pub kind: NoteKind,
    /// Why.
    pub error: MapMemoryError,
}

/// Notes that were not fetched yet.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<VecDeque<MemoryNote>>);

/// Notes kept at most. Clients that come and go, each with a note, push out the oldest.
const MOST: usize = 64;

impl Notes {
    pub(super) fn add(&self, note: MemoryNote) {
        // Every change is one insertion or removal.
        let mut notes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.len() == MOST {
            notes.pop_front();
        }
        notes.push_back(note);
    }

    pub(super) fn take(&self) -> Vec<MemoryNote> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner)).into()
    }
}
