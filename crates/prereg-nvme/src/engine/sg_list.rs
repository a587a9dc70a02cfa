//! The memory of a command's data, as PRPs and SGLs describe it.

use prereg::Iova;

/// A segment of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SgEntry {
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
pub(crate) struct SgList {
    list: Vec<SgEntry>,
}

impl SgList {
    /// Empties the list and keeps its allocation.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
    }

    /// The segments.
    pub(crate) fn entries(&self) -> &[SgEntry] {
        &self.list
    }

    /// Appends guest memory.
    pub(crate) fn push_memory(&mut self, iova: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        if let Some(SgEntry::Memory { iova: first, bytes: so_far }) = self.list.last_mut() {
            if first.raw().checked_add(*so_far) == Some(iova) {
                *so_far += bytes;
                return;
            }
        }
        self.list.push(SgEntry::Memory { iova: Iova::new(iova), bytes });
    }

    /// Appends a bit bucket.
    pub(crate) fn push_bit_bucket(&mut self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        if let Some(SgEntry::BitBucket { bytes: so_far }) = self.list.last_mut() {
            *so_far += bytes;
            return;
        }
        self.list.push(SgEntry::BitBucket { bytes });
    }
}
