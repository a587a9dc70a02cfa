//! Guests with a disk from `prereg serve nvme`: their own driver, and what may happen to guest, memory and server.
//!
//! `data` is about what is written and read, `life` about guests and servers that come and go, `memory` about guests whose
//! memory does, `backing` about where it comes from; `disk` is what they share. The disk of a case is a file; some of its blocks are there before the guest comes,
//! others are compared after it has gone.

mod backing;
mod data;
pub(super) mod disk;
mod life;
mod memory;

use super::case::Case;

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    [data::CASES, backing::CASES, life::CASES, memory::CASES].concat()
}
