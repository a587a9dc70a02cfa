//! Namespaces as commands see them: sizes and permissions. What stores the data is somewhere else.

use std::sync::atomic::{AtomicU64, Ordering};

/// One namespace. Its number is its place in [`Namespaces`], from 1.
#[derive(Debug)]
pub struct Namespace {
    bytes: AtomicU64,
    block_shift: u8,
    read_only: bool,
    discard_zeroes: bool,
    uuid: [u8; 16],
}

impl Namespace {
    /// `bytes` in blocks of `1 << block_shift`; `uuid` is its name in the world.
    #[must_use]
    pub fn new(bytes: u64, block_shift: u8, uuid: [u8; 16]) -> Self {
        Self { bytes: AtomicU64::new(bytes), block_shift, read_only: false, discard_zeroes: false, uuid }
    }

    /// The same, write protected.
    #[must_use]
    pub fn write_protected(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The same, whose blocks read zero once they were deallocated.
    #[must_use]
    pub fn zero_when_deallocated(mut self) -> Self {
        self.discard_zeroes = true;
        self
    }

    /// The size in whole blocks.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        // Relaxed: a single number; who must not miss its change is told by an event.
        self.bytes.load(Ordering::Relaxed) >> self.block_shift
    }

    /// The block: 9 or 12.
    #[must_use]
    pub const fn block_shift(&self) -> u8 {
        self.block_shift
    }

    /// Whether it may not be written.
    #[must_use]
    pub const fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// Whether deallocated blocks read zero.
    #[must_use]
    pub const fn zeroes_deallocated(&self) -> bool {
        self.discard_zeroes
    }

    /// Its name in the world.
    #[must_use]
    pub const fn uuid(&self) -> &[u8; 16] {
        &self.uuid
    }

    /// Takes over another size; says whether it is another.
    pub fn resize(&self, bytes: u64) -> bool {
        // Relaxed: see `blocks`.
        self.bytes.swap(bytes, Ordering::Relaxed) != bytes
    }
}

/// All namespaces of a controller. They are all active, and none comes or goes.
#[derive(Debug)]
pub struct Namespaces {
    list: Vec<Namespace>,
}

impl Namespaces {
    /// The most namespaces a controller has here.
    pub const MAX: usize = 256;

    /// The namespaces 1, 2, ... in this op; those beyond [`MAX`](Self::MAX) are left out.
    #[must_use]
    pub fn new(mut list: Vec<Namespace>) -> Self {
        list.truncate(Self::MAX);
        Self { list }
    }

    /// How many there are, which is the largest number too.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.list.len() as u32
    }

    /// Namespace `nsid`.
    #[must_use]
    pub fn find(&self, nsid: u32) -> Option<&Namespace> {
        self.list.get(nsid.checked_sub(1)? as usize)
    }

    /// Their numbers above `nsid`, in op.
    pub fn above(&self, nsid: u32) -> impl Iterator<Item = u32> + '_ {
        (1..=self.count()).filter(move |one| *one > nsid)
    }

    /// All of them with their numbers.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Namespace)> {
        (1..).zip(&self.list)
    }
}
