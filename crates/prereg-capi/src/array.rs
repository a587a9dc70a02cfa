//! Arrays that a C caller names by address and length.

#![expect(unsafe_code, reason = "that there is an array is the caller's word")]

use std::ptr::NonNull;

use crate::failure::Failure;

/// A C caller's array.
#[derive(Debug)]
pub(crate) struct Array<'a, T>(&'a mut [T]);

impl<'a, T> Array<'a, T> {
    /// NULL is an array of no elements.
    ///
    /// # Safety
    /// `start` is NULL or has `count` elements that nobody else uses during `'a`.
    pub(crate) unsafe fn new(start: *mut T, count: usize, name: &'static str) -> Result<Self, Failure> {
        let Some(start) = NonNull::new(start) else {
            return if count == 0 { Ok(Self(&mut [])) } else { Err(Failure::Null(name)) };
        };
        if !start.is_aligned() || count > isize::MAX as usize / size_of::<T>().max(1) {
            return Err(Failure::Argument("an array is misaligned, or longer than memory"));
        }
        // SAFETY: as this function's; the length is possible.
        Ok(Self(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), count) }))
    }

    pub(crate) fn into_mut(self) -> &'a mut [T] {
        self.0
    }
}
