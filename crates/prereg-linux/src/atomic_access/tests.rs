use std::sync::atomic::AtomicBool;

use super::*;

/// Memory that threads change at the same time.
struct Raced {
    start: *mut u64,
    words: usize,
}

// SAFETY: after `new`, the memory is only accessed by this module's accesses.
unsafe impl Send for Raced {}
// SAFETY: as for `Send`.
unsafe impl Sync for Raced {}

impl Raced {
    fn new(words: usize) -> Self {
        Self { start: Box::into_raw(vec![0u64; words].into_boxed_slice()).cast(), words }
    }

    fn at(&self, offset: usize, bytes: usize) -> *mut u8 {
        assert!(offset + bytes <= self.words * WORD);
        self.start.cast::<u8>().wrapping_add(offset)
    }

    fn read<A: Access>(&self, offset: usize, into: &mut [u8]) {
        let at = self.at(offset, into.len());
        // SAFETY: `at` has checked the bounds.
        unsafe { copy_out_by::<A>(at, into) }
    }

    fn write<A: Access>(&self, offset: usize, from: &[u8]) {
        let at = self.at(offset, from.len());
        // SAFETY: `at` has checked the bounds.
        unsafe { copy_in_by::<A>(at, from) }
    }

    fn all(&self) -> Vec<u8> {
        let mut all = vec![0; self.words * WORD];
        self.read::<Bytes>(0, &mut all);
        all
    }
}

impl Drop for Raced {
    fn drop(&mut self) {
        // SAFETY: made by `new` from a box of this length.
        drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(self.start, self.words)) });
    }
}

/// Lengths around the steps of the copies.
fn lengths() -> impl Iterator<Item = usize> {
    (0..100).filter(|len| !cfg!(miri) || matches!(len, 0..=9 | 17 | 31 | 33 | 41 | 65))
}

fn every_alignment<A: Access>() {
    let local = if cfg!(miri) { 2 } else { 9 };
    for at in 0..9 {
        for skip in 0..local {
            for len in lengths() {
                let memory = Raced::new(16);
                memory.write::<Bytes>(0, &[0xaa; 128]);
                let source: Vec<u8> = (0..(skip + len) as u8).collect();
                memory.write::<A>(at, &source[skip..]);
                let mut expected = [0xaa; 128];
                expected[at..at + len].copy_from_slice(&source[skip..]);
                assert_eq!(memory.all(), expected, "in: at {at}, from {skip}, {len} bytes");

                let mut back = vec![0x55; skip + len + 9];
                memory.read::<A>(at, &mut back[skip..skip + len]);
                let mut expected = vec![0x55; skip + len + 9];
                expected[skip..skip + len].copy_from_slice(&source[skip..]);
                assert_eq!(back, expected, "out: at {at}, to {skip}, {len} bytes");
            }
        }
    }
}

#[test]
fn copies_are_those_of_slices_at_every_alignment_and_touch_nothing_else() {
    every_alignment::<Native>();
    // Native accesses are bytes under miri, which rejects an atomic that partially overlaps one of another size.
    if !cfg!(miri) {
        every_alignment::<Bytes>();
        every_alignment::<Atomics>();
    }
}

/// Two threads copy in and two copy out, with overlapping ranges of all alignments.
#[test]
fn threads_may_copy_the_same_bytes_at_the_same_time() {
    const ROUNDS: usize = if cfg!(miri) { 3 } else { 2000 };
    let memory = Raced::new(12);
    std::thread::scope(|scope| {
        for (thread, byte) in [(0, 0x11), (3, 0x22)] {
            let memory = &memory;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    memory.write::<Native>((thread + round) % 9, &[byte; 83][..83 - round % 7]);
                }
            });
        }
        for thread in [1, 6] {
            let memory = &memory;
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let mut seen = [0xff; 83];
                    memory.read::<Native>((thread + 5 * round) % 9, &mut seen[..83 - round % 5]);
                    let seen = &seen[..83 - round % 5];
                    assert!(seen.iter().all(|byte| matches!(byte, 0 | 0x11 | 0x22)), "{seen:x?}");
                }
            });
        }
    });
}

/// Numbers of several sizes over bytes that another thread copies.
#[test]
fn numbers_and_copies_may_meet() {
    const ROUNDS: usize = if cfg!(miri) { 3 } else { 2000 };
    let memory = Raced::new(8);
    let (at_4, at_8) = (|| memory.at(12, 4).cast::<u32>(), || memory.at(8, 8).cast::<u64>());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                memory.write::<Native>(5, &[0x33; 17]);
                memory.read::<Native>(3, &mut [0; 29]);
            }
        });
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                // SAFETY: aligned, and inside.
                unsafe { store_u32(at_4(), 0x4444_4444) };
                // SAFETY: aligned, and inside.
                let seen = unsafe { load_u64(at_8()) };
                assert!(
                    seen.to_ne_bytes().iter().all(|byte| matches!(byte, 0 | 0x33 | 0x44 | 0x55)),
                    "{seen:x}"
                );
            }
        });
        scope.spawn(|| {
            for _ in 0..ROUNDS {
                // SAFETY: aligned, and inside.
                unsafe { store_u64(at_8(), 0x5555_5555_5555_5555) };
                // SAFETY: aligned, and inside.
                let seen = unsafe { load_u32(at_4()) };
                assert!(
                    seen.to_ne_bytes().iter().all(|byte| matches!(byte, 0 | 0x33 | 0x44 | 0x55)),
                    "{seen:x}"
                );
            }
        });
    });
}

fn whole_words<A: Access>() {
    let (memory, done) = (Raced::new(9), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..200_000u32 {
                memory.write::<A>(0, &[round as u8; 72]);
            }
            // Relaxed: only ends the loop below.
            done.store(true, Ordering::Relaxed);
        });
        // Relaxed: as above.
        while !done.load(Ordering::Relaxed) {
            let mut seen = [0; 71];
            memory.read::<A>(1, &mut seen);
            for word in seen[7..].chunks_exact(WORD) {
                assert!(word.iter().all(|byte| *byte == word[0]), "{word:x?}");
            }
        }
    });
}

#[test]
#[cfg_attr(miri, ignore = "under miri every byte is by itself")]
fn aligned_words_of_a_copy_are_old_or_new() {
    whole_words::<Native>();
    whole_words::<Atomics>();
}

/// A thread that loads the number also sees the bytes that were copied before it was stored.
#[test]
fn a_stored_number_publishes_what_was_copied_before() {
    const ROUNDS: u64 = if cfg!(miri) { 2 } else { 20_000 };
    let memory = Raced::new(8);
    let flag = || memory.at(0, 8).cast::<u64>();
    // Checked at the end: a panic in between would leave the other thread waiting.
    let mut stale = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 1..=ROUNDS {
                memory.write::<Native>(11, &[round as u8; 41]);
                // SAFETY: aligned, and inside.
                unsafe { store_u64(flag(), 2 * round - 1) };
                // SAFETY: aligned, and inside.
                while unsafe { load_u64(flag()) } != 2 * round {
                    std::thread::yield_now();
                }
            }
        });
        for round in 1..=ROUNDS {
            // SAFETY: aligned, and inside.
            while unsafe { load_u64(flag()) } != 2 * round - 1 {
                std::thread::yield_now();
            }
            let mut seen = [0; 41];
            memory.read::<Native>(11, &mut seen);
            stale += u32::from(seen != [round as u8; 41]);
            // SAFETY: aligned, and inside.
            unsafe { store_u64(flag(), 2 * round) };
        }
    });
    assert_eq!(stale, 0, "copies that did not see what was written before the number");
}
