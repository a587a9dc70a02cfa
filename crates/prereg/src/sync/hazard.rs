//! Hazard pointers: one writer replaces a value that readers use, and frees it when no reader can use it any more.
//!
//! A [`Published`] owns the current value. Each reader owns a [`HazardSlot`], in which it names the value it uses. Writers
//! are serialised by the caller's lock, load all slots, and free the retired values that none names. A reader never frees,
//! locks, waits or allocates; it uses one value until it asks for a newer one.
//!
//! A reader that named a value in its slot and then found it still current may use it until it names another. A writer
//! frees a value only after replacing it and finding it in no slot. [`Published::protect`] has the proof.

#![cfg_attr(
    not(loom),
    expect(unreachable_pub, reason = "the loom models, in a crate of their own, test this very file")
)]
#![expect(
    unsafe_code,
    reason = "shared pointers to values that a writer frees; nothing else in the crate needs to know how"
)]

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::fmt;
use core::marker::PhantomData;
use core::ptr;

use crate::sync::atomic::{AtomicPtr, Ordering, fence};
use crate::sync::preemption_point;

/// An owning handle that turns into a pointer and back.
pub trait Owner<T>: Sized {
    /// Turns the owner into a pointer, which is never null.
    fn into_raw(self) -> *mut T;

    /// Turns the pointer back into the owner.
    ///
    /// # Safety
    /// `value` is from `into_raw` and was not turned back yet.
    unsafe fn from_raw(value: *mut T) -> Self;
}

impl<T> Owner<T> for Box<T> {
    fn into_raw(self) -> *mut T {
        Self::into_raw(self)
    }

    unsafe fn from_raw(value: *mut T) -> Self {
        // SAFETY: from `Box::into_raw`, as the caller promises.
        unsafe { Self::from_raw(value) }
    }
}

/// The current value, owned.
pub struct Published<T, O: Owner<T> = Box<T>> {
    /// Always from `Owner::into_raw`, never null.
    current: AtomicPtr<T>,
    owner: PhantomData<fn() -> O>,
}

/// The value that one reader uses. Belongs to one `Published` for its whole life.
pub struct HazardSlot<T> {
    /// Null: none. Written by its reader only.
    protected: AtomicPtr<T>,
}

/// Replaced values that may still be in use. Owned by the writers' side.
///
/// Raw pointers, because an owner may claim unique access to a value that readers still use.
pub struct Retired<T, O: Owner<T> = Box<T>> {
    values: Vec<*mut T>,
    owner: PhantomData<fn() -> O>,
}

// SAFETY: the pointers own their values as their owners would; see `Published` for the threads that use them.
unsafe impl<T: Send + Sync, O: Owner<T>> Send for Retired<T, O> {}

impl<T, O: Owner<T>> Drop for Retired<T, O> {
    /// The owner of the published value is dropped, so no reader is left.
    fn drop(&mut self) {
        for value in self.values.drain(..) {
            // SAFETY: from `into_raw`, put here by the swap that made us its only owner.
            drop(unsafe { O::from_raw(value) });
        }
    }
}

impl<T> Default for HazardSlot<T> {
    fn default() -> Self {
        Self { protected: AtomicPtr::new(ptr::null_mut()) }
    }
}

impl<T, O: Owner<T>> Default for Retired<T, O> {
    fn default() -> Self {
        Self { values: Vec::new(), owner: PhantomData }
    }
}

impl<T, O: Owner<T>> Published<T, O> {
    /// Makes `value` the current one.
    pub fn new(value: O) -> Self {
        Self { current: AtomicPtr::new(value.into_raw()), owner: PhantomData }
    }

    /// Names the current value in `hazard` and returns it. The value that `hazard` named before may be freed from here
    /// on.
    ///
    /// Safe against [`reclaim`](Self::reclaim), which runs *swap `current`; fence; load slots* while this runs *store
    /// slot; fence; load `current`*, both fences SeqCst:
    /// - Our fence first: the writer's load, after its fence, sees our store, so it keeps the value.
    /// - The writer's fence first: our second load of `current` sees its swap, so we find another value and try again.
    ///
    /// Lock-free: the loop repeats only when a writer published in between.
    ///
    /// # Safety
    /// 1. `hazard` is among the slots passed to every `reclaim` on this value from now until the pointer is last used.
    /// 2. No other thread calls `protect` or `clear` on `hazard` at the same time.
    #[inline]
    pub unsafe fn protect(&self, hazard: &HazardSlot<T>) -> *const T {
        // Relaxed: checked again below.
        let mut value = self.current.load(Ordering::Relaxed);
        preemption_point();
        loop {
            // Release pairs with the Acquire load of the slot in `reclaim`: our uses of the value named before happen
            // before it is freed.
            hazard.protected.store(value, Ordering::Release);
            fence(Ordering::SeqCst);
            // Acquire pairs with the swap in `replace`: we see the value as its writer made it.
            let now = self.current.load(Ordering::Acquire);
            if ptr::eq(now, value) {
                // Not `value`: the object that pointer came from may have been freed, and the current one made at the
                // same address. Only `now` points to the live value.
                return now;
            }
            value = now;
        }
    }

    /// Calls `look` with the current value.
    ///
    /// # Safety
    /// The caller holds the writers' lock, so that no thread replaces it meanwhile.
    pub unsafe fn with_current<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        // Relaxed: written under the lock the caller holds.
        let current = self.current.load(Ordering::Relaxed);
        // SAFETY: never null, and only a writer replaces or frees it.
        look(unsafe { &*current })
    }

    /// The value that `hazard` names; `None` when it names none.
    ///
    /// # Safety
    /// The caller holds the writers' lock as long as it uses the result: nothing is replaced or freed meanwhile.
    pub unsafe fn protected_by<'a>(
        &'a self,
        retired: &'a Retired<T, O>,
        hazard: &HazardSlot<T>,
    ) -> Option<&'a T> {
        // Relaxed, both: `current` is written under the lock, and a slot only names a value that was current once, so a
        // holder of this lock has stored it before.
        let named = hazard.protected.load(Ordering::Relaxed);
        let current = self.current.load(Ordering::Relaxed);
        let alive = retired.values.iter().copied().chain([current]);
        // By address: the pointer in the slot may be older than the value that is there now.
        let value = alive.into_iter().find(|&value| ptr::addr_eq(value, named))?;
        // SAFETY: current or retired, so it is alive and stays so while the lock is held.
        Some(unsafe { &*value })
    }

    /// Makes `value` current and puts the old one among `retired`. Callers hold the writers' lock.
    pub fn replace(&self, value: O, retired: &mut Retired<T, O>) {
        // Release pairs with the reader's Acquire load in `protect`. The lock orders what other writers made.
        let old = self.current.swap(value.into_raw(), Ordering::Release);
        retired.values.push(old);
    }

    /// Frees every retired value that no slot names; returns how many are kept. Callers hold the writers' lock.
    ///
    /// # Safety
    /// `hazards` yields every slot on this value that is in use.
    pub unsafe fn reclaim<'a>(
        &self,
        retired: &mut Retired<T, O>,
        hazards: impl Iterator<Item = &'a HazardSlot<T>> + Clone,
    ) -> usize
    where
        T: 'a,
    {
        // Partner of the fence in `protect`; see there.
        fence(Ordering::SeqCst);
        retired.values.retain(|&value| {
            // Acquire pairs with the Release store in `protect` and `clear`.
            let used = hazards.clone().any(|hazard| ptr::eq(hazard.protected.load(Ordering::Acquire), value));
            if !used {
                // SAFETY: from `into_raw`; the swap in `replace` made us its only owner, and no slot names it, so no reader
                // uses it now or later (see `protect`).
                drop(unsafe { O::from_raw(value) });
            }
            used
        });
        retired.values.len()
    }
}

impl<T, O: Owner<T>> Retired<T, O> {
    /// The values that are kept.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        // SAFETY: owned, from `into_raw`; readers only use them shared.
        self.values.iter().map(|&value| unsafe { &*value })
    }
}

impl<T> HazardSlot<T> {
    /// Names no value.
    pub fn clear(&self) {
        // Release as in `protect`.
        self.protected.store(ptr::null_mut(), Ordering::Release);
    }
}

impl<T, O: Owner<T>> Drop for Published<T, O> {
    fn drop(&mut self) {
        // Relaxed: exclusive access, ordered by the transfer of ownership.
        let current = self.current.load(Ordering::Relaxed);
        // SAFETY: from `into_raw`, and no other thread can reach it: readers keep the owner of this value alive.
        drop(unsafe { O::from_raw(current) });
    }
}

impl<T, O: Owner<T>> fmt::Debug for Published<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Published").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for HazardSlot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HazardSlot").finish_non_exhaustive()
    }
}

impl<T, O: Owner<T>> fmt::Debug for Retired<T, O> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retired").field("values", &self.values.len()).finish()
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use alloc::sync::Arc;
    use core::sync::atomic::AtomicBool;

    use super::*;

    #[test]
    fn a_value_lives_until_no_hazard_names_it() {
        let [first, second, third] = [1, 2, 3].map(Arc::new);
        let lives = |value: &Arc<i32>| Arc::strong_count(value) > 1;
        let published: Published<Arc<i32>> = Published::new(Box::new(first.clone()));
        let (hazard, mut retired) = (HazardSlot::default(), Retired::default());
        // SAFETY: the slot is passed to every reclaim below, and there is one thread.
        let seen = unsafe { published.protect(&hazard) };
        // SAFETY: the slot names it.
        assert_eq!(unsafe { &*seen }, &first);
        published.replace(Box::new(second.clone()), &mut retired);
        // SAFETY: the only slot.
        assert_eq!(unsafe { published.reclaim(&mut retired, [&hazard].into_iter()) }, 1);
        assert!(lives(&first));
        assert_eq!(retired.iter().collect::<Vec<_>>(), [&first]);
        hazard.clear();
        // SAFETY: as above.
        assert_eq!(unsafe { published.reclaim(&mut retired, [&hazard].into_iter()) }, 0);
        assert!(!lives(&first));
        published.replace(Box::new(third.clone()), &mut retired);
        drop(retired);
        assert!(!lives(&second) && lives(&third));
        drop(published);
        assert!(!lives(&third));
    }

    /// Values are freed and made at the same addresses between the two loads of `protect`. Only miri sees a pointer to the
    /// freed one.
    #[test]
    fn a_value_made_at_the_address_of_a_freed_one_is_used_by_its_own_pointer() {
        let published: Published<u64> = Published::new(Box::new(0));
        let (hazard, mut retired) = (HazardSlot::default(), Retired::default());
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let publications = (1..).take_while(|_| !done.load(Ordering::Relaxed));
                publications.for_each(|value| {
                    published.replace(Box::new(value), &mut retired);
                    // SAFETY: the only slot; this thread is the only writer.
                    unsafe { published.reclaim(&mut retired, [&hazard].into_iter()) };
                });
            });
            let mut newest = 0;
            for _ in 0..if cfg!(miri) { 40 } else { 1_000 } {
                // SAFETY: the slot is passed to every reclaim above, and this thread is its only user.
                let value = unsafe { published.protect(&hazard) };
                // SAFETY: the slot names it.
                let value = unsafe { *value };
                assert!(newest <= value, "{value} after {newest}");
                newest = value;
            }
            done.store(true, Ordering::Relaxed);
            hazard.clear();
        });
    }
}
