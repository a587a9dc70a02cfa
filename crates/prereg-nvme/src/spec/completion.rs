//! A completion queue entry (section 4.6): 16 bytes.

use super::status::Status;

/// A completion queue entry without its phase tag.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Completion {
    /// Command specific result, dword 0.
    pub result: u32,
    /// Submission queue head.
    pub sq_head: u16,
    /// Submission queue identifier.
    pub sq_id: u16,
    /// Command identifier.
    pub cid: u16,
    /// Status.
    pub status: Status,
}

impl Completion {
    /// The first three dwords, which are written before the last one.
    pub(crate) fn front(&self) -> [u8; 12] {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.result.to_le_bytes());
        bytes[8..10].copy_from_slice(&self.sq_head.to_le_bytes());
        bytes[10..].copy_from_slice(&self.sq_id.to_le_bytes());
        bytes
    }

    /// The last dword, whose phase tag makes the entry valid.
    #[must_use]
    pub const fn last(&self, phase: bool) -> u32 {
        self.cid as u32 | (self.status.bits() as u32) << 17 | (phase as u32) << 16
    }

    /// From a queue entry, and its phase tag.
    #[must_use]
    pub const fn from_bytes(bytes: &[u8; 16]) -> (Self, bool) {
        let status = u16::from_le_bytes([bytes[14], bytes[15]]);
        let completion = Self {
            result: u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
            sq_head: u16::from_le_bytes([bytes[8], bytes[9]]),
            sq_id: u16::from_le_bytes([bytes[10], bytes[11]]),
            cid: u16::from_le_bytes([bytes[12], bytes[13]]),
            status: Status::from_bits(status >> 1),
        };
        (completion, status & 1 == 1)
    }
}

#[cfg(test)]
mod tests {
    use super::Completion;
    use crate::spec::Status;

    #[test]
    fn an_entry_reads_as_it_was_written() {
        let completion =
            Completion { result: 0xdead_beef, sq_head: 3, sq_id: 9, cid: 0xffee, status: Status::LBA_RANGE };
        for phase in [false, true] {
            let mut bytes = [0; 16];
            bytes[..12].copy_from_slice(&completion.front());
            bytes[12..].copy_from_slice(&completion.last(phase).to_le_bytes());
            assert_eq!(Completion::from_bytes(&bytes), (completion, phase));
        }
    }
}
