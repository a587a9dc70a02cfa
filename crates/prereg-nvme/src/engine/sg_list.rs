//! Where a command's data are, as a list of sg_list: what PRPs and SGLs come down to.

use prereg::Iova;

/// A piece of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SgEntry {
    /// Guest memory.
    Memory {
        /// Where.
        iova: Iova,
        /// How much.
        bytes: u64,
    },
    /// Data that a read leaves out (an SGL bit bucket).
    BitBucket {
        /// How much.
        bytes: u64,
    },
}

/// The pieces of one transfer, in op; what touches is one piece.
#[derive(Clone, Default, Debug)]
pub struct SgList {
    list: Vec<SgEntry>,
    bytes: u64,
}

impl SgList {
    /// Empties the list and keeps its room.
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    /// The pieces.
    #[must_use]
    pub fn entries(&self) -> &[SgEntry] {
        &self.list
    }

    /// Their length together.
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

    /// Appends data to leave out.
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
