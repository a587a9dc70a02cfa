//! Owners of table memory: [`TableArray`] of an array, [`TableBox`] of one value.
//!
//! Dropping the owner drops the values and releases the memory. Readers reach the values by pointer: nothing here makes a
//! `&mut` to a value that was published.

#![expect(unsafe_code, reason = "owners of memory that is allocated by address")]

use core::alloc::Layout;
use core::mem::{ManuallyDrop, needs_drop, offset_of};
use core::ops::Deref;
use core::ptr::{self, NonNull};
use core::slice;

use crate::sync::hazard::Owner;
use crate::table_memory::SharedTableMemory;

/// An array in table memory.
pub(crate) struct TableArray<T> {
    at: NonNull<T>,
    len: usize,
    /// Initialised values: less than `len` only while the array is made.
    filled: usize,
    memory: SharedTableMemory,
}

// SAFETY: an owner of values, as a box of them would be.
unsafe impl<T: Send> Send for TableArray<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for TableArray<T> {}

impl<T> TableArray<T> {
    /// `len` values, in order, each from `make`, so that every page is written before a reader uses it. `None` without
    /// memory.
    pub(crate) fn new(memory: &SharedTableMemory, len: usize, make: impl FnMut() -> T) -> Option<Self> {
        Self::from_iter(memory, len, core::iter::repeat_with(make))
    }

    /// The first `len` values of `values`; `None` without memory, or when there are fewer.
    pub(crate) fn from_iter(
        memory: &SharedTableMemory,
        len: usize,
        mut values: impl Iterator<Item = T>,
    ) -> Option<Self> {
        let layout = Layout::array::<T>(len).ok()?;
        let at = if layout.size() == 0 { NonNull::dangling() } else { memory.allocate(layout)?.cast::<T>() };
        // The drop releases all of `len`, also when the iterator panics or ends early.
        let mut array = Self { at, len, filled: 0, memory: memory.clone() };
        while array.filled < len {
            let value = values.next()?;
            // SAFETY: below `len`, for which there is room.
            let place = unsafe { array.at.add(array.filled) };
            // SAFETY: aligned by the layout, and nothing is there yet.
            unsafe { place.write(value) };
            array.filled += 1;
        }
        Some(array)
    }

    /// The port that allocated it.
    pub(crate) fn memory(&self) -> &SharedTableMemory {
        &self.memory
    }

    /// Turns the owner into a pointer.
    pub(crate) fn into_raw(self) -> *mut T {
        let mut this = ManuallyDrop::new(self);
        // SAFETY: the owner is not used again; what it holds but for the array is dropped here.
        unsafe { (&raw mut this.memory).drop_in_place() };
        this.at.as_ptr()
    }

    /// Turns the pointer back into the owner.
    ///
    /// # Safety
    /// `at` is from [`into_raw`](Self::into_raw) of an array of `len` values in `memory`, not turned back yet.
    pub(crate) unsafe fn from_raw(at: NonNull<T>, len: usize, memory: SharedTableMemory) -> Self {
        Self { at, len, filled: len, memory }
    }
}

impl<T> Deref for TableArray<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `filled` values, which live as long as the owner and are only shared.
        unsafe { slice::from_raw_parts(self.at.as_ptr(), self.filled) }
    }
}

impl<T> Drop for TableArray<T> {
    fn drop(&mut self) {
        if needs_drop::<T>() {
            // SAFETY: the owner is dropped, so no user is left; the values were written by `from_iter`.
            unsafe { ptr::slice_from_raw_parts_mut(self.at.as_ptr(), self.filled).drop_in_place() };
        }
        // The layout of the allocation, not of the initialised values.
        let Ok(layout) = Layout::array::<T>(self.len) else { return };
        if layout.size() != 0 {
            // SAFETY: from `allocate` with this layout; the owner is dropped, so no user is left.
            unsafe { self.memory.release(self.at.cast(), layout) };
        }
    }
}

/// A value and the port that allocated its memory.
#[repr(C)]
struct Allocation<T> {
    memory: SharedTableMemory,
    value: T,
}

/// One value in table memory.
pub(crate) struct TableBox<T> {
    at: NonNull<Allocation<T>>,
}

// SAFETY: an owner of a value, as a box would be; the memory is a port that any thread may call.
unsafe impl<T: Send> Send for TableBox<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for TableBox<T> {}

impl<T> TableBox<T> {
    /// `None` without memory.
    pub(crate) fn new(memory: &SharedTableMemory, value: T) -> Option<Self> {
        let at = memory.allocate(Layout::new::<Allocation<T>>())?.cast::<Allocation<T>>();
        // SAFETY: of the value's layout, and nothing is there yet.
        unsafe { at.write(Allocation { memory: memory.clone(), value }) };
        Some(Self { at })
    }

    /// The value, for readers.
    pub(crate) fn as_ptr(&self) -> NonNull<T> {
        // SAFETY: the field of a value that lives as long as the owner.
        let value = unsafe { &raw mut (*self.at.as_ptr()).value };
        // SAFETY: inside an allocation, so not null.
        unsafe { NonNull::new_unchecked(value) }
    }
}

impl<T> Owner<T> for TableBox<T> {
    fn into_raw(self) -> *mut T {
        ManuallyDrop::new(self).as_ptr().as_ptr()
    }

    unsafe fn from_raw(value: *mut T) -> Self {
        let at = value.wrapping_byte_sub(offset_of!(Allocation<T>, value)).cast::<Allocation<T>>();
        // SAFETY: from `into_raw`, as the caller promises, so an `Allocation` is around it.
        Self { at: unsafe { NonNull::new_unchecked(at) } }
    }
}

impl<T> Deref for TableBox<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: lives as long as the owner, and is only shared.
        unsafe { self.as_ptr().as_ref() }
    }
}

impl<T> Drop for TableBox<T> {
    fn drop(&mut self) {
        // SAFETY: the owner is dropped, so no user is left; read once.
        let Allocation { memory, value } = unsafe { self.at.read() };
        drop(value);
        // SAFETY: from `allocate` with this layout.
        unsafe { memory.release(self.at.cast(), Layout::new::<Allocation<T>>()) };
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc::boxed::Box;
    use alloc::sync::Arc;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::table_memory::HeapTables;

    #[test]
    fn an_array_whose_iterator_ends_early_or_panics_leaves_no_memory() {
        let memory: SharedTableMemory = Arc::new(HeapTables::new());
        assert!(TableArray::from_iter(&memory, 4, (0..2).map(Box::new)).is_none());
        assert_eq!(memory.state().used, 0);
        let values = (0..4).map(|value| if value < 2 { Box::new(value) } else { panic!("no third value") });
        let array = catch_unwind(AssertUnwindSafe(|| TableArray::from_iter(&memory, 4, values)));
        assert!(array.is_err());
        assert_eq!(memory.state().used, 0);
    }
}
