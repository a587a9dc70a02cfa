//! What is to be seen of a device's address space: plain data.

use alloc::vec::Vec;

use prereg::{Access, Iova};

/// A device's address space as it was at some moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct IovaState {
    /// Live mappings.
    pub mappings: u64,
    /// Bytes they cover. At most 2^64, so it does not fit 64 bits.
    pub bytes: u128,
    /// Pieces of registered memory that the mappings lead to, live or closing.
    pub pieces: u64,
    /// Accesses under way in live mappings.
    pub accesses: u64,
    /// Mappings that were unmapped and wait for their accesses.
    pub closing: Vec<ClosingState>,
}

/// A mapping that was unmapped and waits for its accesses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ClosingState {
    /// Where it was.
    pub iova: Iova,
    /// How long it was.
    pub bytes: u64,
    /// What it allowed.
    pub access: Access,
    /// Accesses that hold it.
    pub accesses: u64,
}
