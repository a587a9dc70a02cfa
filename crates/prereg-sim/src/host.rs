//! A simulated host: pins and charges memory of the simulated address space.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{
    AddressKind, Charge, ChargeError, DirtyPages, Errno, Granule, HostAddr, Memory, PageSink, Pin, PinError,
    PinId, UserAddr, UserRange,
};

use crate::memory::{MapSpec, ObjectId, ObjectRange, Protection, SimBacking, UserSpace};

/// A simulated host. Clones share it.
#[derive(Clone, Debug)]
pub struct SimHost {
    granule: Granule,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    space: UserSpace,
    pins: BTreeMap<u64, Vec<ObjectRange>>,
    next_pin: u64,
    pin_calls: u64,
    charged: u64,
    /// Pages locked by other means, which count against the limit too.
    locked: u64,
    limit: Option<u64>,
    privileged: bool,
    /// Calls of the ports until the one that fails; 0: none fails.
    calls_until_failure: u64,
    failed: bool,
    /// Dirty pages of the last unpin, by user address.
    written: Vec<UserAddr>,
    /// Pages that were uncharged without having been charged.
    unmatched_uncharges: u64,
    /// Limit on page lists; `None` is unlimited.
    ram_bytes: Option<u64>,
}

/// A range of simulated user memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SimMemory {
    ua: UserAddr,
    bytes: u64,
}

// SAFETY: there is no memory at the addresses, so there is no reference into it.
#[expect(unsafe_code, reason = "the promise of the trait is kept by there being no memory")]
unsafe impl Memory for SimMemory {
    fn ua(&self) -> UserAddr {
        self.ua
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }
}

impl SimHost {
    /// A host with nothing mapped and no limit.
    #[must_use]
    pub fn new(granule: Granule) -> Self {
        let state = State {
            space: UserSpace::new(granule),
            pins: BTreeMap::new(),
            next_pin: 1,
            pin_calls: 0,
            charged: 0,
            locked: 0,
            limit: None,
            privileged: false,
            calls_until_failure: 0,
            failed: false,
            written: Vec::new(),
            unmatched_uncharges: 0,
            ram_bytes: None,
        };
        Self { granule, state: Arc::new(Mutex::new(state)) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.granule.bytes())
    }

    fn page(&self, ua: u64) -> u64 {
        ua >> self.granule.shift().get()
    }

    // ---- memory ---------------------------------------------------------------------------------------------------

    /// A range without anything mapped for it: a valid or invalid request.
    #[must_use]
    pub fn range(&self, ua: u64, bytes: u64) -> SimMemory {
        SimMemory { ua: UserAddr::new(ua), bytes }
    }

    /// Maps ordinary memory in `[ua, ua + bytes)`: base pages, readable and writable. Existing mappings stay.
    pub fn memory(&self, ua: u64, bytes: u64) -> SimMemory {
        let (first, pages) = (self.page(ua), self.pages(bytes));
        let mut state = self.state();
        for (from, count) in state.space.gaps(first, pages) {
            state.space.map(from, count, MapSpec::default());
        }
        drop(state);
        self.range(ua, bytes)
    }

    /// Maps new memory at `[ua, ua + bytes)`, replacing existing mappings.
    pub fn map(&self, ua: u64, bytes: u64, spec: MapSpec) -> SimMemory {
        let (first, pages) = (self.page(ua), self.pages(bytes));
        if pages > 0 {
            self.state().space.map(first, pages, spec);
        }
        self.range(ua, bytes)
    }

    /// Maps the pages that are mapped at `source` at `ua` too.
    pub fn map_alias(&self, ua: u64, source: u64, bytes: u64) -> SimMemory {
        self.state().space.alias(self.page(ua), self.page(source), self.pages(bytes));
        self.range(ua, bytes)
    }

    /// Unmaps `[ua, ua + bytes)`. Pinned pages stay pinned.
    pub fn unmap(&self, ua: u64, bytes: u64) {
        if bytes > 0 {
            self.state().space.unmap(self.page(ua), self.pages(bytes));
        }
    }

    /// Changes the protection of `[ua, ua + bytes)`.
    pub fn protect(&self, ua: u64, bytes: u64, protection: Protection) {
        if bytes > 0 {
            self.state().space.protect(self.page(ua), self.pages(bytes), protection);
        }
    }

    /// Simulates a fork after which the parent writes to `[ua, ua + bytes)`: the parent gets copies of unpinned pages
    /// and keeps pinned ones (the child got the copy).
    pub fn write_after_fork(&self, ua: u64, bytes: u64) {
        let mut state = self.state();
        for page in self.page(ua)..self.page(ua) + self.pages(bytes) {
            let pinned = match state.space.object_ranges(page, 1).as_deref() {
                Ok([segment]) => state.pins_of(segment.object, segment.first) > 0,
                _ => true,
            };
            if !pinned {
                state.space.map(page, 1, MapSpec::default());
            }
        }
    }

    /// Locks `[ua, ua + bytes)` as `mlock` does: locks do not nest, and unmapping unlocks.
    ///
    /// # Errors
    /// ENOMEM over the limit, or if a part of the range is unmapped (the rest is locked).
    pub fn mlock(&self, ua: u64, bytes: u64) -> Result<(), Errno> {
        let (first, pages) =
            (self.page(ua), self.pages((ua & self.granule.shift().mask()).saturating_add(bytes)));
        if pages == 0 {
            return Ok(());
        }
        let mut state = self.state();
        let more = state.space.unlocked(first, pages);
        state.check_limit(more).map_err(|_| Errno::ENOMEM)?;
        state.space.lock(first, pages, true);
        if state.space.gaps(first, pages).is_empty() { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Unlocks `[ua, ua + bytes)` as `munlock` does.
    ///
    /// # Errors
    /// ENOMEM if a part of the range is unmapped (the rest is unlocked).
    pub fn munlock(&self, ua: u64, bytes: u64) -> Result<(), Errno> {
        let (first, pages) =
            (self.page(ua), self.pages((ua & self.granule.shift().mask()).saturating_add(bytes)));
        if pages == 0 {
            return Ok(());
        }
        let mut state = self.state();
        state.space.lock(first, pages, false);
        if state.space.gaps(first, pages).is_empty() { Ok(()) } else { Err(Errno::ENOMEM) }
    }

    /// Whether every byte of `[ua, ua + bytes)` is mapped.
    #[must_use]
    pub fn is_mapped(&self, ua: u64, bytes: u64) -> bool {
        bytes == 0 || self.state().space.gaps(self.page(ua), self.pages(bytes)).is_empty()
    }

    /// Whether any byte of `[ua, ua + bytes)` is mapped.
    #[must_use]
    pub fn is_any_mapped(&self, ua: u64, bytes: u64) -> bool {
        let pages = self.pages(bytes);
        let gaps = self.state().space.gaps(self.page(ua), pages);
        gaps.iter().map(|&(_, length)| length).sum::<u64>() != pages
    }

    /// Whether any mapped page of `[ua, ua + bytes)` is locked by `mlock`.
    #[must_use]
    pub fn is_any_locked(&self, ua: u64, bytes: u64) -> bool {
        let (first, pages) = (self.page(ua), self.pages(bytes));
        let state = self.state();
        let gaps: u64 = state.space.gaps(first, pages).iter().map(|&(_, length)| length).sum();
        state.space.unlocked(first, pages) != pages - gaps
    }

    /// Whether every byte of `[ua, ua + bytes)` is writable.
    #[must_use]
    pub fn is_writable(&self, ua: u64, bytes: u64) -> bool {
        bytes == 0 || self.state().space.object_ranges(self.page(ua), self.pages(bytes)).is_ok()
    }

    /// The host of a child process after a fork: the same memory, limit and privilege, with nothing locked, pinned or
    /// charged.
    #[must_use]
    pub fn fork(&self) -> Self {
        let child = Self::new(self.granule);
        let parent = self.state();
        let mut state = child.state();
        state.space = parent.space.fork();
        state.limit = parent.limit;
        state.privileged = parent.privileged;
        state.ram_bytes = parent.ram_bytes;
        drop(state);
        drop(parent);
        child
    }

    /// The host address of the byte at `ua`, if it is backed.
    #[must_use]
    pub fn backs(&self, ua: u64) -> Option<HostAddr> {
        let state = self.state();
        let segment = *state.space.object_ranges(self.page(ua), 1).ok()?.first()?;
        let frame = state.space.frame(segment.object, segment.first);
        let shift = self.granule.shift();
        Some(HostAddr::new((frame << shift.get()) | (ua & shift.mask())))
    }

    // ---- limits and failures --------------------------------------------------------------------------------------

    /// Limits locked memory to `pages`; `None` lifts the limit.
    pub fn limit_pages(&self, pages: impl Into<Option<u64>>) {
        self.state().limit = pages.into();
    }

    /// Grants or revokes the privilege to exceed the limit. Pages charged meanwhile count as usual.
    pub fn privileged(&self, privileged: bool) {
        self.state().privileged = privileged;
    }

    /// Locks `pages` by other means (mlock), which count against the limit too.
    ///
    /// # Errors
    /// ENOMEM over the limit.
    pub fn lock_pages(&self, pages: u64) -> Result<(), Errno> {
        let mut state = self.state();
        state.check_limit(pages).map_err(|_| Errno::ENOMEM)?;
        state.locked += pages;
        Ok(())
    }

    /// Unlocks such pages.
    pub fn unlock_pages(&self, pages: u64) {
        let mut state = self.state();
        state.locked = state.locked.saturating_sub(pages);
    }

    /// Sets the memory of the machine. A pin is refused if its page list (8 bytes per page) is larger, or, when every
    /// page is mapped, larger than an eighth. `None`: no bound.
    pub fn ram_bytes(&self, bytes: impl Into<Option<u64>>) {
        self.state().ram_bytes = bytes.into();
    }

    /// Makes the `n`-th call of the ports from now fail (1 is the next; 0: none).
    pub fn fail_nth(&self, n: u64) {
        let mut state = self.state();
        state.calls_until_failure = n;
        state.failed = false;
    }

    /// Whether the call selected by `fail_nth` has failed.
    #[must_use]
    pub fn has_failed(&self) -> bool {
        self.state().failed
    }

    // ---- what is left ---------------------------------------------------------------------------------------------

    /// Pinned pages, counted once per pin.
    #[must_use]
    pub fn pinned_pages(&self) -> u64 {
        self.state().pins.values().flatten().map(|segment| segment.pages).sum()
    }

    /// How many times the page at `ua` is pinned.
    #[must_use]
    pub fn pin_count(&self, ua: u64) -> u64 {
        let state = self.state();
        match state.space.object_ranges(self.page(ua), 1).as_deref() {
            Ok([segment]) => state.pins_of(segment.object, segment.first),
            _ => 0,
        }
    }

    /// Successful `pin` calls so far.
    #[must_use]
    pub fn pin_calls(&self) -> u64 {
        self.state().pin_calls
    }

    /// Pages charged for pins.
    #[must_use]
    pub fn charged_pages(&self) -> u64 {
        self.state().charged
    }

    /// Pages locked by other means.
    #[must_use]
    pub fn locked_pages(&self) -> u64 {
        let state = self.state();
        state.locked + state.space.locked_pages()
    }

    /// The pages that the last unpin marked dirty.
    #[must_use]
    pub fn written_pages(&self) -> Vec<UserAddr> {
        self.state().written.clone()
    }

    /// Asserts that everything pinned and charged was released exactly once.
    ///
    /// # Panics
    /// If not, with what is left.
    pub fn assert_clean(&self) {
        let state = self.state();
        assert!(state.pins.is_empty(), "still pinned: {:?}", state.pins);
        assert_eq!(state.charged, 0, "still charged");
        assert_eq!(state.unmatched_uncharges, 0, "uncharged more than was charged");
    }
}

impl State {
    fn pins_of(&self, object: ObjectId, page: u64) -> u64 {
        let holds = |segment: &&ObjectRange| {
            segment.object == object && (segment.first..segment.first + segment.pages).contains(&page)
        };
        self.pins.values().flatten().filter(holds).count() as u64
    }

    /// Whether this call of a port is the one to fail.
    fn next_call_fails(&mut self) -> bool {
        if self.calls_until_failure == 0 {
            return false;
        }
        self.calls_until_failure -= 1;
        self.failed |= self.calls_until_failure == 0;
        self.calls_until_failure == 0
    }

    fn check_limit(&self, pages: u64) -> Result<(), ChargeError> {
        let Some(limit) = self.limit.filter(|_| !self.privileged) else { return Ok(()) };
        let charged = self.charged + self.locked + self.space.locked_pages();
        if charged.checked_add(pages).is_none_or(|total| total > limit) {
            return Err(ChargeError::OverLimit { need: pages, charged, limit });
        }
        Ok(())
    }
}

// SAFETY: the addresses are invented, and no device exists.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for SimHost {
    fn name(&self) -> &'static str {
        "sim"
    }

    fn granule(&self) -> Granule {
        self.granule
    }

    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }

    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        let mut state = self.state();
        if state.next_call_fails() {
            return Err(PinError::Fault { ua: range.first(), why: "this call was set to fail" });
        }
        let list = range.pages(self.granule).saturating_mul(8);
        if state.ram_bytes.is_some_and(|ram| list > ram) {
            return Err(PinError::OutOfMemory);
        }
        let object_ranges = state
            .space
            .object_ranges(self.page(range.first().raw()), range.pages(self.granule))
            .map_err(|missing| PinError::Fault {
                ua: UserAddr::new(missing.page << self.granule.shift().get()),
                why: missing.why,
            })?;
        // Every page is mapped, so a real list of this size would be built here; scenarios must not exhaust memory.
        if state.ram_bytes.is_some_and(|ram| list > ram / 8) {
            return Err(PinError::OutOfMemory);
        }
        for &segment in &object_ranges {
            for (frame, count) in state.space.runs(segment) {
                pages.push(HostAddr::new(frame << self.granule.shift().get()), count)?;
            }
        }
        let pin = state.next_pin;
        state.next_pin += 1;
        state.pin_calls += 1;
        state.pins.insert(pin, object_ranges);
        Ok(PinId::new(pin))
    }

    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>) {
        let mut state = self.state();
        let gone = state.pins.remove(&pin.raw());
        assert!(gone.is_some(), "{pin:?} is unpinned twice, or never was pinned");
        let address = |page: u64| range.first().checked_add(page << self.granule.shift().get());
        state.written = dirty.filter_map(address).collect();
    }
}

impl Charge for SimHost {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        let mut state = self.state();
        if state.next_call_fails() {
            return Err(ChargeError::OverLimit { need: pages, charged: state.charged, limit: 0 });
        }
        state.check_limit(pages)?;
        state.charged = state.charged.saturating_add(pages);
        Ok(())
    }

    fn uncharge(&self, pages: u64) {
        let mut state = self.state();
        state.unmatched_uncharges += pages.saturating_sub(state.charged);
        state.charged = state.charged.saturating_sub(pages);
    }
}

impl MapSpec {
    /// Huge pages of `shift`, readable and writable.
    #[must_use]
    pub fn huge(shift: prereg::PageShift) -> Self {
        Self { backing: SimBacking::Huge(shift), ..Self::default() }
    }

    /// Base pages with the given protection.
    #[must_use]
    pub fn protected(protection: Protection) -> Self {
        Self { protection, ..Self::default() }
    }

    /// Device memory, which cannot be pinned.
    #[must_use]
    pub fn unpinnable() -> Self {
        Self { backing: SimBacking::Unpinnable, ..Self::default() }
    }
}
