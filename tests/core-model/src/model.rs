//! A model of an address space in plain maps: regions with their registrations, mappings and written pages.
//!
//! The model receives each request and returns the right result. It knows one thread only.

use std::collections::{BTreeMap, BTreeSet};

use prereg::{Granule, Holder, MapError, PageShift, RangeError, RegisterError, UserAddr, UserRange};

use crate::host::{Host, Unpinned};
use crate::layout::{Truth, largest_shift, runs};

/// A number for each holder.
pub type ByHolder = BTreeMap<Holder, u64>;

/// Adds one of `holder`.
pub fn add(counts: &mut ByHolder, holder: Holder) {
    *counts.entry(holder).or_default() += 1;
}

/// Takes one of `holder` off. `false` when there is none.
#[must_use]
pub fn take_off(counts: &mut ByHolder, holder: Holder) -> bool {
    let Some(count) = counts.get_mut(&holder) else { return false };
    *count -= 1;
    if *count == 0 {
        counts.remove(&holder);
    }
    true
}

/// One region.
#[derive(Clone, Debug)]
pub struct Region {
    /// The range.
    pub range: UserRange,
    /// Its layout on the host.
    pub truth: Truth,
    /// Its pin; `None` for device memory.
    pub pin: Option<u64>,
    /// Registrations; none while it drains.
    pub used: ByHolder,
    /// Live mappings.
    pub mapped: ByHolder,
    /// Pages that were marked, from its first on.
    pub marked: BTreeSet<u64>,
    /// The largest page it can be mapped with.
    pub largest: PageShift,
}

impl Region {
    /// Live mappings of all holders.
    #[must_use]
    pub fn mappings(&self) -> u64 {
        self.mapped.values().sum()
    }

    /// Whether no registration is left.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.used.is_empty()
    }

    /// Whether it is to be released by whatever looks next.
    #[must_use]
    pub fn is_releasable(&self) -> bool {
        self.used.is_empty() && self.mapped.is_empty()
    }

    /// Marks the pages of `[ua, ua + bytes)`.
    pub fn mark(&mut self, ua: u64, bytes: u64, granule: Granule) {
        let first = self.range.first().raw();
        let page = |at: u64| (at - first) / granule.bytes();
        self.marked.extend(page(ua)..=page(ua + (bytes - 1)));
    }

    /// Whether `dirty` may be the pages that the port receives as marked. Where all breaks are between blocks of 2 MiB
    /// one mark stands for eight pages; everywhere else the result is exact.
    #[must_use]
    pub fn may_tell(&self, dirty: &[u64], granule: Granule) -> bool {
        let told: BTreeSet<u64> = dirty.iter().copied().collect();
        let ascending = dirty.windows(2).all(|pair| pair[0] < pair[1]);
        let exact = told == self.marked;
        let (first, bytes) = (self.range.first().raw(), self.range.bytes());
        let mut at = first;
        let mut coarse = true;
        for (_, length) in runs(&self.truth, granule, first, bytes) {
            coarse &= at == first || at % PageShift::M2.bytes() == 0;
            at = at.wrapping_add(length);
        }
        let eight = |page: &u64| self.marked.range(page / 8 * 8..page / 8 * 8 + 8).next().is_some();
        let within = coarse && told.is_superset(&self.marked) && told.iter().all(eight);
        ascending && (exact || within) && dirty.iter().all(|&page| page < bytes / granule.bytes())
    }
}

/// The result of a registration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Registered {
    /// A registration more of this region.
    Shared(u64),
    /// A new region.
    New,
    /// An error of this kind, and the region in the way if it names one.
    Refused(Refused),
}

/// The kinds of errors of a registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(missing_docs, reason = "the kinds of `RegisterError`")]
pub enum Refused {
    Misaligned,
    Empty,
    Wraps,
    Overlap,
    Exists,
    Charge,
    Pin,
    Other,
}

impl Refused {
    /// The kind of `error`.
    #[must_use]
    pub const fn of(error: &RegisterError) -> Self {
        match error {
            RegisterError::Range(RangeError::Misaligned { .. }) => Self::Misaligned,
            RegisterError::Range(RangeError::Empty { .. }) => Self::Empty,
            RegisterError::Range(RangeError::Wraps { .. }) => Self::Wraps,
            RegisterError::Overlap { .. } => Self::Overlap,
            RegisterError::Exists { .. } => Self::Exists,
            RegisterError::Charge { .. } => Self::Charge,
            RegisterError::Pin { .. } => Self::Pin,
            _ => Self::Other,
        }
    }

    /// The error number that goes with it.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Self::Charge => 12,
            Self::Pin => 14,
            _ => 22,
        }
    }
}

/// The way in which a range is registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    /// Shared if it is there, new if not.
    Any,
    /// New.
    New,
}

/// An address space.
#[derive(Clone, Debug)]
pub struct Space {
    granule: Granule,
    /// The regions that are there, by number, in the order they came.
    pub regions: BTreeMap<u64, Region>,
    /// Regions that must be unpinned before the call that is under way returns.
    leaving: Vec<Region>,
    last_id: u64,
    /// The address space was dropped.
    pub closed: bool,
    /// Successful pins.
    pub pins: u64,
    /// Pins released.
    pub unpins: u64,
}

impl Space {
    /// An empty one.
    #[must_use]
    pub const fn new(granule: Granule) -> Self {
        Self {
            granule,
            regions: BTreeMap::new(),
            leaving: Vec::new(),
            last_id: 0,
            closed: false,
            pins: 0,
            unpins: 0,
        }
    }

    /// The range `[ua, ua + bytes)`.
    ///
    /// # Errors
    /// The reason why it is no range.
    pub fn range(&self, ua: u64, bytes: u64) -> Result<UserRange, Refused> {
        if ua % self.granule.bytes() != 0 || bytes % self.granule.bytes() != 0 {
            return Err(Refused::Misaligned);
        }
        if bytes == 0 {
            return Err(Refused::Empty);
        }
        UserRange::new(UserAddr::new(ua), bytes, self.granule).map_err(|_| Refused::Wraps)
    }

    /// The region of exactly `range`.
    #[must_use]
    pub fn exactly(&self, range: UserRange) -> Option<u64> {
        self.regions.iter().find(|(_, region)| region.range == range).map(|(&id, _)| id)
    }

    /// The result of registering `range` before the host is called. Idle regions were released.
    #[must_use]
    pub fn register(&self, range: UserRange, wish: Wish) -> Registered {
        match self.exactly(range) {
            Some(id) if wish == Wish::Any => Registered::Shared(id),
            Some(_) => Registered::Refused(Refused::Exists),
            None if self.regions.values().any(|region| region.range.intersects(range)) => {
                Registered::Refused(Refused::Overlap)
            }
            None => Registered::New,
        }
    }

    /// Notes a new region.
    pub fn insert(&mut self, range: UserRange, truth: Truth, pin: Option<u64>, holder: Holder) -> u64 {
        self.last_id += 1;
        self.pins += u64::from(pin.is_some());
        let largest = largest_shift(&truth, self.granule, range.first().raw(), range.bytes());
        let region = Region {
            range,
            truth,
            pin,
            used: BTreeMap::from([(holder, 1)]),
            mapped: BTreeMap::new(),
            marked: BTreeSet::new(),
            largest: PageShift::new(largest).unwrap_or(self.granule.shift()),
        };
        self.regions.insert(self.last_id, region);
        self.last_id
    }

    /// The region that holds the byte at `ua`.
    #[must_use]
    pub fn at(&self, ua: u64) -> Option<(u64, &Region)> {
        let ua = UserAddr::new(ua);
        self.regions.iter().find(|(_, region)| region.range.holds(ua, 1)).map(|(&id, region)| (id, region))
    }

    /// The result of mapping the page of `shift` around `ua`: the region and the host address of the byte at `ua`.
    ///
    /// # Errors
    /// As the core's.
    pub fn map(&self, ua: UserAddr, shift: PageShift) -> Result<(u64, u64), MapError> {
        let (id, region) = self.at(ua.raw()).ok_or(MapError::Unregistered { ua, shift })?;
        if !region.range.holds(ua.align_down(shift), shift.bytes()) {
            return Err(MapError::Unregistered { ua, shift });
        }
        if shift > region.largest {
            return Err(MapError::TooLarge { ua, shift, largest: region.largest });
        }
        if region.is_draining() {
            return Err(MapError::Closing { ua });
        }
        Ok((id, region.truth.host(ua.raw())))
    }

    /// The result of mapping `[ua, ua + bytes)`.
    ///
    /// # Errors
    /// As the core's.
    pub fn map_range(&self, ua: UserAddr, bytes: u64) -> Result<u64, MapError> {
        let nowhere = MapError::Unregistered { ua, shift: self.granule.shift() };
        let (id, region) = self.at(ua.raw()).ok_or(nowhere)?;
        if !region.range.holds(ua, bytes) {
            return Err(nowhere);
        }
        if region.is_draining() { Err(MapError::Closing { ua }) } else { Ok(id) }
    }

    /// Whether the error `got` may stand for `want`: what may be released at any time may be found closing or gone.
    #[must_use]
    pub fn may_be(&self, got: MapError, want: MapError) -> bool {
        let idle =
            |ua| self.regions.values().any(|region| region.is_releasable() && region.range.holds(ua, 1));
        got == want
            || match (got, want) {
                (MapError::Closing { ua }, MapError::Unregistered { ua: other, .. })
                | (
                    MapError::Unregistered { ua, .. },
                    MapError::Closing { ua: other } | MapError::TooLarge { ua: other, .. },
                ) => ua == other && idle(ua),
                _ => false,
            }
    }

    /// Removes everything idle: the host must be called for it before the current call returns.
    pub fn reap(&mut self) {
        let idle: Vec<u64> =
            self.regions.iter().filter(|(_, region)| region.is_releasable()).map(|(&id, _)| id).collect();
        for id in idle {
            self.leave(id);
        }
    }

    /// A mapping of region `id` was dropped: if it was the last one of a draining region, what is idle leaves.
    pub fn dropped(&mut self, id: u64) {
        if self.regions.get(&id).is_some_and(Region::is_releasable) {
            self.reap();
        }
    }

    fn leave(&mut self, id: u64) {
        if let Some(region) = self.regions.remove(&id) {
            if region.pin.is_some() {
                self.unpins += 1;
                self.leaving.push(region);
            }
        }
    }

    /// Compares the calls of the host with the regions that were removed.
    ///
    /// # Errors
    /// The reason of a mismatch.
    pub fn settle(&mut self, host: &Host, told: Vec<Unpinned>) -> Result<(), String> {
        for Unpinned { pin, dirty } in told {
            let early = |(_, region): &(&u64, &Region)| region.is_releasable() && region.pin == Some(pin);
            if let Some(id) = self.regions.iter().find(early).map(|(&id, _)| id) {
                self.leave(id);
            }
            let Some(place) = self.leaving.iter().position(|region| region.pin == Some(pin)) else {
                return Err(format!("pin {pin} was released, and is in use or unknown"));
            };
            let region = self.leaving.swap_remove(place);
            if !region.may_tell(&dirty, self.granule) {
                let (range, marked) = (region.range, region.marked);
                return Err(format!(
                    "the host received pages {dirty:?} of {range} as dirty, marked: {marked:?}"
                ));
            }
        }
        let wrong = host.wrong();
        if !wrong.is_empty() {
            return Err(wrong.join("; "));
        }
        match self.leaving.first() {
            Some(region) => {
                Err(format!("{} has neither registrations nor mappings and is still pinned", region.range))
            }
            None => Ok(()),
        }
    }

    /// Pages that are pinned and charged.
    #[must_use]
    pub fn pinned_pages(&self) -> u64 {
        let pinned = self.regions.values().filter(|region| region.pin.is_some());
        pinned.map(|region| region.range.pages(self.granule)).sum()
    }

    /// Takes a registration of region `id` off, if the space and the registration are there.
    #[must_use]
    pub fn disclaim(&mut self, id: u64, holder: Holder) -> bool {
        !self.closed && self.regions.get_mut(&id).is_some_and(|region| take_off(&mut region.used, holder))
    }

    /// Takes every registration off.
    pub fn close(&mut self) {
        self.closed = true;
        self.regions.values_mut().for_each(|region| region.used.clear());
    }
}

/// The number of retired regions that an address space may keep for translators that were not refreshed: for each of
/// them, and for the current snapshot, the regions that were registered when it was replaced, and those that came and
/// went before its index was replaced too, 64 at a time.
#[must_use]
pub const fn most_unreclaimed(translators: u64, most_regions: u64) -> u64 {
    (translators + 1) * (most_regions + 3 * 64)
}
