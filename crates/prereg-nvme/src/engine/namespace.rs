//! Namespaces: sizes and permissions. The data are in disks.

use std::sync::atomic::{AtomicU64, Ordering};

/// One namespace. Its identifier is its index in [`Namespaces`], plus 1.
#[derive(Debug)]
pub struct Namespace {
    bytes: AtomicU64,
    block_shift: u8,
    read_only: bool,
    discard_zeroes: bool,
    uuid: [u8; 16],
}

impl Namespace {
    /// `bytes` in blocks of `1 << block_shift`.
    #[must_use]
    pub fn new(bytes: u64, block_shift: u8, uuid: [u8; 16]) -> Self {
        Self { bytes: AtomicU64::new(bytes), block_shift, read_only: false, discard_zeroes: false, uuid }
    }

    /// Makes it write protected.
    #[must_use]
    pub fn write_protected(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Makes its deallocated blocks read zero.
    #[must_use]
    pub fn zero_when_deallocated(mut self) -> Self {
        self.discard_zeroes = true;
        self
    }

    /// The size in whole blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        // Relaxed: a single number; an event reports its changes.
        self.bytes.load(Ordering::Relaxed) >> self.block_shift
    }

    /// The block size as a shift: 9 or 12.
    #[must_use]
    pub const fn block_shift(&self) -> u8 {
        self.block_shift
    }

    /// Whether it is write protected.
    pub(crate) const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether deallocated blocks read zero.
    pub(crate) const fn zeroes_deallocated(&self) -> bool {
        self.discard_zeroes
    }

    /// Its UUID.
    #[must_use]
    pub const fn uuid(&self) -> &[u8; 16] {
        &self.uuid
    }

    /// Sets the size; returns whether it changed.
    pub fn resize(&self, bytes: u64) -> bool {
        // Relaxed: see `blocks`.
        self.bytes.swap(bytes, Ordering::Relaxed) != bytes
    }
}

/// All namespaces of a controller. All are active, and the list never changes.
#[derive(Debug)]
pub struct Namespaces {
    list: Vec<Namespace>,
}

impl Namespaces {
    /// The most namespaces of a controller.
    pub const MAX: usize = 256;

    /// Namespaces 1, 2, ... in this order; those beyond [`MAX`](Self::MAX) are dropped.
    #[must_use]
    pub fn new(mut list: Vec<Namespace>) -> Self {
        list.truncate(Self::MAX);
        Self { list }
    }

    /// The number of namespaces, which is also the largest identifier.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.list.len() as u32
    }

    /// Namespace `nsid`.
    #[must_use]
    pub fn find(&self, nsid: u32) -> Option<&Namespace> {
        self.list.get(nsid.checked_sub(1)? as usize)
    }

    /// The identifiers above `nsid`, in order.
    pub(crate) fn above(&self, nsid: u32) -> impl Iterator<Item = u32> + '_ {
        (1..=self.count()).filter(move |one| *one > nsid)
    }

    /// All namespaces with their identifiers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Namespace)> {
        (1..).zip(&self.list)
    }
}
