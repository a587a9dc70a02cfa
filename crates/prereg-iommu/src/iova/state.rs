//! Snapshots of a device's address space, as plain data.

use alloc::vec::Vec;

use prereg::{Access, Iova};

/// A snapshot of a device's address space.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct IovaState {
    /// Live mappings.
    pub mappings: u64,
    /// Bytes they cover: at most 2^64, hence 128 bits.
    pub bytes: u128,
    /// Segments of registered memory of live and closing mappings.
    pub segments: u64,
    /// Accesses under way in live mappings.
    pub accesses: u64,
    /// Unmapped mappings that wait for accesses.
    pub closing: Vec<ClosingState>,
}

/// An unmapped mapping that waits for accesses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ClosingState {
    /// The start.
    pub iova: Iova,
    /// The length.
    pub bytes: u64,
    /// The access it allowed.
    pub access: Access,
    /// Accesses that hold it.
    pub accesses: u64,
}
