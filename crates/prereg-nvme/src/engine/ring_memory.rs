//! Guest memory that is used for long: queues and shadow doorbells.
//!
//! A [`RingMemory`] holds its memory from the first use on, and gives it back when it is told that the memory goes. The next use
//! holds it again, if it is there again.

use prereg::{Access, Iova};

use super::memory::{GuestMemory, Unreachable};

/// A range of guest memory and, most of the time, a hold of it.
#[derive(Debug)]
pub struct RingMemory<M: GuestMemory> {
    iova: Iova,
    bytes: u64,
    access: Access,
    held: Option<M::Guard>,
    /// Taken while memory was going: not to be kept beyond the batch.
    release_after_batch: bool,
}

impl<M: GuestMemory> RingMemory<M> {
    /// Of a range that is held at its first use.
    pub fn new(iova: Iova, bytes: u64, access: Access) -> Self {
        Self { iova, bytes, access, held: None, release_after_batch: false }
    }

    /// The memory, held now if it was not.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn hold(&mut self, memory: &M) -> Result<&M::Guard, Unreachable> {
        if self.held.is_none() {
            // Asked before the hold is taken: an announcement that comes after this question finds the window in its list.
            self.release_after_batch = !memory.may_keep_holds();
            self.held = Some(memory.hold(self.iova, self.bytes, self.access)?);
        }
        self.held.as_ref().ok_or(Unreachable)
    }

    /// The end of a batch: a hold that may not be kept is given back.
    pub fn end_batch(&mut self) {
        if self.release_after_batch {
            self.release();
        }
    }

    /// Gives the hold back.
    pub fn release(&mut self) {
        self.held = None;
        self.release_after_batch = false;
    }

    /// Gives the hold back if the window lies, in part, in what goes; 0 bytes are everything.
    pub fn release_in(&mut self, iova: Iova, bytes: u64) {
        if intersects((self.iova, self.bytes), (iova, bytes)) {
            self.release();
        }
    }

    /// Where it lies, and how long it is.
    pub fn range(&self) -> (Iova, u64) {
        (self.iova, self.bytes)
    }
}

/// Whether two ranges have a byte in common; one of 0 bytes is everything. No sum of start and length wraps here.
#[must_use]
pub fn intersects(one: (Iova, u64), other: (Iova, u64)) -> bool {
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
