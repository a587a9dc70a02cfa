//! Scatter-gather lists of guest memory.

use prereg::UserAddr;

use crate::frames::SlotAddress;

/// A contiguous part of guest memory. It may be mapped twice: where it is registered and where system calls copy.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoSegment {
    /// The first byte at its registered address, for fixed buffers.
    pub ua: UserAddr,
    /// The first byte at its address for plain system calls; often equal to `ua`.
    pub plain: UserAddr,
    /// The length.
    pub bytes: u64,
}

/// Guest memory of one transfer: its segments in order, and the slot that contains all of them, if there is one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoSegments {
    slot: Option<SlotAddress>,
    list: List,
}

/// Avoids an allocation for the usual case of one segment.
#[derive(Clone, PartialEq, Eq, Debug)]
enum List {
    One(IoSegment),
    Many(Vec<IoSegment>),
}

impl IoSegments {
    /// `IOV_MAX`.
    const MAX: usize = 1024;

    /// One segment; `slot` is the slot that contains it.
    #[must_use]
    pub const fn new(slot: Option<SlotAddress>, segment: IoSegment) -> Self {
        Self { slot, list: List::One(segment) }
    }

    /// Appends a segment of the same slot. `false` when there are `IOV_MAX` already.
    #[must_use]
    pub fn push(&mut self, segment: IoSegment) -> bool {
        match &mut self.list {
            List::One(first) => self.list = List::Many(vec![*first, segment]),
            List::Many(list) if list.len() < Self::MAX => list.push(segment),
            List::Many(_) => return false,
        }
        true
    }

    /// The slot.
    #[must_use]
    pub const fn slot(&self) -> Option<SlotAddress> {
        self.slot
    }

    /// Makes the transfer a plain one.
    pub fn clear_slot(&mut self) {
        self.slot = None;
    }

    /// The segments in order.
    #[must_use]
    pub fn as_slice(&self) -> &[IoSegment] {
        match &self.list {
            List::One(segment) => std::slice::from_ref(segment),
            List::Many(list) => list,
        }
    }

    /// Total bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.as_slice().iter().fold(0, |sum, segment| sum.saturating_add(segment.bytes))
    }

    /// Removes the first `bytes` bytes, which have been transferred: fewer than the total.
    pub fn advance(&mut self, bytes: u64) {
        let mut left = bytes;
        let rest: Vec<_> = self
            .as_slice()
            .iter()
            .filter_map(|segment| {
                let off = left.min(segment.bytes);
                left -= off;
                let moved = |at: UserAddr| UserAddr::new(at.raw().wrapping_add(off));
                (off < segment.bytes).then(|| IoSegment {
                    ua: moved(segment.ua),
                    plain: moved(segment.plain),
                    bytes: segment.bytes - off,
                })
            })
            .collect();
        self.list = match rest[..] {
            [segment] => List::One(segment),
            _ => List::Many(rest),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(at: u64, bytes: u64) -> IoSegment {
        IoSegment { ua: UserAddr::new(at), plain: UserAddr::new(at + (1 << 40)), bytes }
    }

    #[test]
    fn what_is_done_is_left_off_across_pieces() {
        let mut segments = IoSegments::new(None, segment(0x1000, 512));
        assert!(segments.push(segment(0x8000, 4096)) && segments.push(segment(0x2000, 1024)));
        assert_eq!(segments.bytes(), 5632);
        segments.advance(100);
        assert_eq!(segments.as_slice()[0], segment(0x1064, 412));
        segments.advance(412);
        assert_eq!(segments.as_slice(), [segment(0x8000, 4096), segment(0x2000, 1024)]);
        segments.advance(5000);
        assert_eq!(segments.as_slice(), [segment(0x2388, 120)]);
        assert_eq!(segments.bytes(), 120);
    }

    #[test]
    fn a_list_ends_where_the_kernel_ends_it() {
        let mut segments = IoSegments::new(None, segment(0, 512));
        for at in 1..IoSegments::MAX {
            assert!(segments.push(segment(at as u64 * 4096, 512)));
        }
        assert!(!segments.push(segment(0, 512)));
        assert_eq!(segments.as_slice().len(), IoSegments::MAX);
    }
}
