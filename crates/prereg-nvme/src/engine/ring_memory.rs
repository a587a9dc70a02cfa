//! Guest memory that is held for long: queues and shadow doorbells.
//!
//! [`RingMemory`] is held from its first use until the unmap of its range is announced. The next use holds it again, if it is
//! mapped again.

use prereg::{Access, Iova};

use super::memory::{GuestMemory, Unreachable};

/// A range of guest memory that is usually held.
#[derive(Debug)]
pub(crate) struct RingMemory<M: GuestMemory> {
    iova: Iova,
    bytes: u64,
    access: Access,
    held: Option<M::Guard>,
    /// Held while an unmap was announced: released after the batch.
    release_after_batch: bool,
}

impl<M: GuestMemory> RingMemory<M> {
    /// A range that is held at its first use.
    pub(crate) fn new(iova: Iova, bytes: u64, access: Access) -> Self {
        Self { iova, bytes, access, held: None, release_after_batch: false }
    }

    /// The memory, held now if it was not.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub(crate) fn hold(&mut self, memory: &M) -> Result<&M::Guard, Unreachable> {
        if self.held.is_none() {
            // Asked before the memory is held: a later announcement finds this range in the list.
            self.release_after_batch = !memory.may_keep_holds();
            self.held = Some(memory.hold(self.iova, self.bytes, self.access)?);
        }
        self.held.as_ref().ok_or(Unreachable)
    }

    /// Ends a batch: releases a hold that may not be kept.
    pub(crate) fn end_batch(&mut self) {
        if self.release_after_batch {
            self.release();
        }
    }

    /// Releases the hold.
    pub(crate) fn release(&mut self) {
        self.held = None;
        self.release_after_batch = false;
    }

    /// Releases the hold if the range intersects `bytes` at `iova`; 0 bytes are all memory.
    pub(crate) fn release_in(&mut self, iova: Iova, bytes: u64) {
        if intersects((self.iova, self.bytes), (iova, bytes)) {
            self.release();
        }
    }
}

/// Whether two ranges intersect; one of 0 bytes is all memory. Sums saturate.
pub(crate) fn intersects(one: (Iova, u64), other: (Iova, u64)) -> bool {
    if one.1 == 0 || other.1 == 0 {
        return true;
    }
    let last = |(iova, bytes): (Iova, u64)| iova.raw().saturating_add(bytes - 1);
    one.0.raw() <= last(other) && other.0.raw() <= last(one)
}

#[cfg(test)]
mod tests {
    use super::intersects;
    use prereg::Iova;

    #[test]
    fn ranges_that_only_touch_do_not_intersect() {
        let at = |iova: u64, bytes: u64| (Iova::new(iova), bytes);
        assert!(!intersects(at(0x1000, 0x1000), at(0x2000, 0x1000)));
        assert!(intersects(at(0x1000, 0x1001), at(0x2000, 0x1000)));
        assert!(intersects(at(0, u64::MAX), at(0x2000, 1)));
        assert!(intersects(at(u64::MAX, 1), at(u64::MAX - 1, 2)), "a range up to 2^64");
        assert!(intersects(at(0, 0), at(5, 1)), "no bytes are everything");
    }
}
