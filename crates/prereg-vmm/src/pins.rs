//! The pins of one mapping: a counted use of each region that its memory lies in.
//!
//! Memory that is registered already is only counted. The gaps between registered regions are registered here, and
//! unregistered when the last mapping that uses them is dropped.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use prereg::{
    AddressSpace, Errno, Holder, MapError, Memory, RangeMapping, RegisterError, Registration, Translator,
    UserAddr,
};

/// How often registering a gap is tried while other threads register and unregister memory around it.
const TRIES: u32 = 16;

/// The pins of one mapping.
pub(crate) enum Pins {
    /// The memory is not pinned here.
    None,
    One(Pin),
    Many(Vec<Pin>),
}

/// A counted use of one region. Fields are dropped in this order: the use before the registration.
pub(crate) struct Pin {
    #[expect(dead_code, reason = "held until the unmap")]
    unit: RangeMapping,
    /// The registration, if it was made for mappings.
    registration: Option<Arc<Registration>>,
}

/// The registrations made for mappings, by first address; alive while one of those mappings is.
#[derive(Default)]
pub(crate) struct OwnRegions(BTreeMap<u64, Weak<Registration>>);

/// A part of a range that lies in one region.
pub(crate) struct Part {
    ua: UserAddr,
    bytes: u64,
    /// The region was registered just now.
    fresh: Option<Arc<Registration>>,
}

/// A range of memory, taken apart by regions.
pub(crate) struct Parts {
    pub(crate) parts: Vec<Part>,
    /// The reason why a part of the range is in none of them.
    pub(crate) unpinned: Option<RegisterError>,
}

impl Pins {
    /// The usual case: all of the memory in one region that is registered.
    pub(crate) fn one(
        translator: &mut Translator,
        own: &OwnRegions,
        ua: UserAddr,
        bytes: u64,
    ) -> Result<Self, MapError> {
        let unit = translator.map_range(ua, bytes)?;
        Ok(Self::One(Pin { unit, registration: own.holding(ua, bytes) }))
    }

    /// A use of the region of each part.
    pub(crate) fn of_parts(
        translator: &mut Translator,
        own: &OwnRegions,
        parts: &[Part],
    ) -> Result<Self, MapError> {
        let mut pins = Vec::with_capacity(parts.len());
        for part in parts {
            let unit = translator.map_range(part.ua, part.bytes)?;
            let registration = part.fresh.clone().or_else(|| own.holding(part.ua, part.bytes));
            pins.push(Pin { unit, registration });
        }
        Ok(if pins.is_empty() { Self::None } else { Self::Many(pins) })
    }

    /// The first addresses of the regions in it that were registered for mappings.
    pub(crate) fn own_regions(&self) -> impl Iterator<Item = u64> {
        let pins = match self {
            Self::None => &[],
            Self::One(pin) => std::slice::from_ref(pin),
            Self::Many(pins) => pins.as_slice(),
        };
        pins.iter().filter_map(|pin| pin.registration.as_ref()).map(|registration| registration.ua().raw())
    }
}

impl OwnRegions {
    /// The registration whose region holds the range.
    fn holding(&self, ua: UserAddr, bytes: u64) -> Option<Arc<Registration>> {
        let (_, registration) = self.0.range(..=ua.raw()).next_back()?;
        registration.upgrade().filter(|registration| registration.range().holds(ua, bytes))
    }

    /// Remembers the regions that were registered for `parts`, which are mapped now.
    pub(crate) fn remember(&mut self, parts: &[Part]) {
        for fresh in parts.iter().filter_map(|part| part.fresh.as_ref()) {
            self.0.insert(fresh.ua().raw(), Arc::downgrade(fresh));
        }
    }

    /// Forgets the region at `start` if its last mapping is gone.
    pub(crate) fn prune(&mut self, start: u64) {
        if self.0.get(&start).is_some_and(|registration| registration.strong_count() == 0) {
            self.0.remove(&start);
        }
    }
}

impl Parts {
    /// Takes `[ua, ua + bytes)` apart, registering what no region holds. Memory that cannot be pinned is left out if `skip`
    /// allows it.
    pub(crate) fn register(
        space: &AddressSpace,
        holder: Holder,
        ua: UserAddr,
        bytes: u64,
        skip: bool,
    ) -> Result<Self, RegisterError> {
        let register = |ua, bytes| space.register_for(&CallersMemory { ua, bytes }, holder).map(Arc::new);
        let mut found = Self { parts: Vec::new(), unpinned: None };
        let (mut at, mut left) = (ua, bytes);
        let mut tries = 0..TRIES;
        // Where the next region begins, relative to `at`, once that is known.
        let mut gap = left;
        while left > 0 {
            let (length, fresh) = match space.find(at, 1) {
                Some(region) => (region.bytes - (at.raw() - region.ua.raw()), None),
                None => match register(at, gap) {
                    Ok(registration) => (gap, Some(registration)),
                    Err(RegisterError::Overlap { with, .. }) if with.first() > at => {
                        gap = with.first().raw() - at.raw();
                        continue;
                    }
                    // Another thread registers or unregisters the very place.
                    Err(RegisterError::Overlap { .. }) if tries.next().is_some() => {
                        std::thread::yield_now();
                        continue;
                    }
                    Err(error) if skip && is_unpinnable(&error) => {
                        found.unpinned.get_or_insert(error);
                        (at, left) = (UserAddr::new(at.raw().wrapping_add(gap)), left - gap);
                        gap = left;
                        continue;
                    }
                    Err(error) => return Err(error),
                },
            };
            let length = length.min(left);
            found.parts.push(Part { ua: at, bytes: length, fresh });
            // Past the last address only when nothing is left.
            (at, left) = (UserAddr::new(at.raw().wrapping_add(length)), left - length);
            gap = left;
        }
        Ok(found)
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
