//! The contents of numbered blocks: every word depends on the block's number and a seed, which reveals misplaced, stale and
//! torn blocks.

/// Bytes of a block.
pub(crate) const BLOCK: usize = 4096;

/// The word `index` of block `number`.
fn word(seed: u64, number: u64, index: u64) -> u64 {
    let mixed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.wrapping_mul(0xd6e8_feb8_6659_fd93);
    mixed.rotate_left(23).wrapping_add(index.wrapping_mul(0xa076_1d64_78bd_642f))
}

/// Fills `block` as block `number`.
pub(crate) fn write(block: &mut [u8], seed: u64, number: u64) {
    for (index, bytes) in (0..).zip(block.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&word(seed, number, index).to_le_bytes());
    }
}

/// The offset of the first difference between `block` and block `number`.
pub(crate) fn difference(block: &[u8], seed: u64, number: u64) -> Option<usize> {
    let words = (0..).zip(block.chunks_exact(8));
    words
        .filter(|(index, bytes)| **bytes != word(seed, number, *index).to_le_bytes())
        .map(|(_, bytes)| bytes.as_ptr().addr() - block.as_ptr().addr())
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_differ_by_number_and_seed_and_a_changed_byte_is_found() {
        let mut block = [0; BLOCK];
        write(&mut block, 1, 7);
        assert_eq!(difference(&block, 1, 7), None);
        assert_eq!(difference(&block, 1, 8), Some(0));
        assert_eq!(difference(&block, 2, 7), Some(0));
        block[4001] ^= 1;
        assert_eq!(difference(&block, 1, 7), Some(4000));
    }
}
