//! A registration: one owner's claim on a region, and the ways to release it.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use core::mem::ManuallyDrop;
use core::ptr;

use crate::addr::{HostAddr, PageShift, UserAddr, UserRange};
use crate::draining::Draining;
use crate::engine::Engine;
use crate::engine::release::{Claim, ReleaseRefused};
use crate::errno::Errno;
use crate::lookup::holder::{Holder, HolderTotal};
use crate::state::RegionState;

/// One registration of a region. The region stays pinned as long as it has one.
///
/// [`unregister`](Self::unregister) can be refused: it returns the last registration while the region is mapped.
/// Dropping cannot: the region is then closed for new mappings and released with its last old one.
#[must_use = "dropping a registration releases it"]
pub struct Registration {
    engine: Arc<Engine>,
    claim: Claim,
    largest: PageShift,
}

impl Registration {
    pub(crate) fn new(engine: Arc<Engine>, claim: Claim) -> Self {
        let largest =
            engine.claim_region(claim).map_or(engine.granule().shift(), |region| region.table.largest_page());
        Self { engine, claim, largest }
    }

    /// The first byte.
    #[must_use]
    pub fn ua(&self) -> UserAddr {
        self.claim.range.first()
    }

    /// The range.
    #[must_use]
    pub fn range(&self) -> UserRange {
        self.claim.range
    }

    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.claim.range.bytes()
    }

    /// The length in system pages.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.claim.range.pages(self.engine.granule())
    }

    /// The holder.
    #[must_use]
    pub fn holder(&self) -> Holder {
        self.claim.holder
    }

    /// The largest page the region can be mapped with anywhere: every aligned block of that size is contiguous and aligned
    /// on the host.
    #[must_use]
    pub fn largest_page(&self) -> PageShift {
        self.largest
    }

    /// The largest page with which all of `[ua, ua + bytes)` can be mapped; may be more than
    /// [`largest_page`](Self::largest_page) of the whole region, `None` when the range is not inside it.
    ///
    /// For callers that lay memory out; a translator maps with the region's one number.
    #[must_use]
    pub fn largest_page_in(&self, ua: UserAddr, bytes: u64) -> Option<PageShift> {
        if !self.claim.range.holds(ua, bytes) {
            return None;
        }
        let region = self.engine.claim_region(self.claim)?;
        let mut bits = bytes;
        let mut at = 0;
        while at < bytes {
            let here = ua.checked_add(at)?;
            bits |= here.raw() | region.table.host(here).raw();
            at += region.table.contiguous_within(here, bytes - at);
        }
        PageShift::new(bits.trailing_zeros().min(63))
    }

    /// The state of the region; `None` when the address space was dropped.
    #[must_use]
    pub fn state(&self) -> Option<RegionState> {
        self.engine.claim_state(self.claim)
    }

    /// Calls `visit` with each run of contiguous host memory of the region, in order: user address, host address, bytes.
    ///
    /// For checks and reports. The addresses are valid while this registration lives; they must not be given to a
    /// device.
    pub fn visit_runs(&self, mut visit: impl FnMut(UserAddr, HostAddr, u64)) {
        let Some(region) = self.engine.claim_region(self.claim) else { return };
        let mut at = 0;
        while at < self.bytes() {
            let Some(ua) = self.ua().checked_add(at) else { return };
            let bytes = region.table.contiguous_within(ua, self.bytes() - at);
            visit(ua, region.table.host(ua), bytes);
            at += bytes;
        }
    }

    /// Releases the registration. The last one unpins and uncharges the region before this returns.
    ///
    /// # Errors
    /// [`UnregisterError`] holds the registration: it is the last one and a mapping lives (nothing changed; try again
    /// after the unmaps), or the address space was dropped.
    pub fn unregister(self) -> Result<(), UnregisterError> {
        match self.engine.release(self.claim) {
            Ok(()) => {
                self.forget();
                Ok(())
            }
            Err(refused) => Err(UnregisterError { registration: self, refusal: refused.into() }),
        }
    }

    /// [`unregister`](Self::unregister) for many, of any address spaces: neighbours of one space share one fence on
    /// every thread. Each succeeds or is refused separately, in order; the refused ones are returned.
    pub fn unregister_many(registrations: Vec<Self>) -> Vec<UnregisterError> {
        let mut refused = Vec::new();
        let mut rest = registrations.into_iter().peekable();
        while let Some(first) = rest.next() {
            let engine = first.engine.clone();
            let mut together = Vec::from([first]);
            while let Some(next) = rest.next_if(|next| Arc::ptr_eq(&next.engine, &engine)) {
                together.push(next);
            }
            let results = engine.release_many(together.iter().map(|registration| registration.claim));
            for (registration, result) in together.into_iter().zip(results) {
                match result {
                    Ok(()) => drop(registration.forget()),
                    Err(refusal) => refused.push(UnregisterError { registration, refusal: refusal.into() }),
                }
            }
        }
        refused
    }

    /// Releases the registration. If it is the last one, no new mapping is made from here on and the region is released
    /// when the last old one is. The result reports when that is done and can wait for it.
    pub fn drain(self) -> Draining {
        let waiting = !self.engine.release_when_idle(self.claim);
        let claim = self.claim;
        Draining::new(self.forget(), claim, waiting)
    }

    /// [`drain`](Self::drain), then waits until the region is released (or registered again).
    ///
    /// Blocks; without the feature `std` it spins.
    pub fn unregister_when_idle(self) {
        self.drain().wait();
    }

    /// The engine, without releasing the registration.
    fn forget(self) -> Arc<Engine> {
        let this = ManuallyDrop::new(self);
        // SAFETY: `this` is never used or dropped again, so the handle is moved out once.
        #[expect(unsafe_code, reason = "a field cannot be moved out of a type with Drop")]
        unsafe {
            ptr::read(&raw const this.engine)
        }
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.engine.release_when_idle(self.claim);
    }
}

impl fmt::Debug for Registration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registration")
            .field("range", &self.claim.range)
            .field("holder", &self.claim.holder)
            .finish_non_exhaustive()
    }
}

/// A refused unregister. Holds the registration: take it out with [`into_inner`](Self::into_inner), or it is dropped
/// with the error.
pub struct UnregisterError {
    registration: Registration,
    refusal: Refusal,
}

crate::debug_as_display!(UnregisterError);

/// The reason of an [`UnregisterError`].
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Refusal {
    /// It is the last registration and the region is mapped. EBUSY.
    Busy {
        /// Live mappings.
        mapped: u64,
        /// Their holders.
        holders: Vec<HolderTotal>,
    },
    /// The address space was dropped, and the region with it. ENOENT.
    Gone,
}

impl From<ReleaseRefused> for Refusal {
    fn from(kept: ReleaseRefused) -> Self {
        match kept {
            ReleaseRefused::Busy { mapped, holders } => Self::Busy { mapped, holders },
            ReleaseRefused::Gone => Self::Gone,
        }
    }
}

impl UnregisterError {
    /// The registration, unchanged.
    pub fn into_inner(self) -> Registration {
        self.registration
    }

    /// The reason.
    #[must_use]
    pub fn refusal(&self) -> &Refusal {
        &self.refusal
    }

    /// Live mappings of the region.
    #[must_use]
    pub fn mapped(&self) -> u64 {
        match &self.refusal {
            Refusal::Busy { mapped, .. } => *mapped,
            Refusal::Gone => 0,
        }
    }

    /// The holders of these mappings. Exact when no thread maps or unmaps meanwhile.
    #[must_use]
    pub fn holders(&self) -> &[HolderTotal] {
        match &self.refusal {
            Refusal::Busy { holders, .. } => holders,
            Refusal::Gone => &[],
        }
    }

    /// EBUSY or ENOENT.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self.refusal {
            Refusal::Busy { .. } => Errno::EBUSY,
            Refusal::Gone => Errno::ENOENT,
        }
    }
}

impl fmt::Display for UnregisterError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let range = self.registration.range();
        match &self.refusal {
            Refusal::Busy { mapped, holders } => {
                let times = if *mapped == 1 { "once".into() } else { alloc::format!("{mapped} times") };
                write!(f, "{range} is still mapped {times}")?;
                for (i, held) in holders.iter().enumerate() {
                    write!(f, "{}{} by {}", if i == 0 { " (" } else { ", " }, held.count, held.holder)?;
                }
                if !holders.is_empty() {
                    f.write_str(")")?;
                }
                f.write_str("; unmap first, then unregister again")
            }
            Refusal::Gone => {
                write!(f, "the address space of {range} was dropped, and its registrations with it")
            }
        }
    }
}

impl core::error::Error for UnregisterError {}
