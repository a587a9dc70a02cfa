//! The pins of one mapping: a counted use of each region that its memory lies in.
//!
//! Memory that is registered already is only counted. The gaps between registered regions are registered on demand
//! ([`HolderKind::OnDemand`](prereg::HolderKind::OnDemand)). Every mapping of such a region has a registration of its own,
//! whichever mapping made the region and whichever `PersistentMappings` that mapping belongs to, so the region stays
//! registered until the last of them is unmapped.

use std::sync::Arc;

use prereg::{
    AddressSpace, Errno, Holder, HolderKind, MapError, Memory, RangeMapping, RegisterError, Registration,
    Translator, UserAddr,
};

/// How often registering a gap is tried while other threads register and unregister memory around it. Each try that fails is
/// another thread's success, except in a call from inside a pin of the same memory.
const TRIES: u32 = 1000;

/// The pins of one mapping. Not dropped under a lock: that can unpin memory and drop the value that kept it mapped.
pub(crate) enum Pins {
    /// The memory is not pinned here.
    None,
    One(#[expect(dead_code, reason = "held until the unmap")] RangeMapping),
    Many(Vec<Pin>),
}

/// A counted use of one region. Fields are dropped in this order: the use before the registration.
pub(crate) struct Pin {
    /// `None` until it is [counted](Pins::count).
    unit: Option<RangeMapping>,
    /// The registration, if the region is registered on demand.
    registration: Option<Registration>,
    ua: UserAddr,
    bytes: u64,
}

impl Pins {
    /// The usual case: all of the memory in one region, which is not registered on demand.
    #[inline]
    pub(crate) fn one(translator: &mut Translator, ua: UserAddr, bytes: u64) -> Option<Self> {
        let unit = translator.map_range(ua, bytes).ok()?;
        if unit.is_on_demand() {
            translator.unmap_range(unit);
            return None;
        }
        Some(Self::One(unit))
    }

    /// Registers what no region holds of `[ua, ua + bytes)`; nothing is counted yet. Memory that cannot be pinned is left out
    /// if `skip` allows it; the reason is returned too.
    pub(crate) fn register(
        space: &AddressSpace,
        holder: Holder,
        ua: UserAddr,
        bytes: u64,
        skip: bool,
    ) -> Result<(Self, Option<RegisterError>), RegisterError> {
        let holder = Holder { kind: HolderKind::OnDemand, ..holder };
        let (mut pins, mut unpinned) = (Vec::new(), None);
        let (mut at, mut left) = (ua, bytes);
        let mut tries = 0..TRIES;
        let mut waited_for = None;
        // Where the next region begins, relative to `at`, once that is known.
        let mut gap = left;
        while left > 0 {
            let (length, registration) = match space.find(at, 1) {
                Some(region) => {
                    let length = region.bytes - (at.raw() - region.ua.raw());
                    if region.on_demand {
                        // `None` if it is gone by now.
                        let Some(shared) = space.share_for(region.ua, region.bytes, holder) else { continue };
                        (length, Some(shared))
                    } else {
                        (length, None)
                    }
                }
                None => match space.register_for(&CallersMemory { ua: at, bytes: gap }, holder) {
                    Ok(registration) => (gap, Some(registration)),
                    Err(RegisterError::Overlap { with, .. }) if with.first() > at => {
                        gap = with.first().raw() - at.raw();
                        continue;
                    }
                    // Another thread is registering the very place: waits for it, and keeps the region until it is found.
                    Err(RegisterError::Overlap { with, .. }) if tries.next().is_some() => {
                        waited_for = space.share_for(with.first(), with.bytes(), holder);
                        continue;
                    }
                    Err(error) if skip && is_unpinnable(&error) => {
                        unpinned.get_or_insert(error);
                        (at, left) = (UserAddr::new(at.raw().wrapping_add(gap)), left - gap);
                        gap = left;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let length = length.min(left);
            pins.push(Pin { unit: None, registration, ua: at, bytes: length });
            // Past the last address only when nothing is left.
            (at, left) = (UserAddr::new(at.raw().wrapping_add(length)), left - length);
            gap = left;
        }
        drop(waited_for);
        Ok((if pins.is_empty() { Self::None } else { Self::Many(pins) }, unpinned))
    }

    /// Counts a use of each region that [`register`](Self::register) found or made.
    ///
    /// # Errors
    /// [`MapError`] if one was unregistered or replaced in the meantime: drop the pins and register again.
    pub(crate) fn count(&mut self, translator: &mut Translator) -> Result<(), MapError> {
        let Self::Many(pins) = self else { return Ok(()) };
        for pin in pins {
            let unit = pin.unit.insert(translator.map_range(pin.ua, pin.bytes)?);
            if unit.is_on_demand() && pin.registration.is_none() {
                return Err(MapError::Closing { ua: pin.ua });
            }
        }
        Ok(())
    }
}

/// Whether pinning failed for what the memory is: a device's own memory, read-only memory, a file on a disk, a hole.
fn is_unpinnable(error: &RegisterError) -> bool {
    matches!(error, RegisterError::Pin { error, .. } if matches!(error.errno(), Errno::EFAULT | Errno::EOPNOTSUPP))
}

/// A caller's range of memory.
struct CallersMemory {
    ua: UserAddr,
    bytes: u64,
}

#[expect(unsafe_code, reason = "the promise can only be made by the caller that maps the memory")]
// SAFETY: the promise is the one that `PersistentMappings::map` asks for.
unsafe impl Memory for CallersMemory {
    fn ua(&self) -> UserAddr {
        self.ua
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn keep(&self) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
        None
    }
}
