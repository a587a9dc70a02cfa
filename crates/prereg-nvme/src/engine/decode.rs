//! Decodes an I/O command, and checks everything that can be checked without its data.

use super::namespace::{Namespace, Namespaces};
use super::sgl::BitBuckets;
use crate::disk::Operation;
use crate::spec::number::{BROADCAST, io};
use crate::spec::{Command, Status};

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    /// From the disk to guest memory.
    ToGuest,
    /// From guest memory.
    FromGuest,
}

impl Direction {
    /// How bit buckets are treated.
    pub(crate) const fn buckets(self) -> BitBuckets {
        match self {
            Self::ToGuest => BitBuckets::Count,
            Self::FromGuest => BitBuckets::Ignore,
        }
    }
}

/// A decoded I/O command.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum IoCommand {
    /// Transfers `bytes` between guest memory and the disk of namespace `nsid`.
    Transfer {
        /// The namespace.
        nsid: u32,
        /// The disk's operation.
        operation: Operation,
        /// The length, at least one block.
        bytes: u64,
        /// The direction.
        direction: Direction,
    },
    /// An operation without data, on one namespace or on all of them.
    NoData {
        /// The namespace; `None` for all.
        nsid: Option<u32>,
        /// The disk's operation.
        operation: Operation,
    },
    /// Deallocates ranges, which are in guest memory, 16 bytes each.
    Deallocate {
        /// The namespace.
        nsid: u32,
        /// The number of ranges.
        ranges: u64,
    },
    /// Nothing: the command is a hint.
    Nop,
}

/// The state that decoding depends on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DecodeContext<'a> {
    /// The namespaces.
    pub(crate) namespaces: &'a Namespaces,
    /// The most bytes of a transfer.
    pub(crate) max_transfer_bytes: u64,
    /// Whether the write cache is enabled.
    pub(crate) write_cache: bool,
}

const FUA: u32 = 1 << 30;
const DEALLOCATE: u32 = 1 << 25;
const DATASET_DEALLOCATE: u32 = 1 << 2;

/// Bytes of a range of Dataset Management (figure 352).
pub(crate) const RANGE_BYTES: u64 = 16;

/// Decodes `command`.
///
/// # Errors
/// The status to complete it with.
pub(crate) fn decode(command: &Command, context: DecodeContext<'_>) -> Result<IoCommand, Status> {
    if !matches!(
        command.opcode(),
        io::FLUSH | io::WRITE | io::READ | io::COMPARE | io::WRITE_ZEROES | io::DATASET
    ) {
        return Err(Status::INVALID_OPCODE);
    }
    if command.fuse() != 0 {
        return Err(Status::INVALID_FIELD);
    }
    if command.opcode() == io::FLUSH && command.nsid() == BROADCAST {
        return Ok(IoCommand::NoData { nsid: None, operation: Operation::Flush });
    }
    let nsid = command.nsid();
    let namespace = context.namespaces.find(nsid).ok_or(Status::INVALID_NAMESPACE)?;
    let is_change = matches!(command.opcode(), io::WRITE | io::WRITE_ZEROES | io::DATASET);
    if is_change && namespace.is_read_only() {
        return Err(Status::WRITE_PROTECTED);
    }
    match command.opcode() {
        io::FLUSH => Ok(IoCommand::NoData { nsid: Some(nsid), operation: Operation::Flush }),
        io::DATASET => Ok(if command.dword(11) & DATASET_DEALLOCATE != 0 {
            IoCommand::Deallocate { nsid, ranges: u64::from(command.dword(10) & 0xff) + 1 }
        } else {
            IoCommand::Nop
        }),
        opcode => blocks(command, opcode, nsid, namespace, context),
    }
}

/// Read, Write, Compare, Write Zeroes: a first block and a count.
fn blocks(
    command: &Command,
    opcode: u8,
    nsid: u32,
    namespace: &Namespace,
    context: DecodeContext<'_>,
) -> Result<IoCommand, Status> {
    let count = u64::from(command.dword(12) & 0xffff) + 1;
    let offset = locate(namespace, command.quad(10), count)?;
    let bytes = count << namespace.block_shift();
    if opcode != io::WRITE_ZEROES && bytes > context.max_transfer_bytes {
        return Err(Status::INVALID_FIELD);
    }
    // Without a write cache, every write is durable when it completes.
    let fua = command.dword(12) & FUA != 0 || !context.write_cache;
    Ok(match opcode {
        io::READ => IoCommand::Transfer {
            nsid,
            operation: Operation::Read { offset },
            bytes,
            direction: Direction::ToGuest,
        },
        io::WRITE => IoCommand::Transfer {
            nsid,
            operation: Operation::Write { offset, fua },
            bytes,
            direction: Direction::FromGuest,
        },
        io::COMPARE => IoCommand::Transfer {
            nsid,
            operation: Operation::Compare { offset },
            bytes,
            direction: Direction::FromGuest,
        },
        _ => IoCommand::NoData {
            nsid: Some(nsid),
            operation: Operation::WriteZeroes {
                offset,
                bytes,
                deallocate: command.dword(12) & DEALLOCATE != 0,
                fua,
            },
        },
    })
}

/// The byte offset of `count` blocks from `first`.
fn locate(namespace: &Namespace, first: u64, count: u64) -> Result<u64, Status> {
    let end = first.checked_add(count).ok_or(Status::LBA_RANGE)?;
    if end > namespace.blocks() {
        return Err(Status::LBA_RANGE);
    }
    Ok(first << namespace.block_shift())
}

/// The ranges of a Dataset Management command as `(offset, bytes)`, without empty ones.
///
/// # Errors
/// [`Status::LBA_RANGE`] when one is outside the namespace.
pub(crate) fn ranges(namespace: &Namespace, raw: &[u8]) -> Result<Vec<(u64, u64)>, Status> {
    let mut ranges = Vec::with_capacity(raw.len() / RANGE_BYTES as usize);
    for range in raw.chunks_exact(RANGE_BYTES as usize) {
        let (mut count, mut first) = ([0; 4], [0; 8]);
        count.copy_from_slice(&range[4..8]);
        first.copy_from_slice(&range[8..16]);
        let count = u64::from(u32::from_le_bytes(count));
        let offset = locate(namespace, u64::from_le_bytes(first), count)?;
        if count > 0 {
            ranges.push((offset, count << namespace.block_shift()));
        }
    }
    Ok(ranges)
}
