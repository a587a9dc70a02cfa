//! A slot that is filled once, by the first thread that needs its value, and emptied with its owner.
//!
//! A read is one load. Threads that create the value race with a compare-exchange, and the losers drop theirs: no thread waits
//! for another (the standard library's `OnceLock` blocks, and is twice as large).

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

/// A slot for a value that is set once and does not move.
///
/// # Invariants
/// `at` is null, or comes from `Box::into_raw` of a `Box<T>` that this slot owns. It changes at most once, from null to that
/// pointer.
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
        // Acquire pairs with the Release of the exchange in `publish`: the value was written before the pointer is seen.
        let at = self.at.load(Ordering::Acquire);
        // SAFETY: by the invariant `at` is null or points to a live `T`, which is freed only by our drop; that needs `&mut
        // self`, so not while the returned borrow lives. No `&mut T` exists before.
        unsafe { at.as_ref() }
    }
}

// Publishing through `&self` moves the value to another thread, which may drop it: hence Send besides Sync.
impl<T: Send + Sync> Published<T> {
    /// Sets `value` if the slot is empty; returns the value of the slot.
    pub(crate) fn publish(&self, value: T) -> Result<&T, OutOfMemory> {
        let ours = Box::into_raw(try_box(value)?);
        // Release pairs with the Acquire in `get`: the value is written before the pointer can be seen. Acquire on failure,
        // to read the value of the thread that was faster.
        match self.at.compare_exchange(ptr::null_mut(), ours, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) => {}
            Err(_) => {
                // SAFETY: `ours` came from `Box::into_raw` above and was not published, so it is ours alone.
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
            // SAFETY: by the invariant `at` is a box that we own, and `&mut self` proves that no borrow of it is left.
            drop(unsafe { Box::from_raw(at) });
        }
    }
}

impl<T: fmt::Debug> fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// `Box::new` with an error instead of an abort when memory is exhausted.
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
