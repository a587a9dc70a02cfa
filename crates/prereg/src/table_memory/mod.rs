//! The port to memory for tables: what a translator touches when it maps lives there, and nothing else of the core does.
//!
//! A translator promises not to fault a page in, so its tables must be present before it looks, and stay. How far a host can
//! promise that is the port's to say: [`HeapTables`], which every address space has unless it is given another, brings
//! memory in and can do no more; a host with locked memory and huge pages hands in its own.
//!
//! All of it is had and given back by the writers' side. Readers know addresses only.

#![expect(unsafe_code, reason = "memory is had by address, and given back by the same")]

pub(crate) mod chunked;
pub(crate) mod owned;

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::sync::Arc;
use core::alloc::Layout;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::sync::atomic::AtomicU64;

/// The port, as all tables of an address space share it.
pub(crate) type SharedTableMemory = Arc<dyn TableMemory>;

/// No system page is smaller.
const PAGE: usize = 4096;

/// What an address space's memory for tables is, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct TableMemoryState {
    /// Handed out and not given back: what the tables take.
    pub used: u64,
    /// Had from the system for that.
    pub held: u64,
    /// How much of `held` is locked: it neither leaves memory nor faults.
    pub locked: u64,
    /// How much of `held` asked for huge pages.
    pub huge: u64,
    /// Why not all of it is locked.
    pub unlocked_because: Option<&'static str>,
}

impl TableMemoryState {
    /// Whether every table is locked.
    #[must_use]
    pub const fn is_locked(&self) -> bool {
        self.locked == self.held
    }
}

/// Memory for the tables that translators touch. Called by the writers' side only, from many threads at once, under a lock
/// of the core; it calls nothing of the core.
///
/// # Safety
/// What `allocate` and `reserve` return is of the layout asked for, zeroed, and used by no other code until it is released.
/// It stays where it is. No method unwinds.
pub unsafe trait TableMemory: Send + Sync {
    /// Memory of `layout`, whose size is not zero, zeroed and present: touching it faults nothing in. `None` when there is
    /// none.
    fn allocate(&self, layout: Layout) -> Option<NonNull<u8>>;

    /// The same, but present only where [`commit`](Self::commit) was called.
    fn reserve(&self, layout: Layout) -> Option<NonNull<u8>> {
        self.allocate(layout)
    }

    /// Makes the bytes `part` of reserved memory present. What is in them stays, whoever uses them meanwhile. `false` when
    /// there is no memory for it.
    ///
    /// # Safety
    /// `at` and `layout` are those of a `reserve` that was not released yet, and `part` lies inside.
    unsafe fn commit(&self, at: NonNull<u8>, layout: Layout, part: Range<usize>) -> bool {
        let _ = (at, layout, part);
        true
    }

    /// Takes memory back.
    ///
    /// # Safety
    /// `at` and `layout` are those of an `allocate` or a `reserve`, released once, and nobody uses the memory any more.
    unsafe fn release(&self, at: NonNull<u8>, layout: Layout);

    /// How much there is, and what was promised of it.
    fn state(&self) -> TableMemoryState;
}

/// The global allocator's memory, touched before it is handed out.
///
/// It does not fault as long as the host leaves it where it is: on a machine without swap, or with all memory locked
/// (`mlockall`).
#[derive(Debug, Default)]
pub struct HeapTables {
    used: AtomicU64,
}

impl HeapTables {
    /// Nothing handed out yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    fn count_allocated(&self, at: *mut u8, layout: Layout) -> Option<NonNull<u8>> {
        let at = NonNull::new(at)?;
        // Relaxed: a number for reports.
        self.used.fetch_add(layout.size() as u64, Ordering::Relaxed);
        Some(at)
    }
}

// SAFETY: the global allocator's own promises.
unsafe impl TableMemory for HeapTables {
    fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        let at = self.reserve(layout)?;
        for offset in (0..layout.size()).step_by(PAGE) {
            // SAFETY: inside what was just had.
            let byte = unsafe { at.add(offset) };
            // SAFETY: nobody else knows it yet. Volatile, because it is zero already.
            unsafe { byte.write_volatile(0) };
        }
        Some(at)
    }

    fn reserve(&self, layout: Layout) -> Option<NonNull<u8>> {
        if layout.size() == 0 {
            return None;
        }
        // SAFETY: the size is not zero.
        self.count_allocated(unsafe { alloc_zeroed(layout) }, layout)
    }

    unsafe fn commit(&self, at: NonNull<u8>, _layout: Layout, part: Range<usize>) -> bool {
        for offset in part.step_by(PAGE) {
            // SAFETY: inside, by the caller's promise.
            let byte = unsafe { at.add(offset) }.cast::<AtomicU8>();
            // SAFETY: alive, by the caller's promise; users of this memory touch it with atomics only.
            let byte = unsafe { byte.as_ref() };
            // Relaxed, both: only that it is written counts. An exchange with itself is a write that no compiler leaves out; if
            // it fails somebody else has just written.
            let value = byte.load(Ordering::Relaxed);
            let _ = byte.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
        }
        true
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // Relaxed: a number for reports.
        self.used.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: from `alloc_zeroed` with this layout, and nobody uses it, by the caller's promise.
        unsafe { dealloc(at.as_ptr(), layout) };
    }

    fn state(&self) -> TableMemoryState {
        // Relaxed: a number for reports.
        let used = self.used.load(Ordering::Relaxed);
        TableMemoryState {
            used,
            held: used,
            unlocked_because: Some("the global allocator cannot lock memory"),
            ..TableMemoryState::default()
        }
    }
}
