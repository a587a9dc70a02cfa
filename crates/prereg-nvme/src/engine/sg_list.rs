//! The memory of a command's data, as PRPs and SGLs describe it.

use prereg::Iova;

/// A segment of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SgEntry {
    /// Guest memory.
    Memory {
        /// Address.
        iova: Iova,
        /// Length.
        bytes: u64,
    },
    /// Data that a read leaves out (an SGL bit bucket).
    BitBucket {
        /// Length.
        bytes: u64,
    },
}

/// The segments of a transfer, in order; adjacent ones are merged.
#[derive(Clone, Default, Debug)]
pub struct SgList {
    list: Vec<SgEntry>,
    bytes: u64,
}

impl SgList {
    /// Empties the list and keeps its allocation.
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    /// The segments.
    #[must_use]
    pub fn entries(&self) -> &[SgEntry] {
        &self.list
    }

    /// Their total length.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends guest memory.
    pub fn push_memory(&mut self, iova: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.bytes += bytes;
        if let Some(SgEntry::Memory { iova: first, bytes: so_far }) = self.list.last_mut() {
            if first.raw().checked_add(*so_far) == Some(iova) {
                *so_far += bytes;
                return;
            }
        }
        self.list.push(SgEntry::Memory { iova: Iova::new(iova), bytes });
    }

    /// Appends a bit bucket.
    pub fn push_bit_bucket(&mut self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.bytes += bytes;
        if let Some(SgEntry::BitBucket { bytes: so_far }) = self.list.last_mut() {
            *so_far += bytes;
            return;
        }
        self.list.push(SgEntry::BitBucket { bytes });
    }
}
