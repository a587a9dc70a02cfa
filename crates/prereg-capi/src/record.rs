//! Structs that begin with their size, so that a program and a library of different versions work together.
//!
//! A caller sets `size` to the size in its header. Members that a smaller struct lacks read as zero and are not written; members of a larger
//! one that this library does not know must be zero and are not written. In an array the size of the first element is the distance of the
//! elements.

#![expect(
    unsafe_code,
    reason = "copies bytes between this library's structs and a C caller's of another size"
)]

use std::mem::MaybeUninit;
use std::ptr::NonNull;

use crate::error::CallError;

/// The largest size of a struct of any version.
const MAX_SIZE: usize = 4096;
const SIZE: usize = size_of::<usize>();

/// A struct whose first member is its size.
///
/// # Safety
/// `repr(C)`, the first member is `size: usize`, and every bit pattern is a valid value.
pub(crate) unsafe trait Record: Copy {
    /// Its name in C.
    const NAME: &'static str;
}

/// Makes each of the structs a record.
macro_rules! records {
    ($($name:ident),* $(,)?) => {$(
        // SAFETY: `repr(C)`, made of integers, pointers and optional functions; `size` comes first.
        #[expect(unsafe_code, reason = "the layout is checked by hand")]
        unsafe impl $crate::record::Record for $name {
            const NAME: &'static str = {
                assert!(std::mem::offset_of!($name, size) == 0);
                stringify!($name)
            };
        }
    )*};
}
pub(crate) use records;

/// The size in the caller's struct.
fn declared<T: Record>(place: *const T) -> Result<(NonNull<u8>, usize), CallError> {
    let Some(start) = NonNull::new(place.cast_mut()) else { return Err(CallError::Null(T::NAME)) };
    if !start.is_aligned() {
        return Err(CallError::Misaligned(T::NAME));
    }
    // SAFETY: every version of the struct begins with its size; the caller guarantees that it is valid.
    let found = unsafe { start.cast::<usize>().read() };
    if !(SIZE..=MAX_SIZE).contains(&found) {
        return Err(CallError::Size { name: T::NAME, found, known: size_of::<T>() });
    }
    Ok((start.cast(), found))
}

/// A caller's struct, with zeros for the members that its version lacks.
pub(crate) fn read<T: Record>(place: *const T) -> Result<T, CallError> {
    let (start, bytes) = declared(place)?;
    let mut value = MaybeUninit::<T>::zeroed();
    let known = bytes.min(size_of::<T>());
    // SAFETY: both have `known` bytes, as the caller guarantees.
    unsafe { start.as_ptr().copy_to_nonoverlapping(value.as_mut_ptr().cast(), known) };
    // SAFETY: as above, for the rest of the caller's struct.
    let rest = unsafe { start.add(known) };
    // SAFETY: as above.
    let rest = unsafe { std::slice::from_raw_parts(rest.as_ptr(), bytes - known) };
    if rest.iter().any(|&byte| byte != 0) {
        return Err(CallError::Newer { name: T::NAME, found: bytes, known });
    }
    // SAFETY: zeros and the caller's bytes, and every bit pattern is a valid value.
    Ok(unsafe { value.assume_init() })
}

/// Like `read`; NULL is `None`.
pub(crate) fn read_if<T: Record>(place: *const T) -> Result<Option<T>, CallError> {
    if place.is_null() { Ok(None) } else { read(place).map(Some) }
}

/// A caller's struct that a call fills, checked before the call changes anything.
#[derive(Debug)]
pub(crate) struct OutRecord {
    start: NonNull<u8>,
    bytes: usize,
}

/// A required struct.
pub(crate) fn out<T: Record>(place: *mut T) -> Result<OutRecord, CallError> {
    let (start, bytes) = declared(place)?;
    Ok(OutRecord { start, bytes })
}

/// Like `out`; NULL is `None`.
pub(crate) fn out_if<T: Record>(place: *mut T) -> Result<Option<OutRecord>, CallError> {
    if place.is_null() { Ok(None) } else { out(place).map(Some) }
}

impl OutRecord {
    /// Fills the members of the caller's version; the size is unchanged.
    pub(crate) fn write<T: Record>(&self, value: &T) {
        let known = self.bytes.min(size_of::<T>());
        let from = std::ptr::from_ref(value).cast::<u8>();
        // SAFETY: inside the caller's struct, which has at least its size.
        let place = unsafe { self.start.add(SIZE) };
        // SAFETY: inside `value`.
        let from = unsafe { from.add(SIZE) };
        // SAFETY: both have `known` bytes, without the size.
        unsafe { from.copy_to_nonoverlapping(place.as_ptr(), known - SIZE) };
    }
}

/// A caller's array of structs that a call fills.
#[derive(Debug)]
pub(crate) struct OutRecords {
    first: Option<OutRecord>,
    count: usize,
}

/// `count` structs at `start`, at the distance of the first one's size; empty for NULL.
pub(crate) fn out_array<T: Record>(start: *mut T, count: usize) -> Result<OutRecords, CallError> {
    if count == 0 {
        return Ok(OutRecords { first: None, count });
    }
    let first = out(start)?;
    if first.bytes % align_of::<T>() != 0 {
        return Err(CallError::Size { name: T::NAME, found: first.bytes, known: size_of::<T>() });
    }
    if count > isize::MAX as usize / first.bytes {
        return Err(CallError::Argument("an array is longer than memory"));
    }
    Ok(OutRecords { first: Some(first), count })
}

impl OutRecords {
    /// The number of structs.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// Fills struct `index` and sets its size; does nothing beyond the last.
    pub(crate) fn write<T: Record>(&self, index: usize, value: &T) {
        let Some(first) = self.first.as_ref().filter(|_| index < self.count) else { return };
        // SAFETY: inside the caller's array, whose length in bytes is a possible one.
        let start = unsafe { first.start.add(index * first.bytes) };
        // SAFETY: each element begins with its size.
        unsafe { start.cast::<usize>().write(first.bytes) };
        OutRecord { start, bytes: first.bytes }.write(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[repr(C)]
    #[derive(Clone, Copy, Debug)]
    struct Now {
        size: usize,
        one: u64,
        two: u64,
    }

    #[repr(C)]
    #[derive(Clone, Copy, Debug)]
    struct Later {
        size: usize,
        one: u64,
        two: u64,
        three: u64,
    }

    records!(Now, Later);

    fn now(size: usize) -> Now {
        Now { size, one: 1, two: 2 }
    }

    #[test]
    fn an_older_callers_struct_lacks_members() {
        let given = now(SIZE + 8);
        let seen = read(&raw const given).unwrap();
        assert_eq!((seen.one, seen.two), (1, 0));
        let mut filled = now(SIZE + 8);
        out(&raw mut filled).unwrap().write(&Now { size: 0, one: 7, two: 8 });
        assert_eq!((filled.size, filled.one, filled.two), (SIZE + 8, 7, 2));
    }

    #[test]
    fn a_newer_callers_members_must_be_zero() {
        let mut given = Later { size: size_of::<Later>(), one: 1, two: 2, three: 0 };
        assert_eq!(read((&raw const given).cast::<Now>()).unwrap().two, 2);
        out((&raw mut given).cast::<Now>()).unwrap().write(&Now { size: 0, one: 7, two: 8 });
        assert_eq!((given.size, given.one, given.two, given.three), (size_of::<Later>(), 7, 8, 0));
        given.three = 1;
        assert!(matches!(
            read((&raw const given).cast::<Now>()),
            Err(CallError::Newer { found: 32, known: 24, .. })
        ));
    }

    #[test]
    fn no_size_is_refused_that_cannot_be() {
        for size in [0, SIZE - 1, MAX_SIZE + 1, usize::MAX] {
            let mut given = now(size);
            assert!(matches!(read(&raw const given), Err(CallError::Size { .. })));
            assert!(matches!(out(&raw mut given), Err(CallError::Size { .. })));
        }
        assert!(matches!(read(std::ptr::null::<Now>()), Err(CallError::Null("Now"))));
        assert!(matches!(read(std::ptr::without_provenance::<Now>(4)), Err(CallError::Misaligned("Now"))));
        let mut given = now(SIZE + 4);
        assert!(matches!(out_array(&raw mut given, 2), Err(CallError::Size { .. })));
    }

    #[test]
    fn elements_lie_as_far_apart_as_the_first_says() {
        let mut list = [Later { size: size_of::<Later>(), one: 0, two: 0, three: 5 }; 3];
        let places = out_array(list.as_mut_ptr().cast::<Now>(), 3).unwrap();
        for index in 0..4 {
            places.write(index, &Now { size: 0, one: index as u64, two: 9 });
        }
        let seen = list.map(|element| (element.size, element.one, element.two, element.three));
        assert_eq!(seen, [(32, 0, 9, 5), (32, 1, 9, 5), (32, 2, 9, 5)]);
    }
}
