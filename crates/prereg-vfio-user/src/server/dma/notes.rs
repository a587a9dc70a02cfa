//! Notes about clients' memory, for the log: refused maps, failed pins and pinning that ended early, once a client and kind.

use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};

use super::error::MapMemoryError;

/// Kinds of notes about a client's memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum NoteKind {
    /// A DMA_MAP was refused for lack of room for its memory, or for another mapping, file or piece.
    MapRefused,
    /// Mapped memory could not be pinned: the device's accesses to it fail.
    PinFailed,
    /// No room to pin more of a mapping in the background: the rest is tried again at the device's first access.
    BackgroundEnded,
}

/// The first event of a kind of one client; later ones are only counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct MemoryNote {
    /// The client's number.
    pub client: u64,
    /// The kind.
    pub kind: NoteKind,
    /// The cause.
    pub error: MapMemoryError,
}

/// Notes to be taken.
#[derive(Debug, Default)]
pub(super) struct Notes(Mutex<VecDeque<MemoryNote>>);

/// Notes kept at most; the oldest are dropped first.
const MOST: usize = 64;

impl Notes {
    pub(super) fn add(&self, note: MemoryNote) {
        // Every change is one insertion or removal, so a poisoned lock is consistent.
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
