//! Where a command's data are, as a list of runs: what PRPs and SGLs come down to.

use prereg::Iova;

/// A piece of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Run {
    /// Guest memory.
    Memory {
        /// Where.
        iova: Iova,
        /// How much.
        bytes: u64,
    },
    /// Data that a read leaves out (an SGL bit bucket).
    Bucket {
        /// How much.
        bytes: u64,
    },
}

/// The pieces of one transfer, in order; what touches is one piece.
#[derive(Clone, Default, Debug)]
pub struct Runs {
    list: Vec<Run>,
    bytes: u64,
}

impl Runs {
    /// Empties the list and keeps its room.
    pub fn clear(&mut self) {
        self.list.clear();
        self.bytes = 0;
    }

    /// The pieces.
    #[must_use]
    pub fn list(&self) -> &[Run] {
        &self.list
    }

    /// Their length together.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Appends guest memory.
    pub fn memory(&mut self, iova: u64, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.bytes += bytes;
        if let Some(Run::Memory { iova: first, bytes: so_far }) = self.list.last_mut() {
            if first.raw().checked_add(*so_far) == Some(iova) {
                *so_far += bytes;
                return;
            }
        }
        self.list.push(Run::Memory { iova: Iova::new(iova), bytes });
    }

    /// Appends data to leave out.
    pub fn bucket(&mut self, bytes: u64) {
        if bytes == 0 {
            return;
        }
        self.bytes += bytes;
        if let Some(Run::Bucket { bytes: so_far }) = self.list.last_mut() {
            *so_far += bytes;
            return;
        }
        self.list.push(Run::Bucket { bytes });
    }
}
