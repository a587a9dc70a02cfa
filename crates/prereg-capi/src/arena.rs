//! Slots that are addressed by number and never freed, so that a stale number from C can be checked without accessing other
//! memory.
//!
//! Slots are in chunks of one size. A chunk is mapped and populated when its first slot is needed, and never unmapped. Free slots
//! are a stack. Nothing here takes a lock or calls the allocator; taking a slot makes a system call only when no slot is free.

#![expect(unsafe_code, reason = "maps memory for slots, and reaches it by number")]

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

use crate::free_stack::FreeStack;

/// An element of an [`Arena`].
///
/// # Safety
/// All zeros are a valid value, and dropping it has no effect.
pub(crate) unsafe trait Slot: Sync + 'static {
    /// While the slot is free: the number of the next slot on the free stack.
    fn next(&self) -> &AtomicU32;
}

/// A chunk has `2^SHIFT` slots.
const SHIFT: u32 = 10;
/// The array of chunk addresses takes 2 MiB of address space, of which only touched pages take memory.
const CHUNKS: usize = 1 << 18;

/// Slots with the numbers 1, 2 and so on.
#[derive(Debug)]
pub(crate) struct Arena<S> {
    chunks: [AtomicPtr<S>; CHUNKS],
    /// Slots used so far.
    used: AtomicU32,
    free: FreeStack,
}

/// The chunk of slot `number`, and the index in it. Slot 0 is never used.
#[inline]
fn place(number: u32) -> (usize, usize) {
    ((number >> SHIFT) as usize, (number & ((1 << SHIFT) - 1)) as usize)
}

impl<S: Slot> Arena<S> {
    pub(crate) const fn new() -> Self {
        Self {
            chunks: [const { AtomicPtr::new(std::ptr::null_mut()) }; CHUNKS],
            used: AtomicU32::new(0),
            free: FreeStack::new(),
        }
    }

    /// The slot with this number, if it was ever used.
    #[inline]
    pub(crate) fn get(&'static self, number: u32) -> Option<&'static S> {
        let (chunk, index) = place(number);
        // Acquire pairs with the Release in `map`: the chunk's memory is visible.
        let start = self.chunks.get(chunk)?.load(Ordering::Acquire);
        if start.is_null() || number == 0 {
            return None;
        }
        // SAFETY: inside the chunk, which has a slot for each of its numbers.
        let slot = unsafe { start.add(index) };
        // SAFETY: mapped, never unmapped, and zeros are a valid slot.
        Some(unsafe { &*slot })
    }

    /// Takes a free slot. `None` without memory.
    pub(crate) fn acquire(&'static self) -> Option<(u32, &'static S)> {
        // Relaxed: see `FreeStack::pop`.
        let below = |number| self.get(number).map_or(0, |slot| slot.next().load(Ordering::Relaxed));
        match self.free.pop(below) {
            Some(number) => Some((number, self.get(number)?)),
            None => self.take_unused(),
        }
    }

    #[cold]
    fn take_unused(&'static self) -> Option<(u32, &'static S)> {
        // Relaxed: only the number; `get` makes the chunk's memory visible.
        let mut used = self.used.load(Ordering::Relaxed);
        loop {
            let number = used.checked_add(1)?;
            let (chunk, _) = place(number);
            self.map(self.chunks.get(chunk)?)?;
            match self.used.compare_exchange_weak(used, number, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => return Some((number, self.get(number)?)),
                Err(now) => used = now,
            }
        }
    }

    /// Frees a slot that the caller acquired.
    pub(crate) fn release(&'static self, number: u32, slot: &S) {
        // Relaxed: published by the exchange in `FreeStack::push`.
        self.free.push(number, |below| slot.next().store(below, Ordering::Relaxed));
    }

    /// Maps a chunk if it is not mapped. `None` without memory.
    fn map(&self, chunk: &AtomicPtr<S>) -> Option<()> {
        if !chunk.load(Ordering::Acquire).is_null() {
            return Some(());
        }
        let bytes = size_of::<S>() << SHIFT;
        let (access, kind) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_POPULATE,
        );
        // SAFETY: a new mapping at an address that the system chooses.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, kind, -1, 0) };
        if start == libc::MAP_FAILED {
            return None;
        }
        // Release pairs with the Acquire in `get`.
        let placed =
            chunk.compare_exchange(std::ptr::null_mut(), start.cast(), Ordering::Release, Ordering::Relaxed);
        if placed.is_err() {
            // SAFETY: mapped above, and another thread's chunk is used instead.
            unsafe { libc::munmap(start, bytes) };
        }
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Number {
        next: AtomicU32,
        mark: AtomicU32,
    }

    // SAFETY: two integers.
    unsafe impl Slot for Number {
        fn next(&self) -> &AtomicU32 {
            &self.next
        }
    }

    #[test]
    fn numbers_have_places_of_their_own() {
        assert_eq!((place(1), place(1023), place(1024)), ((0, 1), (0, 1023), (1, 0)));
        let last = ((CHUNKS as u32) << SHIFT) - 1;
        assert_eq!((place(last), place(last + 1)), ((CHUNKS - 1, 1023), (CHUNKS, 0)));
    }

    #[test]
    fn what_is_given_is_taken_again_and_nothing_twice() {
        static ARENA: Arena<Number> = Arena::new();
        let taken: Vec<_> = (0..3000).map(|_| ARENA.acquire().unwrap()).collect();
        for (index, (number, slot)) in taken.iter().enumerate() {
            assert_eq!(*number as usize, index + 1);
            slot.mark.store(*number, Ordering::Relaxed);
        }
        for (number, slot) in &taken[1000..] {
            ARENA.release(*number, slot);
        }
        let mut again: Vec<_> = (0..2000).map(|_| ARENA.acquire().unwrap()).collect();
        assert!(again.iter().all(|(number, slot)| slot.mark.load(Ordering::Relaxed) == *number));
        again.sort_by_key(|(number, _)| *number);
        assert_eq!(
            again.iter().map(|(number, _)| *number).collect::<Vec<_>>(),
            (1001..=3000).collect::<Vec<_>>()
        );
        assert_eq!(ARENA.acquire().unwrap().0, 3001);
        assert!([0, 100_000, u32::MAX].iter().all(|&number| ARENA.get(number).is_none()));
    }

    #[test]
    fn no_two_threads_have_one_slot() {
        static ARENA: Arena<Number> = Arena::new();
        std::thread::scope(|scope| {
            for thread in 1..=4 {
                scope.spawn(move || {
                    for _ in 0..20_000 {
                        let (number, slot) = ARENA.acquire().unwrap();
                        assert_eq!(slot.mark.swap(thread, Ordering::Relaxed), 0);
                        assert_eq!(slot.mark.swap(0, Ordering::Relaxed), thread);
                        ARENA.release(number, slot);
                    }
                });
            }
        });
        assert!(ARENA.used.load(Ordering::Relaxed) <= 4);
    }
}
