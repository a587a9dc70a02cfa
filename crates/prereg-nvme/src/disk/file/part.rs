//! A part of a request: one SQE.

use std::sync::Arc;

use prereg::Errno;
use prereg_linux::Transfer;

use crate::disk::{DiskFault, Segment};

/// The guest memory of a request; each of its parts keeps it held.
pub(super) type Data = Arc<Vec<Segment>>;

/// One SQE, before, during and after its execution.
pub(super) struct Part {
    pub(super) key: usize,
    pub(super) data: Data,
    pub(super) op: PartOp,
    pub(super) tries: u8,
}

/// The operation of a part.
#[derive(Clone, Copy)]
pub(super) enum PartOp {
    /// Between file and guest memory.
    ZeroCopy(Transfer),
    /// Between file and bounce buffer; `from` bytes of it are done.
    Bounce { transfer: Transfer, from: usize },
    /// Writes zeros from a buffer, `left` bytes more.
    WriteZeros { at: u64, left: u64 },
    /// `fallocate`.
    Fallocate { mode: i32, at: u64, bytes: u64 },
    /// `fdatasync`.
    Sync,
}

/// The offset in the file.
pub(super) const fn offset_of(transfer: Transfer) -> u64 {
    match transfer {
        Transfer::Read(offset) | Transfer::Write(offset) | Transfer::WriteDurable(offset) => offset,
    }
}

/// `transfer` at an offset that is `by` bytes higher.
pub(super) const fn advanced(transfer: Transfer, by: u64) -> Transfer {
    match transfer {
        Transfer::Read(offset) => Transfer::Read(offset + by),
        Transfer::Write(offset) => Transfer::Write(offset + by),
        Transfer::WriteDurable(offset) => Transfer::WriteDurable(offset + by),
    }
}

/// The fault for an error of the kernel.
pub(super) fn fault_of(errno: Errno) -> DiskFault {
    match errno.raw() {
        // Not EFBIG: files do not grow here, so it is a limit of this process or of the file system, an error of the host.
        libc::ENOSPC | libc::EDQUOT => DiskFault::NoSpace,
        libc::EROFS => DiskFault::ReadOnly,
        _ => DiskFault::Io(errno),
    }
}

/// The fault for guest memory that was not mapped, from a read through its hold.
pub(super) fn memory_fault(data: &[Segment]) -> DiskFault {
    let mut byte = [0];
    data.iter()
        .flat_map(|segment| [(segment, segment.offset), (segment, segment.offset + segment.bytes - 1)])
        .find_map(|(segment, at)| segment.hold.read(at, &mut byte).err())
        .map_or(DiskFault::Io(Errno::EFAULT), DiskFault::Data)
}
