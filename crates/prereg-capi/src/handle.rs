//! Handles: what C holds of ours. Boxes with a tag in front.
//!
//! A handle is made by a call that fills the caller's pointer and ends by a call that takes the caller's pointer by
//! address and sets it to NULL, so the same variable cannot be freed twice. The tag finds most of what remains: a handle
//! of another type, or (as long as nobody has used the memory again) one that was freed through another copy of the
//! pointer.

#![expect(unsafe_code, reason = "a box is made without the end of the process when memory is short")]

use std::alloc::{Layout, alloc, dealloc};
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::failure::Failure;

/// The tag and what it stands before. `repr(C)`: all handles have the tag at the same place.
#[repr(C)]
pub(crate) struct Handle<T> {
    tag: AtomicU64,
    body: T,
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        // Relaxed: read by nobody but a caller who breaks the rules; an atomic, so that the store is not left out.
        self.tag.store(0, Ordering::Relaxed);
    }
}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").finish_non_exhaustive()
    }
}

/// A type of handle.
pub(crate) trait Kind: Sized {
    /// What stands in front of a live one.
    const TAG: u64;
    /// Its name in C.
    const NAME: &'static str;
    /// What it is a handle on.
    type Body;

    fn wrap(handle: Handle<Self::Body>) -> Self;
    fn handle(&self) -> &Handle<Self::Body>;
    fn handle_mut(&mut self) -> &mut Handle<Self::Body>;
    fn unwrap(self) -> Handle<Self::Body>;
}

/// Makes each of the structs, which have one field, a kind of handle.
macro_rules! kinds {
    ($($name:ident, $body:ty, $tag:literal;)*) => {$(
        impl $crate::handle::Kind for $name {
            const TAG: u64 = u64::from_be_bytes(*$tag);
            const NAME: &'static str = stringify!($name);
            type Body = $body;

            fn wrap(handle: $crate::handle::Handle<$body>) -> Self {
                Self(handle)
            }
            fn handle(&self) -> &$crate::handle::Handle<$body> {
                &self.0
            }
            fn handle_mut(&mut self) -> &mut $crate::handle::Handle<$body> {
                &mut self.0
            }
            fn unwrap(self) -> $crate::handle::Handle<$body> {
                self.0
            }
        }
    )*};
}
pub(crate) use kinds;

#[inline]
fn check<K: Kind>(given: &K) -> Result<(), Failure> {
    // Relaxed: set once, before C knew the handle.
    if given.handle().tag.load(Ordering::Relaxed) == K::TAG { Ok(()) } else { Err(Failure::Handle(K::NAME)) }
}

/// What a caller's handle stands for.
#[inline]
pub(crate) fn body<K: Kind>(given: Option<&K>) -> Result<&K::Body, Failure> {
    let Some(given) = given else { return Err(Failure::Null(K::NAME)) };
    check(given)?;
    Ok(&given.handle().body)
}

/// The same, for a handle that one thread at a time may use.
#[inline]
pub(crate) fn body_mut<K: Kind>(given: Option<&mut K>) -> Result<&mut K::Body, Failure> {
    let Some(given) = given else { return Err(Failure::Null(K::NAME)) };
    check(given)?;
    Ok(&mut given.handle_mut().body)
}

/// Where a call puts what it makes.
#[inline]
pub(crate) fn room<'a, T>(
    place: Option<&'a mut MaybeUninit<T>>,
    name: &'static str,
) -> Result<&'a mut MaybeUninit<T>, Failure> {
    // Not `ok_or`: an error that is made to be dropped is a third of the cost of a map.
    match place {
        Some(place) => Ok(place),
        None => Err(Failure::Null(name)),
    }
}

/// Makes a handle and puts it into the caller's variable; NULL there when `make` fails. Nothing fails after `make`.
pub(crate) fn hand_out<K: Kind>(
    place: Option<&mut MaybeUninit<Option<Box<K>>>>,
    make: impl FnOnce() -> Result<K::Body, Failure>,
) -> Result<(), Failure> {
    let place = room(place, "the place for the new handle")?.write(None);
    let vacant = Vacant::<K>::new().ok_or(Failure::OutOfMemory)?;
    *place = Some(vacant.fill(make()?));
    Ok(())
}

/// The caller's handle, out of his variable; `None` when it was NULL there, or he passed no variable.
///
/// # Errors
/// A handle that is none stays where it is.
pub(crate) fn take<K: Kind>(place: Option<&mut Option<Box<K>>>) -> Result<Option<Box<K>>, Failure> {
    let Some(place) = place else { return Ok(None) };
    if let Some(held) = place.as_deref() {
        check(held)?;
    }
    Ok(place.take())
}

/// What stands behind a handle that is given up.
pub(crate) fn into_body<K: Kind>(held: Box<K>) -> K::Body {
    split(held).1
}

/// Lets `work` have the body. What it hands back stays in the same handle; otherwise the handle ends and the caller's
/// variable becomes NULL.
pub(crate) fn surrender<K: Kind>(
    place: Option<&mut Option<Box<K>>>,
    work: impl FnOnce(K::Body) -> (Option<K::Body>, Result<(), Failure>),
) -> Result<(), Failure> {
    let Some(place) = place else { return Ok(()) };
    let Some(held) = take(Some(&mut *place))? else { return Ok(()) };
    let (vacant, body) = split(held);
    let (left, result) = work(body);
    if let Some(body) = left {
        *place = Some(vacant.fill(body));
    }
    result
}

/// The body, and the memory it was in.
pub(crate) fn split<K: Kind>(held: Box<K>) -> (Vacant<K>, K::Body) {
    // Relaxed: as in `drop`.
    held.handle().tag.store(0, Ordering::Relaxed);
    let place = Box::into_raw(held);
    // SAFETY: a box that is taken apart: moved out once, and its memory is vacant from here on.
    let handle = std::mem::ManuallyDrop::new(unsafe { place.read() }.unwrap());
    // SAFETY: `handle` is not used or dropped again, so its body is moved out once.
    let body = unsafe { std::ptr::read(&raw const handle.body) };
    // SAFETY: a box is not null.
    (Vacant(unsafe { NonNull::new_unchecked(place) }), body)
}

/// Memory for a handle, had before anything is made that would have to be undone.
pub(crate) struct Vacant<K: Kind>(NonNull<K>);

impl<K: Kind> Vacant<K> {
    const LAYOUT: Layout = {
        let layout = Layout::new::<K>();
        assert!(layout.size() != 0, "a handle has a tag");
        layout
    };

    fn new() -> Option<Self> {
        // SAFETY: the layout is not of size 0.
        NonNull::new(unsafe { alloc(Self::LAYOUT) }.cast()).map(Self)
    }

    pub(crate) fn fill(self, body: K::Body) -> Box<K> {
        let place = std::mem::ManuallyDrop::new(self).0;
        let held = K::wrap(Handle { tag: AtomicU64::new(K::TAG), body });
        // SAFETY: memory of just this layout, which nobody else knows.
        unsafe { place.write(held) };
        // SAFETY: allocated by the global allocator with the layout of the type, and initialised.
        unsafe { Box::from_raw(place.as_ptr()) }
    }
}

impl<K: Kind> Drop for Vacant<K> {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and never filled.
        unsafe { dealloc(self.0.as_ptr().cast(), Self::LAYOUT) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct One(Handle<String>);
    struct Other(Handle<String>);
    kinds! {
        One, String, b"test-one";
        Other, String, b"test-two";
    }

    fn made(text: &str) -> Option<Box<One>> {
        let mut place = MaybeUninit::uninit();
        hand_out::<One>(Some(&mut place), || Ok(text.to_owned())).unwrap();
        // SAFETY: filled by `hand_out`.
        unsafe { place.assume_init() }
    }

    #[test]
    fn a_handle_goes_out_and_comes_back_once() {
        let mut held = made("body");
        assert_eq!(body(held.as_deref()).unwrap(), "body");
        body_mut(held.as_deref_mut()).unwrap().push('!');
        let taken = take(Some(&mut held)).unwrap().unwrap();
        assert_eq!(into_body(taken), "body!");
        assert!(held.is_none());
        assert!(take(Some(&mut held)).unwrap().is_none());
        assert!(take::<One>(None).unwrap().is_none());
    }

    #[test]
    fn a_body_that_is_handed_back_stays_where_it_was() {
        let mut held = made("body");
        let place = std::ptr::from_ref(held.as_deref().unwrap());
        let refused = surrender(Some(&mut held), |body| (Some(body + "!"), Err(Failure::OutOfMemory)));
        assert!(matches!(refused, Err(Failure::OutOfMemory)));
        assert_eq!(std::ptr::from_ref(held.as_deref().unwrap()), place);
        assert_eq!(body(held.as_deref()).unwrap(), "body!");
        surrender(Some(&mut held), |_| (None, Ok(()))).unwrap();
        assert!(held.is_none());
    }

    #[test]
    fn null_and_another_type_are_refused() {
        assert!(matches!(body::<One>(None), Err(Failure::Null("One"))));
        let held = made("body");
        // SAFETY: of the same layout; what a wrong cast in C does.
        let wrong: &Other = unsafe { &*std::ptr::from_ref(held.as_deref().unwrap()).cast() };
        assert!(matches!(body(Some(wrong)), Err(Failure::Handle("Other"))));
    }

    #[test]
    fn a_tag_that_is_gone_leaves_the_variable_alone() {
        let mut held = made("body");
        held.as_ref().unwrap().0.tag.store(0, Ordering::Relaxed);
        assert!(matches!(take(Some(&mut held)), Err(Failure::Handle("One"))));
        assert!(held.is_some());
    }

    #[test]
    fn what_cannot_be_made_leaves_null_and_no_memory() {
        let mut place = MaybeUninit::new(made("old"));
        let refused = hand_out::<One>(Some(&mut place), || Err(Failure::OutOfMemory));
        assert!(matches!(refused, Err(Failure::OutOfMemory)));
        // SAFETY: filled by `hand_out`.
        assert!(unsafe { place.assume_init() }.is_none());
        assert!(matches!(hand_out::<One>(None, || panic!("not asked")), Err(Failure::Null(_))));
    }
}
