//! Submission queue entries of transfers.

use io_uring::opcode;
use io_uring::squeue::Entry;
use io_uring::types::Fixed;

use crate::sys::Buffer;

/// The file, as registered with the ring.
pub(super) const FILE: Fixed = Fixed(0);

/// Direction and file offset of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transfer {
    /// Reads from this offset.
    Read(u64),
    /// Writes at this offset.
    Write(u64),
    /// Like `Write`, and durable when completed (`RWF_DSYNC`).
    WriteDurable(u64),
}

/// An entry for `bytes` bytes at `ua`, through fixed buffer `slot` if there is one.
pub(super) fn sqe_for_buffer(transfer: Transfer, slot: Option<u16>, ua: u64, bytes: u32) -> Entry {
    let at = ua as *mut u8;
    match (transfer, slot) {
        (Transfer::Read(offset), None) => opcode::Read::new(FILE, at, bytes).offset(offset).build(),
        (Transfer::Read(offset), Some(slot)) => {
            opcode::ReadFixed::new(FILE, at, bytes, slot).offset(offset).build()
        }
        (Transfer::Write(offset) | Transfer::WriteDurable(offset), None) => {
            opcode::Write::new(FILE, at, bytes).offset(offset).rw_flags(durability(transfer)).build()
        }
        (Transfer::Write(offset) | Transfer::WriteDurable(offset), Some(slot)) => {
            opcode::WriteFixed::new(FILE, at, bytes, slot)
                .offset(offset)
                .rw_flags(durability(transfer))
                .build()
        }
    }
}

/// An entry for a list of segments, which the kernel reads at submission.
pub(super) fn sqe_for_list(transfer: Transfer, slot: Option<u16>, list: &[Buffer]) -> Entry {
    let (at, len) = (list.as_ptr().cast::<libc::iovec>(), list.len() as u32);
    match (transfer, slot) {
        (Transfer::Read(offset), None) => opcode::Readv::new(FILE, at, len).offset(offset).build(),
        (Transfer::Read(offset), Some(slot)) => {
            opcode::ReadvFixed::new(FILE, at, len, slot).offset(offset).build()
        }
        (Transfer::Write(offset) | Transfer::WriteDurable(offset), None) => {
            opcode::Writev::new(FILE, at, len).offset(offset).rw_flags(durability(transfer)).build()
        }
        (Transfer::Write(offset) | Transfer::WriteDurable(offset), Some(slot)) => {
            opcode::WritevFixed::new(FILE, at, len, slot)
                .offset(offset)
                .rw_flags(durability(transfer))
                .build()
        }
    }
}

const fn durability(transfer: Transfer) -> i32 {
    match transfer {
        Transfer::WriteDurable(_) => libc::RWF_DSYNC,
        Transfer::Read(_) | Transfer::Write(_) => 0,
    }
}
