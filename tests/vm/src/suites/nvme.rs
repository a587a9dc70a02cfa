//! Guests with a disk from `prereg serve`: their own driver, and events of guest, memory and server.
//!
//! `data` checks reads and writes, `life` resets, unplugs and kills, `memory` hotplugs memory, `backing` uses unusual memory;
//! `disk` has the shared parts. The disk of a case is a file; some blocks are written before the guest boots, others are
//! compared after it has ended.

mod backing;
mod data;
pub(super) mod disk;
mod life;
mod memory;

use super::case::Case;

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    [data::CASES, backing::CASES, life::CASES, memory::CASES].concat()
}
