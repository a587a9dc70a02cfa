//! A submission queue entry (section 4.2): 64 bytes, the same for all commands.

use super::number::SUBMISSION_BYTES;

/// A command as the guest wrote it, unchecked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Command {
    words: [u32; 16],
}

/// The data pointer of a command, by PSDT (bits 15:14 of dword 0).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DataPointer {
    /// Two PRP entries.
    Prp(u64, u64),
    /// One SGL descriptor: its address and its second quadword.
    Sgl(u64, u64),
    /// The reserved value of PSDT.
    Reserved,
}

impl Command {
    /// From a queue entry, little endian.
    pub(crate) fn from_bytes(bytes: &[u8; SUBMISSION_BYTES as usize]) -> Self {
        let mut words = [0; 16];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(4)) {
            *word = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self { words }
    }

    pub(crate) const fn opcode(&self) -> u8 {
        (self.words[0] & 0xff) as u8
    }

    /// Fused operation: 0 for none.
    pub(crate) const fn fuse(&self) -> u32 {
        self.words[0] >> 8 & 3
    }

    pub(crate) const fn cid(&self) -> u16 {
        (self.words[0] >> 16) as u16
    }

    pub(crate) const fn nsid(&self) -> u32 {
        self.words[1]
    }

    pub(crate) const fn data(&self) -> DataPointer {
        let first = self.quad(6);
        let second = self.quad(8);
        match self.words[0] >> 14 & 3 {
            0 => DataPointer::Prp(first, second),
            // They differ in the metadata pointer only, and there is no metadata.
            1 | 2 => DataPointer::Sgl(first, second),
            _ => DataPointer::Reserved,
        }
    }

    /// Command dword `at`, 0 to 15; 0 beyond.
    pub(crate) const fn dword(&self, at: usize) -> u32 {
        if at < 16 { self.words[at] } else { 0 }
    }

    /// Command dwords `at` and `at + 1`, the low one first.
    pub(crate) const fn quad(&self, at: usize) -> u64 {
        self.dword(at) as u64 | (self.dword(at + 1) as u64) << 32
    }
}

#[cfg(test)]
mod tests {
    use super::{Command, DataPointer};

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let mut bytes = [0u8; 64];
        bytes[0] = 0x02;
        bytes[1] = 0x41; // SGL, first of a fused pair
        bytes[2..4].copy_from_slice(&0x1234u16.to_le_bytes());
        bytes[4..8].copy_from_slice(&7u32.to_le_bytes());
        bytes[24..32].copy_from_slice(&0x1111_2222_3333_4444u64.to_le_bytes());
        bytes[32..40].copy_from_slice(&0x5555_6666_7777_8888u64.to_le_bytes());
        bytes[40..48].copy_from_slice(&0x9999_0000_aaaau64.to_le_bytes());
        let command = Command::from_bytes(&bytes);
        assert_eq!((command.opcode(), command.fuse(), command.cid(), command.nsid()), (2, 1, 0x1234, 7));
        assert_eq!(command.data(), DataPointer::Sgl(0x1111_2222_3333_4444, 0x5555_6666_7777_8888));
        assert_eq!(command.quad(10), 0x9999_0000_aaaa);
        assert_eq!((command.dword(16), command.quad(15)), (0, 0));
    }

    #[test]
    fn the_fourth_kind_of_data_pointer_is_reserved() {
        let mut words = [0; 16];
        for (bits, expected) in [
            (0, DataPointer::Prp(0, 0)),
            (1, DataPointer::Sgl(0, 0)),
            (2, DataPointer::Sgl(0, 0)),
            (3, DataPointer::Reserved),
        ] {
            words[0] = bits << 14;
            assert_eq!(Command { words }.data(), expected);
        }
    }
}
