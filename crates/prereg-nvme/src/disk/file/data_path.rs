//! Decides how the data of a request reach guest memory. Looks and answers, moves nothing.

use prereg_linux::{IoSegment, IoSegments, SlotAddress};
use prereg_vfio_user::server::DmaSegment;

use crate::disk::system::Alignment;
use crate::disk::{DiskFault, Segment};

/// How the data of a request move.
#[derive(Debug)]
pub(super) enum DataPath {
    /// ZeroCopy: transfers, each with its offset in the request.
    ZeroCopy(Vec<(u64, IoSegments)>),
    /// Through a buffer of ours.
    Bounce {
        /// Some of the memory is the client's alone: copying can take as long as the client likes.
        remote: bool,
    },
}

/// What the queue can do.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    /// What direct I/O demands; `None`: nothing.
    pub(super) direct: Option<Alignment>,
    /// Host addresses name slots of fixed buffers.
    pub(super) slots: bool,
    /// Several pieces of one slot can be one transfer.
    pub(super) vectored: bool,
}

/// Plans for segments that `bytes_of` found sound.
///
/// # Errors
/// [`DiskFault::Range`] when a hold has fewer bytes than it says.
pub(super) fn choose(data: &[Segment], caps: Caps) -> Result<DataPath, DiskFault> {
    let remote = data.iter().any(|segment| !segment.hold.is_local());
    if remote {
        return Ok(DataPath::Bounce { remote });
    }
    let mut transfers = Transfers { list: Vec::with_capacity(1), at: 0, caps };
    for segment in data {
        let (mut skip, mut left) = (segment.offset, segment.bytes);
        for piece in segment.hold.pieces() {
            if left == 0 {
                break;
            }
            if skip >= piece.bytes {
                skip -= piece.bytes;
                continue;
            }
            let bytes = left.min(piece.bytes - skip);
            if !transfers.add(piece, skip, bytes) {
                return Ok(DataPath::Bounce { remote: false });
            }
            (skip, left) = (0, left - bytes);
        }
        if left > 0 {
            return Err(DiskFault::Range);
        }
    }
    Ok(DataPath::ZeroCopy(transfers.list))
}

struct Transfers {
    list: Vec<(u64, IoSegments)>,
    /// Where in the request the next piece begins.
    at: u64,
    caps: Caps,
}

impl Transfers {
    /// Adds `bytes` of `piece` from `skip` on. `false`: direct I/O would refuse it.
    fn add(&mut self, piece: DmaSegment, skip: u64, bytes: u64) -> bool {
        let moved = |at: prereg::UserAddr| prereg::UserAddr::new(at.raw().wrapping_add(skip));
        let part = IoSegment { ua: moved(piece.ua), plain: moved(piece.copy), bytes };
        if let Some(demand) = self.caps.direct {
            let memory = part.ua.raw() | part.plain.raw();
            if memory % demand.memory != 0 || bytes % demand.offset != 0 {
                return false;
            }
        }
        let slot = self.caps.slots.then(|| SlotAddress::of(piece.host)).flatten();
        let number = |slot: Option<SlotAddress>| slot.map(|slot| slot.slot);
        let joined = self.list.last_mut().is_some_and(|(_, last)| {
            number(last.slot()) == number(slot) && (slot.is_none() || self.caps.vectored) && last.push(part)
        });
        if !joined {
            self.list.push((self.at, IoSegments::new(slot, part)));
        }
        self.at += bytes;
        true
    }
}
