//! Direct I/O: it bypasses the guest's page cache and transfers from and to this program's pages.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::error::Error;
use crate::pattern::{BLOCK, difference, write};

/// Byte range of the load next to the numbered blocks.
const LOAD: std::ops::Range<u64> = 128 << 20..192 << 20;

/// Bytes of one I/O of the load.
const LOAD_CHUNK: usize = 128 << 10;

/// Previous contents of a read buffer.
const OLD: u8 = 0xee;

fn open(path: &Path) -> Result<File, Error> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(libc::O_DIRECT);
    options.open(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// Memory of `bytes`, aligned for direct I/O.
#[derive(Debug)]
struct Aligned {
    memory: Vec<u8>,
    begin: usize,
    bytes: usize,
}

impl Aligned {
    fn new(bytes: usize) -> Self {
        // Written, so that every page is present before the first I/O.
        let memory = vec![OLD; bytes + BLOCK];
        let begin = memory.as_ptr().addr().next_multiple_of(BLOCK) - memory.as_ptr().addr();
        Self { memory, begin, bytes }
    }

    fn slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.begin..self.begin + self.bytes]
    }
}

/// Writes `mib` MiB of numbered blocks from memory of that size, in pieces of `chunk` bytes, reads them into the same memory,
/// and compares.
pub(crate) fn fill(path: &Path, mib: u64, chunk: usize, seed: u64) -> Result<String, Error> {
    let file = open(path)?;
    let bytes = usize::try_from(mib << 20).map_err(|error| error.to_string())?;
    if chunk == 0 || chunk % BLOCK != 0 {
        return Err(format!("pieces of {chunk} bytes are no whole blocks"));
    }
    let mut memory = Aligned::new(bytes);
    let slice = memory.slice();
    for (number, block) in (0..).zip(slice.chunks_exact_mut(BLOCK)) {
        write(block, seed, number);
    }
    let failed = |what: &str, at: u64, error: std::io::Error| format!("{what} at {at}: {error}");
    for (at, piece) in (0..).step_by(chunk).zip(slice.chunks(chunk)) {
        file.write_all_at(piece, at).map_err(|error| failed("writing", at, error))?;
    }
    file.sync_data().map_err(|error| failed("flushing", 0, error))?;
    slice.fill(OLD);
    for (at, piece) in (0..).step_by(chunk).zip(slice.chunks_mut(chunk)) {
        file.read_exact_at(piece, at).map_err(|error| failed("reading", at, error))?;
    }
    for (number, block) in (0..).zip(slice.chunks_exact(BLOCK)) {
        if let Some(at) = difference(block, seed, number) {
            let found: Vec<String> = block[at..at + 8].iter().map(|byte| format!("{byte:02x}")).collect();
            return Err(format!("block {number} differs from byte {at} on: {}", found.concat()));
        }
    }
    Ok(format!("{mib} MiB written and read back in pieces of {} KiB", chunk / 1024))
}

/// Writes numbered blocks, flushes every few of them, and prints after each flush how many are durable; another thread writes
/// elsewhere all the time. Ends only by an error.
pub(crate) fn blocks(path: &Path, seed: u64) -> Result<String, Error> {
    let file = Arc::new(open(path)?);
    let loaded = Arc::clone(&file);
    std::thread::spawn(move || {
        let mut memory = Aligned::new(LOAD_CHUNK);
        let slice = memory.slice();
        for at in LOAD.step_by(LOAD_CHUNK).cycle() {
            slice.fill(u8::try_from(at >> 17 & 0xff).unwrap_or(OLD));
            if loaded.write_all_at(slice, at).is_err() {
                return;
            }
        }
    });
    let mut memory = Aligned::new(BLOCK);
    let block = memory.slice();
    let end = LOAD.start / BLOCK as u64;
    // One to seven blocks precede a flush, in turn.
    let (mut batch, mut left) = (1, 1);
    for number in 0..end {
        write(block, seed, number);
        file.write_all_at(block, number * BLOCK as u64)
            .map_err(|error| format!("block {number}: {error}"))?;
        left -= 1;
        if left == 0 {
            file.sync_data().map_err(|error| format!("flushing behind block {number}: {error}"))?;
            println!("@@ flushed {}", number + 1);
            batch = batch % 7 + 1;
            left = batch;
        }
    }
    Err(format!("the load was not stopped within {end} blocks"))
}

/// Compares the first `count` numbered blocks of `path`.
pub(crate) fn verify(path: &Path, count: u64, seed: u64) -> Result<String, Error> {
    let file = File::open(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut block = [0; BLOCK];
    for number in 0..count {
        file.read_exact_at(&mut block, number * BLOCK as u64)
            .map_err(|error| format!("block {number}: {error}"))?;
        if let Some(at) = difference(&block, seed, number) {
            return Err(format!("block {number} of {count} differs from byte {at} on"));
        }
    }
    Ok(format!("{count} blocks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn verify_finds_a_block_that_is_missing() {
        let path = std::env::temp_dir().join(format!("guest-tool-{}", std::process::id()));
        let mut bytes = vec![0; 3 * BLOCK];
        for (number, block) in (0..).zip(bytes.chunks_exact_mut(BLOCK)).take(2) {
            write(block, 5, number);
        }
        std::fs::write(&path, &bytes).expect("a writable folder");
        assert!(verify(&path, 2, 5).is_ok());
        assert!(verify(&path, 3, 5).is_err(), "the third is empty");
        assert!(verify(&path, 4, 5).is_err(), "the fourth is beyond the end");
        std::fs::remove_file(&path).expect("it is there");
    }
}
