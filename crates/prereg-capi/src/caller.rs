//! Access to memory that a C caller points at: results, arrays, text. NULL and misaligned pointers are refused here; that the others
//! point at what their types say is the caller's promise, which the header states, and only here and in `record` is it relied on.

#![expect(unsafe_code, reason = "that a pointer from C leads where its type says is the caller's word")]

use std::ffi::{CStr, c_char};
use std::ptr::NonNull;

use crate::failure::Failure;

/// A place that a call writes to, checked before the call changes anything.
#[derive(Debug)]
pub(crate) struct Out<T>(NonNull<T>);

/// A place that must be there.
#[inline]
pub(crate) fn out<T>(place: *mut T, name: &'static str) -> Result<Out<T>, Failure> {
    match out_if(place, name) {
        Ok(Some(place)) => Ok(place),
        Ok(None) => Err(Failure::Null(name)),
        Err(failure) => Err(failure),
    }
}

/// A place that may be NULL.
#[inline]
pub(crate) fn out_if<T>(place: *mut T, name: &'static str) -> Result<Option<Out<T>>, Failure> {
    if !place.is_aligned() {
        return Err(Failure::Misaligned(name));
    }
    Ok(NonNull::new(place).map(Out))
}

impl<T: Copy> Out<T> {
    /// Writes the result.
    #[inline]
    pub(crate) fn write(&self, value: T) {
        // SAFETY: not NULL and aligned; room for one value by the caller's promise.
        unsafe { self.0.write(value) };
    }

    /// Reads the value.
    #[inline]
    pub(crate) fn read(&self) -> T {
        // SAFETY: as in `write`; used only for places that the header says hold a value.
        unsafe { self.0.read() }
    }

    /// The member of type `P` at `offset`.
    #[inline]
    pub(crate) fn member<P: Copy>(&self, offset: usize) -> Out<P> {
        assert!(offset + size_of::<P>() <= size_of::<T>() && offset % align_of::<P>() == 0);
        // SAFETY: inside the value, as asserted.
        Out(unsafe { self.0.byte_add(offset) }.cast())
    }

    /// The address.
    #[inline]
    pub(crate) fn address(&self) -> u64 {
        self.0.addr().get() as u64
    }
}

/// Writes to a place that may be absent.
#[inline]
pub(crate) fn tell<T: Copy>(place: Option<Out<T>>, value: T) {
    if let Some(place) = place {
        place.write(value);
    }
}

/// A C caller's array of `count` elements; NULL is an array of none.
pub(crate) fn array<'a, T>(start: *mut T, count: usize, name: &'static str) -> Result<&'a mut [T], Failure> {
    let Some(start) = NonNull::new(start) else {
        return if count == 0 { Ok(&mut []) } else { Err(Failure::Null(name)) };
    };
    if !start.is_aligned() {
        return Err(Failure::Misaligned(name));
    }
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::Argument("an array is longer than memory"));
    }
    // SAFETY: aligned and of a possible length; that it is there and used by no other thread during the call is the caller's promise.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), count) })
}

/// The text that `start` points at; `None` for NULL.
pub(crate) fn text<'a>(start: *const c_char, name: &'static str) -> Result<Option<&'a str>, Failure> {
    if start.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL; that it ends with a NUL is the caller's promise.
    let text = unsafe { CStr::from_ptr(start) };
    text.to_str().map(Some).map_err(|_| Failure::NoText(name))
}
