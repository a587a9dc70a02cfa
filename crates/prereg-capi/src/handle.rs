//! Opaque handles given to C: numbers with the type of pointers.
//!
//! A handle has the number of a slot in the process's table and the generation of its content. It is never dereferenced: a freed handle,
//! one of another type and an invalid one are refused, and never mistaken for a newer one in the same slot. A slot whose generations are
//! used up is not used again.
//!
//! A handle is created by a call that writes it to the caller's variable, and released by a call that takes the variable's address and
//! sets it to NULL. The caller guarantees that no other call uses a handle while it is released, and that handles for one thread at
//! a time are used so.

#![expect(unsafe_code, reason = "the table has the addresses of the handles' bodies")]

use std::alloc::{Layout, alloc, dealloc};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering};

use crate::arena::{Arena, Slot};
use crate::caller::{Out, out, out_if};
use crate::error::CallError;

/// A type of handle.
pub(crate) trait Kind: Sized {
    /// Its own number, not 0.
    const NUMBER: u8;
    /// Its name in C.
    const NAME: &'static str;
    /// The type of the body.
    type Body: 'static;
}

/// Implements [`Kind`] for each of the types.
macro_rules! kinds {
    ($($name:ident, $body:ty, $number:literal;)*) => {$(
        impl $crate::handle::Kind for $name {
            const NUMBER: u8 = $number;
            const NAME: &'static str = stringify!($name);
            type Body = $body;
        }
    )*};
}
pub(crate) use kinds;

/// One entry of the table.
struct Entry {
    /// The address of the body.
    body: AtomicPtr<()>,
    /// The generation above the number of the kind; the kind is 0 while there is no body.
    state: AtomicU64,
    next: AtomicU32,
}

// SAFETY: a pointer and integers.
unsafe impl Slot for Entry {
    fn next(&self) -> &AtomicU32 {
        &self.next
    }
}

static TABLE: Arena<Entry> = Arena::new();

/// A handle is a generation above a slot's number, each half a pointer wide.
const HALF: u32 = usize::BITS / 2;
const MAX_NUMBER: u64 = (1 << HALF) - 1;

const fn state(generation: u64, kind: u8) -> u64 {
    generation << 8 | kind as u64
}

/// The entry that a handle names, if there is one, and its generation.
#[inline(always)]
fn entry_of<K: Kind>(handle: *const K) -> Result<(u32, u64, &'static Entry), CallError> {
    let word = handle.addr() as u64;
    if word == 0 {
        return Err(CallError::Null(K::NAME));
    }
    let (number, generation) = ((word & MAX_NUMBER) as u32, word >> HALF);
    match TABLE.get(number) {
        Some(entry) => Ok((number, generation, entry)),
        None => Err(CallError::Handle(K::NAME)),
    }
}

/// The address of the body of a live handle.
#[inline(always)]
fn find<K: Kind>(handle: *const K) -> Result<NonNull<K::Body>, CallError> {
    let (_, generation, entry) = entry_of(handle)?;
    // Acquire pairs with the Release in `fill`: the body is visible.
    if entry.state.load(Ordering::Acquire) != state(generation, K::NUMBER) {
        return Err(CallError::Handle(K::NAME));
    }
    // Relaxed: written before the state, which was acquired.
    match NonNull::new(entry.body.load(Ordering::Relaxed).cast()) {
        Some(body) => Ok(body),
        None => Err(CallError::Handle(K::NAME)),
    }
}

/// The body of a caller's handle.
#[inline(always)]
pub(crate) fn body<'a, K: Kind>(handle: *const K) -> Result<&'a K::Body, CallError> {
    let body = find(handle)?;
    // SAFETY: of this type, because the kind matches; it lives until the handle is released, which the caller guarantees not to do during
    // the call.
    Ok(unsafe { body.as_ref() })
}

/// Like `body`, for a handle that one thread at a time may use.
#[inline(always)]
pub(crate) fn body_mut<'a, K: Kind>(handle: *mut K) -> Result<&'a mut K::Body, CallError> {
    let mut body = find(handle)?;
    // SAFETY: as in `body`; and the caller guarantees that no other call uses it.
    Ok(unsafe { body.as_mut() })
}

/// The entry and the body of a handle that is released.
pub(crate) type Parts<K> = (Vacant<K>, <K as Kind>::Body);

/// Creates a handle and writes it to the caller's variable, or NULL if `make` fails. Nothing fails after `make`.
pub(crate) fn create_handle<K: Kind>(
    place: *mut *mut K,
    make: impl FnOnce() -> Result<K::Body, CallError>,
) -> Result<(), CallError> {
    let place = out(place, "the variable for the new handle")?;
    place.write(std::ptr::null_mut());
    let vacant = Vacant::<K>::new().ok_or(CallError::OutOfMemory)?;
    place.write(vacant.fill(make()?));
    Ok(())
}

/// Takes the handle from the caller's variable; `None` if it is NULL, or the variable's address is NULL.
///
/// # Errors
/// An invalid handle; the variable is unchanged.
pub(crate) fn take<K: Kind>(place: *mut *mut K) -> Result<Option<K::Body>, CallError> {
    Ok(detach_if_live(out_if(place, "the variable of the handle")?.as_ref())?.map(|(_, body)| body))
}

fn detach_if_live<K: Kind>(place: Option<&Out<*mut K>>) -> Result<Option<Parts<K>>, CallError> {
    let Some(place) = place else { return Ok(None) };
    let handle = place.read();
    if handle.is_null() {
        return Ok(None);
    }
    let parts = detach(handle)?;
    place.write(std::ptr::null_mut());
    Ok(Some(parts))
}

/// Passes the body to `work`. A body that it returns stays with the handle; otherwise the handle is released and the caller's variable
/// set to NULL.
pub(crate) fn release_unless<K: Kind>(
    place: *mut *mut K,
    work: impl FnOnce(K::Body) -> (Option<K::Body>, Result<(), CallError>),
) -> Result<(), CallError> {
    let place = out_if(place, "the variable of the handle")?;
    let Some((vacant, body)) = detach_if_live(place.as_ref())? else { return Ok(()) };
    let (left, result) = work(body);
    if let (Some(body), Some(place)) = (left, place) {
        place.write(vacant.fill(body));
    }
    result
}

/// Detaches all handles of an array that are not NULL, with their indices: all, or none if one is invalid.
pub(crate) fn detach_all<K: Kind>(places: &mut [*mut K]) -> Result<Vec<(usize, Parts<K>)>, CallError> {
    let mut taken = Vec::new();
    for (index, place) in places.iter().enumerate().filter(|(_, place)| !place.is_null()) {
        match detach(*place) {
            Ok(parts) => taken.push((index, parts)),
            Err(failure) => {
                // The handles are valid again, so the variables stay.
                for (_, (vacant, body)) in taken {
                    let _ = vacant.fill(body);
                }
                return Err(failure);
            }
        }
    }
    taken.iter().for_each(|(index, _)| places[*index] = std::ptr::null_mut());
    Ok(taken)
}

/// Detaches the body of a live handle from its entry. The handle is then invalid, unless the entry is filled again.
fn detach<K: Kind>(handle: *mut K) -> Result<Parts<K>, CallError> {
    let (number, generation, entry) = entry_of(handle.cast_const())?;
    // Acquire pairs with the Release in `fill`. The exchange of one thread succeeds.
    entry
        .state
        .compare_exchange(
            state(generation, K::NUMBER),
            state(generation, 0),
            Ordering::Acquire,
            Ordering::Relaxed,
        )
        .map_err(|_| CallError::Handle(K::NAME))?;
    let memory = NonNull::new(entry.body.load(Ordering::Relaxed).cast()).ok_or(CallError::Handle(K::NAME))?;
    let vacant = Vacant { entry, number, generation, memory };
    // SAFETY: `fill` wrote it, and the exchange above made it this call's alone.
    let body = unsafe { memory.read() };
    Ok((vacant, body))
}

/// An entry of the table and memory for a body, allocated before anything that would have to be undone.
pub(crate) struct Vacant<K: Kind> {
    entry: &'static Entry,
    number: u32,
    generation: u64,
    memory: NonNull<K::Body>,
}

impl<K: Kind> Vacant<K> {
    const LAYOUT: Layout = {
        let layout = Layout::new::<K::Body>();
        assert!(layout.size() != 0 && K::NUMBER != 0, "a body has a size and a kind a number");
        layout
    };

    pub(crate) fn new() -> Option<Self> {
        // SAFETY: the layout is not of size 0.
        let memory = NonNull::new(unsafe { alloc(Self::LAYOUT) })?.cast::<K::Body>();
        let Some((number, entry)) = TABLE.acquire().filter(|(number, _)| u64::from(*number) <= MAX_NUMBER)
        else {
            // SAFETY: allocated above with this layout.
            unsafe { dealloc(memory.as_ptr().cast(), Self::LAYOUT) };
            return None;
        };
        // Relaxed, both: the entry is this call's alone.
        let generation = (entry.state.load(Ordering::Relaxed) >> 8) + 1;
        entry.state.store(state(generation, 0), Ordering::Relaxed);
        Some(Self { entry, number, generation, memory })
    }

    /// Makes the handle live.
    pub(crate) fn fill(self, body: K::Body) -> *mut K {
        let this = std::mem::ManuallyDrop::new(self);
        // SAFETY: memory for one body, which is this call's alone.
        unsafe { this.memory.write(body) };
        // Relaxed: the state below is stored after it.
        this.entry.body.store(this.memory.as_ptr().cast(), Ordering::Relaxed);
        // Release pairs with the Acquire in `find` and `split`.
        this.entry.state.store(state(this.generation, K::NUMBER), Ordering::Release);
        let word = this.generation << HALF | u64::from(this.number);
        // Each is half a pointer wide, so nothing is truncated.
        std::ptr::without_provenance_mut(word as usize)
    }
}

impl<K: Kind> Drop for Vacant<K> {
    fn drop(&mut self) {
        // Relaxed: the state already marks the entry as empty.
        self.entry.body.store(std::ptr::null_mut(), Ordering::Relaxed);
        // SAFETY: allocated with this layout, and it has no body.
        unsafe { dealloc(self.memory.as_ptr().cast(), Self::LAYOUT) };
        if self.generation < MAX_NUMBER {
            TABLE.release(self.number, self.entry);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One;
    struct Other;
    kinds! {
        One, String, 254;
        Other, String, 255;
    }

    fn made(text: &str) -> *mut One {
        let mut place = std::ptr::dangling_mut();
        create_handle::<One>(&raw mut place, || Ok(text.to_owned())).unwrap();
        place
    }

    #[test]
    fn a_handle_goes_out_and_comes_back_once() {
        let mut held = made("body");
        assert_eq!(body(held.cast_const()).unwrap(), "body");
        body_mut(held).unwrap().push('!');
        let mut copy = held;
        assert_eq!(take(&raw mut held).unwrap().unwrap(), "body!");
        assert!(held.is_null() && take(&raw mut held).unwrap().is_none());
        assert!(matches!(take(&raw mut copy), Err(CallError::Handle("One"))) && !copy.is_null());
        assert!(take::<One>(std::ptr::null_mut()).unwrap().is_none());
    }

    #[test]
    fn a_freed_handle_is_never_taken_for_a_newer_one() {
        let mut seen = Vec::new();
        for _ in 0..300 {
            let mut held = made("body");
            assert!(seen.iter().all(|old| *old != held));
            assert!(seen.iter().all(|old: &*mut One| body(old.cast_const()).is_err()));
            seen.push(held);
            take(&raw mut held).unwrap();
        }
    }

    #[test]
    fn a_body_that_is_returned_stays_behind_its_handle() {
        let mut held = made("body");
        let before = held;
        let refused = release_unless(&raw mut held, |body| {
            assert!(super::body(before.cast_const()).is_err());
            (Some(body + "!"), Err(CallError::OutOfMemory))
        });
        assert!(matches!(refused, Err(CallError::OutOfMemory)));
        assert_eq!((held, body(held.cast_const()).unwrap().as_str()), (before, "body!"));
        release_unless(&raw mut held, |_| (None, Ok(()))).unwrap();
        assert!(held.is_null());
    }

    #[test]
    fn an_array_with_a_handle_twice_is_refused_whole() {
        let (one, two) = (made("one"), made("two"));
        let mut list = [one, std::ptr::null_mut(), two, one];
        assert!(detach_all(&mut list).is_err());
        assert_eq!((list[0], list[2], list[3]), (one, two, one));
        assert_eq!(body(one.cast_const()).unwrap(), "one");
        let taken = detach_all(&mut list[..3]).unwrap();
        assert_eq!(
            taken.iter().map(|(index, (_, body))| (*index, body.as_str())).collect::<Vec<_>>(),
            [(0, "one"), (2, "two")]
        );
        assert!(list[..3].iter().all(|place| place.is_null()));
    }

    #[test]
    fn null_another_type_and_what_was_never_made_are_refused() {
        assert!(matches!(body::<One>(std::ptr::null()), Err(CallError::Null("One"))));
        let mut held = made("body");
        assert!(matches!(body(held.cast_const().cast::<Other>()), Err(CallError::Handle("Other"))));
        for word in [1, 8, 4096, usize::MAX, usize::MAX >> 1, held.addr() ^ 1 << 40, held.addr() + 1] {
            assert!(body(std::ptr::without_provenance::<One>(word)).is_err(), "{word:#x}");
        }
        assert!(matches!(
            take(std::ptr::without_provenance_mut::<*mut One>(4)),
            Err(CallError::Misaligned(_))
        ));
        take(&raw mut held).unwrap();
    }

    #[test]
    fn what_cannot_be_made_leaves_null_and_no_memory() {
        let mut place = std::ptr::dangling_mut::<One>();
        let refused = create_handle(&raw mut place, || Err(CallError::OutOfMemory));
        assert!(matches!(refused, Err(CallError::OutOfMemory)) && place.is_null());
        let nowhere = create_handle::<One>(std::ptr::null_mut(), || panic!("not asked"));
        assert!(matches!(nowhere, Err(CallError::Null(_))));
    }
}
