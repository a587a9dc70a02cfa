//! A sparse array of blocks for tables of up to 2^52 entries.
//!
//! A radix tree of fan-out 512 whose levels and blocks are created at first use and freed with the array. The root is a slice
//! as long as the table needs (at most 1024 slots), so a table of up to 2^19 entries is one slice of blocks, and a reader
//! reaches an entry with three loads. Readers and writers of existing blocks take no lock; threads that create a block race for
//! its slot. Walks skip missing levels, so they cost what exists.

mod published;

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::ops::Range;

use prereg::{Errno, OutOfMemory};

use published::Published;

/// Errors of reaching an entry of a table. Nothing changed.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TableError {
    /// The table ends before that entry. EINVAL.
    #[error("entry {index} is outside a table of {entries} entries")]
    OutOfRange {
        /// The entry asked for, or the first one outside of a range.
        index: u64,
        /// The number of entries.
        entries: u64,
    },
    /// A level or block of the table could not be allocated. ENOMEM.
    #[error("no memory for another block of the table")]
    OutOfMemory,
}

prereg::debug_as_display!(TableError);

impl TableError {
    /// EINVAL or ENOMEM.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::OutOfRange { .. } => Errno::EINVAL,
            Self::OutOfMemory => Errno::ENOMEM,
        }
    }
}

impl From<OutOfMemory> for TableError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

/// `entries` entries in blocks of `2^BLOCK`.
pub(crate) struct Sparse<T, const BLOCK: u32> {
    entries: u64,
    /// Bits of an index that one slot of the root covers.
    root_shift: u32,
    root: Level<T>,
}

enum Level<T> {
    Branches(Box<[Published<Level<T>>]>),
    Blocks(Box<[Published<T>]>),
}

const FAN_BITS: u32 = 9;
const ROOT_BITS: u32 = 10;

impl<T, const BLOCK: u32> Sparse<T, BLOCK> {
    /// Entries in a block.
    pub(crate) const BLOCK_LEN: usize = 1 << BLOCK;

    /// An empty array: only the root exists.
    pub(crate) fn new(entries: u64) -> Result<Self, OutOfMemory> {
        let last = entries.saturating_sub(1);
        let index_bits = u64::BITS - last.leading_zeros();
        let levels = index_bits.saturating_sub(BLOCK + ROOT_BITS).div_ceil(FAN_BITS);
        let root_shift = BLOCK + levels * FAN_BITS;
        let root = Level::new(levels, (last >> root_shift) as usize + 1)?;
        Ok(Self { entries, root_shift, root })
    }

    /// The offset of an entry in its block.
    #[inline]
    pub(crate) const fn offset(index: u64) -> usize {
        (index & ((1 << BLOCK) - 1)) as usize
    }

    /// Checks that `[first, first + count)` lies in the table.
    #[inline]
    pub(crate) const fn check(&self, first: u64, count: u64) -> Result<(), TableError> {
        match first.checked_add(count) {
            Some(end) if end <= self.entries => Ok(()),
            _ => Err(TableError::OutOfRange {
                index: if first < self.entries { self.entries } else { first },
                entries: self.entries,
            }),
        }
    }

    /// The block of entry `index`, if it exists.
    #[inline]
    pub(crate) fn block(&self, index: u64) -> Option<&T> {
        if index >= self.entries {
            return None;
        }
        let mut level = &self.root;
        let mut shift = self.root_shift;
        let mut slot = (index >> shift) as usize;
        loop {
            match level {
                Level::Blocks(blocks) => return blocks.get(slot)?.get(),
                Level::Branches(branches) => {
                    level = branches.get(slot)?.get()?;
                    shift -= FAN_BITS;
                    slot = (index >> shift) as usize & ((1 << FAN_BITS) - 1);
                }
            }
        }
    }

    /// Calls `visit` with each existing block that intersects `[first, first + count)`: index of its first entry, offsets
    /// in range, block. A range beyond the table ends with the table.
    pub(crate) fn visit<E>(
        &self,
        first: u64,
        count: u64,
        mut visit: impl FnMut(u64, Range<usize>, &T) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(last) = first.saturating_add(count).min(self.entries).checked_sub(1) else { return Ok(()) };
        if first > last {
            return Ok(());
        }
        if first >> BLOCK == last >> BLOCK {
            let base = first & !((1 << BLOCK) - 1);
            return match self.block(first) {
                Some(block) => visit(base, Self::offset(first)..Self::offset(last) + 1, block),
                None => Ok(()),
            };
        }
        self.root.walk(self.root_shift, 0, first, last, &mut visit)
    }

    /// Bytes taken: the array's own, and `of_block` of each block.
    pub(crate) fn memory_bytes(&self, of_block: impl Fn(&T) -> u64) -> u64 {
        self.root.memory_bytes(&of_block)
    }
}

impl<T: Send + Sync, const BLOCK: u32> Sparse<T, BLOCK> {
    /// The block of entry `index`, created with `make` if it is missing.
    pub(crate) fn block_or_make(
        &self,
        index: u64,
        make: impl FnOnce() -> Result<T, OutOfMemory>,
    ) -> Result<&T, TableError> {
        self.check(index, 1)?;
        let mut level = &self.root;
        let mut shift = self.root_shift;
        let mut slot = (index >> shift) as usize;
        loop {
            match level {
                Level::Blocks(blocks) => {
                    return match blocks[slot].get() {
                        Some(block) => Ok(block),
                        None => Ok(blocks[slot].publish(make()?)?),
                    };
                }
                Level::Branches(branches) => {
                    shift -= FAN_BITS;
                    level = match branches[slot].get() {
                        Some(level) => level,
                        None => {
                            let below = (shift - BLOCK) / FAN_BITS;
                            branches[slot].publish(Level::new(below, 1 << FAN_BITS)?)?
                        }
                    };
                    slot = (index >> shift) as usize & ((1 << FAN_BITS) - 1);
                }
            }
        }
    }
}

impl<T> Level<T> {
    /// A level of `slots` slots, `below` levels above the blocks.
    fn new(below: u32, slots: usize) -> Result<Self, OutOfMemory> {
        Ok(if below == 0 { Self::Blocks(empty_slots(slots)?) } else { Self::Branches(empty_slots(slots)?) })
    }

    /// Visits `first..=last`, both in this level, whose first entry is `base`.
    fn walk<E>(
        &self,
        shift: u32,
        base: u64,
        first: u64,
        last: u64,
        visit: &mut impl FnMut(u64, Range<usize>, &T) -> Result<(), E>,
    ) -> Result<(), E> {
        let slots = ((first - base) >> shift) as usize..=((last - base) >> shift) as usize;
        let clip = |slot: usize| {
            let start = base + ((slot as u64) << shift);
            (start, first.max(start), last.min(start + ((1 << shift) - 1)))
        };
        match self {
            Self::Blocks(blocks) => {
                for slot in slots {
                    if let Some(block) = blocks[slot].get() {
                        let (start, from, to) = clip(slot);
                        visit(start, (from - start) as usize..(to - start) as usize + 1, block)?;
                    }
                }
            }
            Self::Branches(branches) => {
                for slot in slots {
                    if let Some(level) = branches[slot].get() {
                        let (start, from, to) = clip(slot);
                        level.walk(shift - FAN_BITS, start, from, to, visit)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn memory_bytes(&self, of_block: &impl Fn(&T) -> u64) -> u64 {
        match self {
            Self::Blocks(blocks) => {
                let made = blocks.iter().filter_map(Published::get);
                size_of_val(&**blocks) as u64 + made.map(of_block).sum::<u64>()
            }
            Self::Branches(branches) => {
                let made = branches.iter().filter_map(Published::get);
                let below = made.map(|level| size_of_val(level) as u64 + level.memory_bytes(of_block));
                size_of_val(&**branches) as u64 + below.sum::<u64>()
            }
        }
    }
}

fn empty_slots<T>(slots: usize) -> Result<Box<[Published<T>]>, OutOfMemory> {
    let mut all = Vec::new();
    all.try_reserve_exact(slots).map_err(|_| OutOfMemory)?;
    all.resize_with(slots, Published::empty);
    Ok(all.into_boxed_slice())
}

impl<T, const BLOCK: u32> fmt::Debug for Sparse<T, BLOCK> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sparse").field("entries", &self.entries).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
