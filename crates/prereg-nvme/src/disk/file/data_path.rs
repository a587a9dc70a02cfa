//! Chooses how a request's data move. It moves nothing itself.

use prereg_linux::{IoSegment, IoSegments, SlotAddress};
use prereg_vfio_user::server::DmaSegment;

use crate::disk::system::Alignment;
use crate::disk::{DiskFault, Segment};

/// How the data of a request move.
#[derive(Debug)]
pub(super) enum DataPath {
    /// Without a copy: transfers, each with its offset in the request.
    ZeroCopy(Vec<(u64, IoSegments)>),
    /// Through a bounce buffer.
    Bounce {
        /// Some of the memory can only be reached by the client, so the copy may take long.
        remote: bool,
    },
}

/// Capabilities of the queue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    /// The alignment that direct I/O requires; `None`: none.
    pub(super) direct: Option<Alignment>,
    /// Host addresses are slots of fixed buffers.
    pub(super) slots: bool,
    /// Several segments of one slot can be one transfer.
    pub(super) vectored: bool,
}

/// Chooses for segments that `bytes_of` has checked.
///
/// # Errors
/// [`DiskFault::Range`] when a hold is shorter than it says.
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
    /// The offset in the request of the next segment.
    at: u64,
    caps: Caps,
}

impl Transfers {
    /// Adds `bytes` of `piece` from `skip` on. `false`: direct I/O does not accept its alignment.
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
