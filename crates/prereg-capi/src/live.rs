//! The table of live mappings. A caller's `prereg_mapping` or `prereg_range` refers to one by slot and serial number.
//!
//! The mapping itself stays in the library. The caller's struct has only a slot number and a serial number, which is used once; the slot
//! stores the address of that struct. A copy of the struct cannot release the mapping again, because its address differs, and no
//! content of a struct makes the library access other memory.
//!
//! Every translator has a few free slots of its own, so that mapping uses no word that other threads write.

#![expect(unsafe_code, reason = "slots have mappings of either kind, as their serial numbers say")]

use std::cell::UnsafeCell;
use std::fmt;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use prereg::{Mapping, RangeMapping};

use crate::arena::{Arena, Slot};

const WORDS: usize = 6;

/// A slot with one live mapping, or a free one.
#[repr(C, align(64))]
pub(crate) struct Live {
    /// Incremented at every change; the lowest two bits are the kind of the content, 0 for none.
    serial: AtomicU64,
    inside: UnsafeCell<[MaybeUninit<u64>; WORDS]>,
    /// Part of the address of the caller's struct.
    owner: AtomicU32,
    next: AtomicU32,
}

// SAFETY: `inside` is written by the thread that acquired the slot, and read by the one whose exchange of the serial succeeds, or
// while the caller guarantees that it is not released; the content is `Send` and `Sync`.
unsafe impl Sync for Live {}

// SAFETY: integers and uninitialised memory.
unsafe impl Slot for Live {
    fn next(&self) -> &AtomicU32 {
        &self.next
    }
}

static LIVE: Arena<Live> = Arena::new();

const KIND_BITS: u32 = 2;

/// A kind of mapping that a slot can contain.
pub(crate) trait Counted: Send + Sync + Sized {
    /// Its own number, 1 to 3.
    const KIND: u64;
}

impl Counted for Mapping {
    const KIND: u64 = 1;
}

impl Counted for RangeMapping {
    const KIND: u64 = 2;
}

/// The slot of a mapping, its serial number, and its owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Ticket {
    pub(crate) slot: u64,
    pub(crate) serial: u64,
    /// The address of the caller's struct.
    pub(crate) owner: u64,
}

impl Ticket {
    /// The bits 3 to 34 of the address of the caller's struct, which a slot stores. Two structs have the same ones only if they are a
    /// multiple of 32 GiB apart.
    #[inline]
    fn owner_part(self) -> u32 {
        (self.owner >> 3) as u32
    }
}

impl Live {
    /// Writes a mapping. The slot is the caller's alone.
    #[inline(always)]
    fn fill<C: Counted>(&self, counted: C, slot: u32, owner: u64) -> Ticket {
        const { assert!(size_of::<C>() <= WORDS * 8 && align_of::<C>() <= align_of::<u64>()) };
        // SAFETY: large enough and aligned, as asserted; no other thread has the slot.
        unsafe { self.inside.get().cast::<C>().write(counted) };
        // Relaxed: the slot is the caller's alone.
        let serial = ((self.serial.load(Ordering::Relaxed) >> KIND_BITS) + 1) << KIND_BITS | C::KIND;
        let ticket = Ticket { slot: slot.into(), serial, owner };
        // Relaxed: before the serial.
        self.owner.store(ticket.owner_part(), Ordering::Relaxed);
        // Release pairs with the Acquire in `slot_of`.
        self.serial.store(serial, Ordering::Release);
        ticket
    }
}

#[inline(always)]
fn slot_of<C: Counted>(ticket: Ticket) -> Option<(u32, &'static Live)> {
    if ticket.serial & ((1 << KIND_BITS) - 1) != C::KIND {
        return None;
    }
    let number = u32::try_from(ticket.slot).ok()?;
    let live = LIVE.get(number)?;
    // Acquire pairs with the Release in `fill`: the owner and the content are visible. So the load of the owner may be Relaxed.
    let is_live = live.serial.load(Ordering::Acquire) == ticket.serial
        && live.owner.load(Ordering::Relaxed) == ticket.owner_part();
    is_live.then_some((number, live))
}

/// The mapping of a ticket, if it is live. It must not be released while the reference is used.
pub(crate) fn get<'a, C: Counted>(ticket: Ticket) -> Option<&'a C> {
    let (_, live) = slot_of::<C>(ticket)?;
    // SAFETY: of this kind, as the serial says, and live until the caller releases it.
    Some(unsafe { &*live.inside.get().cast::<C>() })
}

/// Takes the mapping of a ticket; of several threads one succeeds.
#[inline(always)]
fn empty<C: Counted>(ticket: Ticket) -> Option<(C, u32, &'static Live)> {
    let (number, live) = slot_of::<C>(ticket)?;
    let emptied = ticket.serial & !((1 << KIND_BITS) - 1);
    // Acquire pairs with the Release in `fill`. One thread's exchange succeeds. It frees the slot later, so the next `fill` happens
    // after it.
    live.serial.compare_exchange(ticket.serial, emptied, Ordering::Acquire, Ordering::Relaxed).ok()?;
    // SAFETY: of this kind, as the serial said, and the exchange made it this call's alone.
    let counted = unsafe { live.inside.get().cast::<C>().read() };
    Some((counted, number, live))
}

/// Takes the mapping of a ticket.
pub(crate) fn take<C: Counted>(ticket: Ticket) -> Option<C> {
    let (counted, number, live) = empty(ticket)?;
    LIVE.release(number, live);
    Some(counted)
}

/// The free slots of a translator.
pub(crate) struct FreeSlots(Vec<(u32, &'static Live)>);

/// The initial number for a translator.
const AT_FIRST: u32 = 32;

impl FreeSlots {
    /// `None` without memory.
    pub(crate) fn new() -> Option<Self> {
        let mut slots = Self(Vec::new());
        slots.reserve(AT_FIRST).then_some(slots)
    }

    /// Acquires slots up to `count` free ones; `false` without memory.
    pub(crate) fn reserve(&mut self, count: u32) -> bool {
        let missing = (count as usize).saturating_sub(self.0.len());
        if self.0.try_reserve_exact(missing).is_err() {
            return false;
        }
        while self.0.len() < count as usize {
            let Some(slot) = LIVE.acquire() else { return false };
            self.0.push(slot);
        }
        true
    }

    /// Keeps a mapping for the caller's struct at `owner`.
    ///
    /// # Errors
    /// Returns the mapping if there is no memory for a slot.
    #[inline(always)]
    pub(crate) fn put<C: Counted>(&mut self, counted: C, owner: u64) -> Result<Ticket, C> {
        match self.0.pop().or_else(|| LIVE.acquire()) {
            Some((number, live)) => Ok(live.fill(counted, number, owner)),
            None => Err(counted),
        }
    }

    /// Takes the mapping of a ticket.
    #[inline(always)]
    pub(crate) fn take<C: Counted>(&mut self, ticket: Ticket) -> Option<C> {
        let (counted, number, live) = empty(ticket)?;
        if self.0.len() < self.0.capacity() {
            self.0.push((number, live));
        } else {
            LIVE.release(number, live);
        }
        Some(counted)
    }
}

impl Drop for FreeSlots {
    fn drop(&mut self) {
        for (number, live) in self.0.drain(..) {
            LIVE.release(number, live);
        }
    }
}

impl fmt::Debug for FreeSlots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FreeSlots").field("count", &self.0.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Counted for u64 {
        const KIND: u64 = 3;
    }

    #[test]
    fn a_ticket_is_good_once() {
        let mut slots = FreeSlots::new().unwrap();
        let mut old = Vec::new();
        for value in 0..100_u64 {
            let ticket = slots.put(value, 8).unwrap();
            assert_eq!(get::<u64>(ticket), Some(&value));
            assert!(!old.contains(&ticket));
            assert!(
                old.iter().all(|&ticket| get::<u64>(ticket).is_none() && slots.take::<u64>(ticket).is_none())
            );
            let taken = if value % 2 == 0 { slots.take(ticket) } else { take(ticket) };
            assert_eq!(taken, Some(value));
            old.push(ticket);
        }
    }

    #[test]
    fn another_kind_and_what_was_never_given_out_are_refused() {
        let mut slots = FreeSlots::new().unwrap();
        let ticket = slots.put(7_u64, 8).unwrap();
        assert!(take::<Mapping>(ticket).is_none() && get::<RangeMapping>(ticket).is_none());
        for slot in [0, u64::MAX, 1 << 32 | ticket.slot, 4_000_000_000] {
            assert!(take::<u64>(Ticket { slot, ..ticket }).is_none());
        }
        assert!(take::<u64>(Ticket { serial: 3, ..ticket }).is_none());
        assert!(take::<u64>(Ticket { owner: 16, ..ticket }).is_none());
        assert_eq!(take(ticket), Some(7_u64));
    }

    #[test]
    fn one_of_many_threads_gets_it() {
        let mut slots = FreeSlots::new().unwrap();
        for _ in 0..2_000 {
            let ticket = slots.put(7_u64, 8).unwrap();
            let got: usize = std::thread::scope(|scope| {
                let tries = [(); 2].map(|()| scope.spawn(move || take::<u64>(ticket).is_some()));
                tries.into_iter().filter_map(|thread| thread.join().ok()).filter(|&got| got).count()
            });
            assert_eq!(got, 1);
        }
    }

    #[test]
    fn slots_that_another_translator_frees_are_used_again() {
        let (mut makes, mut frees) = (FreeSlots::new().unwrap(), FreeSlots::new().unwrap());
        let numbers: std::collections::BTreeSet<u64> = (0..10_000_u64)
            .map(|value| {
                let ticket = makes.put(value, 8).unwrap();
                assert_eq!(frees.take(ticket), Some(value));
                ticket.slot
            })
            .collect();
        assert!(numbers.len() <= 4 * AT_FIRST as usize, "{}", numbers.len());
    }
}
