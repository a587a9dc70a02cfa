//! The percpu refs of an address space: one for each possible slot, of which those in use are present in memory.
//!
//! Readers index the array by slot without a bounds check, so it never moves and has its full length. A ref is one byte;
//! its page is made present before the first slot in it is given to a region.

#![expect(unsafe_code, reason = "an array in memory of which only a part is present")]

use core::alloc::Layout;
use core::ops::Deref;
use core::ptr::NonNull;
use core::slice;

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::percpu_ref::PercpuRef;
use crate::table_memory::SharedTableMemory;

/// `len` refs, closed until they are opened.
pub(crate) struct RefArray {
    at: NonNull<PercpuRef>,
    len: usize,
    memory: SharedTableMemory,
    /// Refs whose memory is present.
    present: AtomicU64,
}

// SAFETY: an owner of refs, which are atomics.
unsafe impl Send for RefArray {}
// SAFETY: as above.
unsafe impl Sync for RefArray {}

impl RefArray {
    /// `len` closed refs, the first `present` of them present. `None` without memory.
    pub(crate) fn new(memory: &SharedTableMemory, len: usize, present: usize) -> Option<Self> {
        let layout = Layout::array::<PercpuRef>(len).ok()?;
        let at = memory.reserve(layout)?.cast::<PercpuRef>();
        #[cfg(loom)]
        for index in 0..len {
            // SAFETY: below `len`; nothing is there yet. Under loom a ref is not a byte of zeros.
            unsafe { at.as_ptr().wrapping_add(index).write(PercpuRef::new()) };
        }
        let refs = Self { at, len, memory: memory.clone(), present: AtomicU64::new(0) };
        refs.make_present(present).then_some(refs)
    }

    /// Makes the first `count` refs present. Writers' lock held. `false` without memory.
    pub(crate) fn make_present(&self, count: usize) -> bool {
        let Ok(layout) = Layout::array::<PercpuRef>(self.len) else { return false };
        // Relaxed: changed under the lock only.
        let from = self.present.load(Ordering::Relaxed) as usize;
        if count <= from {
            return true;
        }
        let part = from * size_of::<PercpuRef>()..count.min(self.len) * size_of::<PercpuRef>();
        // SAFETY: inside the reservation.
        let done = unsafe { self.memory.commit(self.at.cast(), layout, part) };
        if done {
            // Relaxed: as above.
            self.present.store(count as u64, Ordering::Relaxed);
        }
        done
    }
}

impl Deref for RefArray {
    type Target = [PercpuRef];

    #[inline]
    fn deref(&self) -> &[PercpuRef] {
        // SAFETY: zeroed memory of `len` refs, and a ref of zeros is a closed one; only shared, while the owner lives.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for RefArray {
    fn drop(&mut self) {
        if let Ok(layout) = Layout::array::<PercpuRef>(self.len) {
            // SAFETY: the whole reservation; the owner is dropped, so no reader is left.
            unsafe { self.memory.release(self.at.cast(), layout) };
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc::sync::Arc;
    use core::ops::Range;
    use std::sync::Mutex;

    use super::*;
    use crate::table_memory::{HeapTables, TableMemory, TableMemoryState};

    /// Heap memory that records which parts were made present.
    #[derive(Default)]
    struct Parts(HeapTables, Mutex<Vec<Range<usize>>>);

    // SAFETY: the heap's guarantees; `reserve` is the trait's own.
    unsafe impl TableMemory for Parts {
        fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
            self.0.allocate(layout)
        }

        unsafe fn commit(&self, _at: NonNull<u8>, _layout: Layout, part: Range<usize>) -> bool {
            self.1.lock().expect("one thread").push(part);
            true
        }

        unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
            // SAFETY: as the caller promises.
            unsafe { self.0.release(at, layout) };
        }

        fn state(&self) -> TableMemoryState {
            self.0.state()
        }
    }

    #[test]
    fn refs_become_present_once_each_and_in_order() {
        let parts = Arc::new(Parts::default());
        let memory: SharedTableMemory = parts.clone();
        let refs = RefArray::new(&memory, 1000, 1).unwrap();
        for count in [1, 2, 2, 300, 5, 1000] {
            assert!(refs.make_present(count));
        }
        assert_eq!(*parts.1.lock().unwrap(), [0..1, 1..2, 2..300, 300..1000]);
    }
}
