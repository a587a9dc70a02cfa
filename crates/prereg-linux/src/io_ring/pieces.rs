//! Guest memory for one transfer.

use prereg::UserAddr;

use crate::frames::SlotAddress;

/// A piece of guest memory. It may be mapped twice: where it is registered, and where whoever copies shall look.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoPiece {
    /// The first byte, by the address that the memory was registered with: fixed buffers are addressed so.
    pub ua: UserAddr,
    /// The first byte, by the address for plain system calls. Often the same.
    pub plain: UserAddr,
    /// The length.
    pub bytes: u64,
}

/// Guest memory for one transfer: pieces in order, and the slot that all of them lie in, if there is one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pieces {
    slot: Option<SlotAddress>,
    list: List,
}

/// One piece is the usual case and needs no list.
#[derive(Clone, PartialEq, Eq, Debug)]
enum List {
    One(IoPiece),
    Many(Vec<IoPiece>),
}

impl Pieces {
    /// Pieces a transfer may have: `IOV_MAX`.
    pub const MOST: usize = 1024;

    /// One piece; with a `slot` it lies in that slot.
    #[must_use]
    pub const fn new(slot: Option<SlotAddress>, piece: IoPiece) -> Self {
        Self { slot, list: List::One(piece) }
    }

    /// Adds a piece behind, in the same slot. `false` when there are [`MOST`](Self::MOST) already.
    #[must_use]
    pub fn push(&mut self, piece: IoPiece) -> bool {
        match &mut self.list {
            List::One(first) => self.list = List::Many(vec![*first, piece]),
            List::Many(list) if list.len() < Self::MOST => list.push(piece),
            List::Many(_) => return false,
        }
        true
    }

    /// The slot.
    #[must_use]
    pub const fn slot(&self) -> Option<SlotAddress> {
        self.slot
    }

    /// Forgets the slot: the transfer goes the plain way.
    pub fn go_plain(&mut self) {
        self.slot = None;
    }

    /// The pieces in order.
    #[must_use]
    pub fn as_slice(&self) -> &[IoPiece] {
        match &self.list {
            List::One(piece) => std::slice::from_ref(piece),
            List::Many(list) => list,
        }
    }

    /// Bytes of all of them.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.as_slice().iter().fold(0, |sum, piece| sum.saturating_add(piece.bytes))
    }

    /// Leaves off the first `bytes`, which are done: fewer than there are.
    pub fn advance(&mut self, bytes: u64) {
        let mut left = bytes;
        let rest: Vec<_> = self
            .as_slice()
            .iter()
            .filter_map(|piece| {
                let off = left.min(piece.bytes);
                left -= off;
                let moved = |at: UserAddr| UserAddr::new(at.raw().wrapping_add(off));
                (off < piece.bytes).then(|| IoPiece {
                    ua: moved(piece.ua),
                    plain: moved(piece.plain),
                    bytes: piece.bytes - off,
                })
            })
            .collect();
        self.list = match rest[..] {
            [piece] => List::One(piece),
            _ => List::Many(rest),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(at: u64, bytes: u64) -> IoPiece {
        IoPiece { ua: UserAddr::new(at), plain: UserAddr::new(at + (1 << 40)), bytes }
    }

    #[test]
    fn what_is_done_is_left_off_across_pieces() {
        let mut pieces = Pieces::new(None, piece(0x1000, 512));
        assert!(pieces.push(piece(0x8000, 4096)) && pieces.push(piece(0x2000, 1024)));
        assert_eq!(pieces.bytes(), 5632);
        pieces.advance(100);
        assert_eq!(pieces.as_slice()[0], piece(0x1064, 412));
        pieces.advance(412);
        assert_eq!(pieces.as_slice(), [piece(0x8000, 4096), piece(0x2000, 1024)]);
        pieces.advance(5000);
        assert_eq!(pieces.as_slice(), [piece(0x2388, 120)]);
        assert_eq!(pieces.bytes(), 120);
    }

    #[test]
    fn a_list_ends_where_the_kernel_ends_it() {
        let mut pieces = Pieces::new(None, piece(0, 512));
        for at in 1..Pieces::MOST {
            assert!(pieces.push(piece(at as u64 * 4096, 512)));
        }
        assert!(!pieces.push(piece(0, 512)));
        assert_eq!(pieces.as_slice().len(), Pieces::MOST);
    }
}
