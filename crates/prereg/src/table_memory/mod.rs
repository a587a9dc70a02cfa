//! The port to table memory: everything that a translator touches when it maps lies there.
//!
//! A translator promises not to fault a page in, so its tables must be present before it looks, and stay. How far a host
//! can promise that is up to the port: [`HeapTables`], the default, touches memory before handing it out and can do no
//! more; a host with locked memory and huge pages implements its own.
//!
//! Only the writers' side allocates and releases. Readers know addresses only.

#![expect(unsafe_code, reason = "memory is allocated and released by address")]

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

/// The table memory of an address space, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct TableMemoryState {
    /// Allocated to tables and not released.
    pub used: u64,
    /// Taken from the system for that.
    pub held: u64,
    /// Bytes of `held` that are locked: they neither leave memory nor fault.
    pub locked: u64,
    /// Bytes of `held` for which huge pages were requested.
    pub huge: u64,
    /// The reason why not all of it is locked.
    pub unlocked_because: Option<&'static str>,
}

impl TableMemoryState {
    /// Whether every table is locked.
    #[must_use]
    pub const fn is_locked(&self) -> bool {
        self.locked == self.held
    }
}

/// Memory for the tables that translators touch. Called by the writers' side only, from many threads at once, under a
/// lock of the core; must not call the core.
///
/// # Safety
/// The memory that `allocate` and `reserve` return has the layout asked for, is zeroed, stays where it is, and is used
/// by no other code until it is released. No method unwinds.
pub unsafe trait TableMemory: Send + Sync {
    /// Memory of `layout`, whose size is not zero, zeroed and present: touching it faults nothing in. `None` when there
    /// is none.
    fn allocate(&self, layout: Layout) -> Option<NonNull<u8>>;

    /// Like `allocate`, but present only where [`commit`](Self::commit) was called.
    fn reserve(&self, layout: Layout) -> Option<NonNull<u8>> {
        self.allocate(layout)
    }

    /// Makes the bytes `part` of reserved memory present. Their contents stay, even if other threads use them
    /// meanwhile. `false` without memory.
    ///
    /// # Safety
    /// `at` and `layout` are those of a `reserve` that was not released yet, and `part` lies inside.
    unsafe fn commit(&self, at: NonNull<u8>, layout: Layout, part: Range<usize>) -> bool {
        let _ = (at, layout, part);
        true
    }

    /// Releases memory.
    ///
    /// # Safety
    /// `at` and `layout` are those of an `allocate` or a `reserve`, released once, and no thread uses the memory any
    /// more.
    unsafe fn release(&self, at: NonNull<u8>, layout: Layout);

    /// The amounts, and how far they are locked.
    fn state(&self) -> TableMemoryState;
}

/// The global allocator's memory, touched before it is returned.
///
/// It does not fault as long as the host leaves it in place: on a machine without swap, or with all memory locked
/// (`mlockall`).
#[derive(Debug, Default)]
pub struct HeapTables {
    used: AtomicU64,
}

impl HeapTables {
    /// No memory allocated yet.
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

// SAFETY: the global allocator's own guarantees.
unsafe impl TableMemory for HeapTables {
    fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        let at = self.reserve(layout)?;
        for offset in (0..layout.size()).step_by(PAGE) {
            // SAFETY: inside what was just allocated.
            let byte = unsafe { at.add(offset) };
            // SAFETY: no other code knows it yet. Volatile, because it is zero already.
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
            // SAFETY: inside, as the caller promises.
            let byte = unsafe { at.add(offset) }.cast::<AtomicU8>();
            // SAFETY: alive, as the caller promises; users of this memory touch it with atomics only.
            let byte = unsafe { byte.as_ref() };
            // Relaxed, both: only the write itself counts. An exchange of a value with itself is a write that no
            // compiler omits; if it fails, another thread has just written.
            let value = byte.load(Ordering::Relaxed);
            let _ = byte.compare_exchange(value, value, Ordering::Relaxed, Ordering::Relaxed);
        }
        true
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // Relaxed: a number for reports.
        self.used.fetch_sub(layout.size() as u64, Ordering::Relaxed);
        // SAFETY: from `alloc_zeroed` with this layout, and unused, as the caller promises.
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
