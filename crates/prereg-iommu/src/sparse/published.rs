//! One place for one value that is made once, by whoever needs it first, and stays until its owner goes.
//!
//! Readers pay one load. Makers race with a compare-exchange: the loser drops what it made and uses the winner's, so
//! nobody ever waits for anybody (a once-cell of the standard library would let the loser sleep, and is twice as big).

#![expect(
    unsafe_code,
    reason = "a published value is reached through an atomic pointer; safe code has none that cannot block"
)]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;
use core::sync::atomic::{AtomicPtr, Ordering};

use prereg::OutOfMemory;

/// Empty, or a value that never moves and never changes hands.
///
/// # Invariants
/// `at` is null, or comes from `Box::into_raw` of a `Box<T>` that this `Published` owns. It changes once at most, from
/// null to that pointer.
pub(crate) struct Published<T> {
    at: AtomicPtr<T>,
    owns: PhantomData<Box<T>>,
}

impl<T> Published<T> {
    pub(crate) const fn empty() -> Self {
        Self { at: AtomicPtr::new(ptr::null_mut()), owns: PhantomData }
    }

    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        // Acquire pairs with the Release of the exchange in `publish`: whoever sees the pointer sees the value behind it.
        let at = self.at.load(Ordering::Acquire);
        // SAFETY: by the invariant `at` is null or points to a live `T` that is freed by our own drop only, which needs
        // `&mut self` and so cannot run while the returned borrow of `self` lives. No `&mut T` is ever made before that.
        unsafe { at.as_ref() }
    }
}

// Publishing through `&self` moves the value to another thread, which may drop it: hence Send as well as Sync.
impl<T: Send + Sync> Published<T> {
    /// Makes `value` the published one unless there is one already; returns the published one.
    pub(crate) fn publish(&self, value: T) -> Result<&T, OutOfMemory> {
        let ours = Box::into_raw(try_box(value)?);
        // Release: the value is written before the pointer can be seen; pairs with the Acquire in `get`. On failure,
        // Acquire: we go on to read what the winner wrote.
        match self.at.compare_exchange(ptr::null_mut(), ours, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {}
            Err(_) => {
                // SAFETY: `ours` came from `Box::into_raw` above and was not published, so nobody else has it.
                drop(unsafe { Box::from_raw(ours) });
            }
        }
        self.get().ok_or(OutOfMemory)
    }
}

impl<T> Drop for Published<T> {
    fn drop(&mut self) {
        let at = *self.at.get_mut();
        if !at.is_null() {
            // SAFETY: by the invariant `at` is a box that we own, and `&mut self` says that no borrow of it is left.
            drop(unsafe { Box::from_raw(at) });
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// `Box::new` that says so when there is no memory.
fn try_box<T>(value: T) -> Result<Box<T>, OutOfMemory> {
    let mut one = Vec::new();
    one.try_reserve_exact(1).map_err(|_| OutOfMemory)?;
    one.push(value);
    let slice = Box::into_raw(one.into_boxed_slice());
    // SAFETY: a boxed slice of one element is an allocation with the layout of that element, made by the same allocator.
    Ok(unsafe { Box::from_raw(slice.cast::<T>()) })
}

#[cfg(test)]
mod tests {
    use alloc::sync::Arc;
    use std::thread;

    use super::*;

    #[test]
    fn the_first_value_published_stays_and_the_loser_is_dropped() {
        let first = Arc::new(1);
        let second = Arc::new(2);
        let place = Published::empty();
        assert!(place.get().is_none());
        assert_eq!(**place.publish(first.clone()).unwrap(), 1);
        assert_eq!(**place.publish(second.clone()).unwrap(), 1);
        assert_eq!((Arc::strong_count(&first), Arc::strong_count(&second)), (2, 1));
        drop(place);
        assert_eq!(Arc::strong_count(&first), 1);
    }

    #[test]
    fn threads_that_race_to_publish_agree_on_one_value() {
        for _ in 0..if cfg!(miri) { 5 } else { 50 } {
            let place = Published::empty();
            let seen: Vec<u64> = thread::scope(|scope| {
                let racers: Vec<_> = (0..4u64)
                    .map(|name| {
                        scope.spawn({
                            let place = &place;
                            move || *place.publish(name).unwrap()
                        })
                    })
                    .collect();
                racers.into_iter().map(|racer| racer.join().unwrap()).collect()
            });
            assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
        }
    }
}
