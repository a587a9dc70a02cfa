//! Access to memory of a C caller: results, arrays, text. NULL and misaligned pointers are refused. That other pointers are valid for their
//! types is guaranteed by the caller, as the header states; only this file and `record` rely on it.

#![expect(unsafe_code, reason = "pointers from C are valid as the header requires")]

use std::ffi::{CStr, c_char};
use std::ptr::NonNull;

use crate::error::CallError;

/// A variable of the caller, checked before the call changes anything.
#[derive(Debug)]
pub(crate) struct Out<T>(NonNull<T>);

/// A required variable.
#[inline]
pub(crate) fn out<T>(place: *mut T, name: &'static str) -> Result<Out<T>, CallError> {
    match out_if(place, name) {
        Ok(Some(place)) => Ok(place),
        Ok(None) => Err(CallError::Null(name)),
        Err(failure) => Err(failure),
    }
}

/// A variable that may be NULL.
#[inline]
pub(crate) fn out_if<T>(place: *mut T, name: &'static str) -> Result<Option<Out<T>>, CallError> {
    if !place.is_aligned() {
        return Err(CallError::Misaligned(name));
    }
    Ok(NonNull::new(place).map(Out))
}

impl<T: Copy> Out<T> {
    /// Writes the result.
    #[inline]
    pub(crate) fn write(&self, value: T) {
        // SAFETY: not NULL and aligned; room for one value guaranteed by the caller.
        unsafe { self.0.write(value) };
    }

    /// Reads the value.
    #[inline]
    pub(crate) fn read(&self) -> T {
        // SAFETY: as in `write`; used only for variables that the header requires to be initialised.
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

/// Writes to an optional variable.
#[inline]
pub(crate) fn tell<T: Copy>(place: Option<Out<T>>, value: T) {
    if let Some(place) = place {
        place.write(value);
    }
}

/// A C caller's array of `count` elements; empty for NULL.
pub(crate) fn array<'a, T>(
    start: *mut T,
    count: usize,
    name: &'static str,
) -> Result<&'a mut [T], CallError> {
    let Some(start) = NonNull::new(start) else {
        return if count == 0 { Ok(&mut []) } else { Err(CallError::Null(name)) };
    };
    if !start.is_aligned() {
        return Err(CallError::Misaligned(name));
    }
    if count > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(CallError::Argument("an array is longer than memory"));
    }
    // SAFETY: aligned and of a possible length; that it is there and used by no other thread during the call is guaranteed by the caller.
    Ok(unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), count) })
}

/// The C string at `start`; `None` for NULL.
pub(crate) fn text<'a>(start: *const c_char, name: &'static str) -> Result<Option<&'a str>, CallError> {
    if start.is_null() {
        return Ok(None);
    }
    // SAFETY: not NULL; that it ends with a NUL is guaranteed by the caller.
    let text = unsafe { CStr::from_ptr(start) };
    text.to_str().map(Some).map_err(|_| CallError::NoText(name))
}
