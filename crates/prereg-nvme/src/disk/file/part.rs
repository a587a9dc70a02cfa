//! A part of a request: one entry of the ring.

use std::sync::Arc;

use prereg::Errno;
use prereg_linux::Transfer;

use crate::disk::{DiskFault, Segment};

/// The guest memory of a request, kept by each of its parts.
pub(super) type Data = Arc<Vec<Segment>>;

/// One entry of the ring, before, in and after it.
pub(super) struct Part {
    pub(super) key: usize,
    pub(super) data: Data,
    pub(super) op: PartOp,
    pub(super) tries: u8,
}

/// What a part does.
#[derive(Clone, Copy)]
pub(super) enum PartOp {
    /// ZeroCopy between file and guest.
    ZeroCopy(Transfer),
    /// Between file and buffer; `from` bytes of it are done.
    Bounce { transfer: Transfer, from: usize },
    /// Zeros from a buffer, `left` bytes more.
    WriteZeros { at: u64, left: u64 },
    /// `fallocate`.
    Fallocate { mode: i32, at: u64, bytes: u64 },
    /// `fdatasync`.
    Sync,
}

/// Where in the file.
pub(super) const fn offset_of(transfer: Transfer) -> u64 {
    match transfer {
        Transfer::Read(offset) | Transfer::Write(offset) | Transfer::WriteDurable(offset) => offset,
    }
}

/// The same, `by` bytes further on.
pub(super) const fn advanced(transfer: Transfer, by: u64) -> Transfer {
    match transfer {
        Transfer::Read(offset) => Transfer::Read(offset + by),
        Transfer::Write(offset) => Transfer::Write(offset + by),
        Transfer::WriteDurable(offset) => Transfer::WriteDurable(offset + by),
    }
}

/// What the kernel's refusal caps to the guest.
pub(super) fn fault_of(errno: Errno) -> DiskFault {
    match errno.raw() {
        // Not EFBIG: no file grows here, so that is a limit of this process or of the file system, a fault of the host.
        libc::ENOSPC | libc::EDQUOT => DiskFault::NoSpace,
        libc::EROFS => DiskFault::ReadOnly,
        _ => DiskFault::Io(errno),
    }
}

/// Guest memory was not there: its hold knows best why.
pub(super) fn memory_fault(data: &[Segment]) -> DiskFault {
    let mut byte = [0];
    data.iter()
        .flat_map(|segment| [(segment, segment.offset), (segment, segment.offset + segment.bytes - 1)])
        .find_map(|(segment, at)| segment.hold.read(at, &mut byte).err())
        .map_or(DiskFault::Io(Errno::EFAULT), DiskFault::Data)
}
