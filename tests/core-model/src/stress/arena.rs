//! Shared state of the stress threads, and the places they meet at.

use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Duration;

use prereg::{AddressSpace, EntryBlock};

use crate::host::{Host, Piece};
use crate::layout::{ORDINARY, Spot};

/// Entries of the block that all threads change.
pub(super) const ENTRIES: usize = 512;
/// The end of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Until {
    /// After this number of operations of each thread.
    Operations(u64),
    /// After so much time.
    Time(Duration),
}

/// The state that the threads share.
pub(super) struct Arena {
    pub(super) host: Host,
    pub(super) space: AddressSpace,
    pub(super) blocks: [EntryBlock; 2],
    pub(super) counts: Counts,
    pub(super) until: Until,
    pub(super) stop: AtomicBool,
}

#[derive(Default)]
pub(super) struct Counts {
    pub(super) addresses: AtomicU64,
    pub(super) operations: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) missed: AtomicU64,
}

/// The memory of a spot.
pub(super) fn piece(spot: Spot) -> Piece {
    Piece::new(spot.ua, spot.pages << 12, None)
}

/// The spots that most operations are about, so that threads meet: the small ones.
const HOT: std::ops::Range<usize> = 3..15;

/// The spot of an operation, chosen by `word`.
pub(super) fn spot_index(word: u16) -> usize {
    let word = usize::from(word);
    match word % 4 {
        0 => word / 4 % ORDINARY,
        1 => ORDINARY + word / 4 % 64,
        _ => HOT.start + word / 4 % HOT.len(),
    }
}
