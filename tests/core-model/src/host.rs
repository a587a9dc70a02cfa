//! A fake host: pins the spots of the catalogue, records what is pinned and charged, and fails on request.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use prereg::{ChargeError, Granule, HostAddr, Memory, PinError, UserAddr, UserRange};

use crate::layout::{Spot, Truth, catalogue};

/// A value that keeps memory mapped, as a back end may look for it.
pub type Token = Arc<dyn Any + Send + Sync>;

/// The outside call that fails next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// Charging: over the limit.
    Charge,
    /// Pinning: a page cannot be pinned.
    Pin,
    /// Pinning names one page too few.
    TooFew,
    /// Pinning names one page too many.
    TooMany,
}

/// A pin that was released.
#[derive(Clone, Debug)]
pub struct Unpinned {
    /// Its number.
    pub pin: u64,
    /// The pages that were named dirty, from the first of the range on.
    pub dirty: Vec<u64>,
}

/// A fake host. Clones are the same host.
#[derive(Clone, Debug)]
pub struct Host(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    granule: Granule,
    spots: Vec<Spot>,
    /// Number of the pin that holds each spot as a whole, or 0. Without any ordering, so that nothing but the core's
    /// protocol keeps a reader from seeing another pin than that of its mapping.
    shown: Vec<AtomicU64>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last_pin: u64,
    pinned: BTreeMap<u64, (UserRange, Option<Weak<dyn Any + Send + Sync>>)>,
    charged: u64,
    limit: Option<u64>,
    failure: Option<Failure>,
    /// Keeps the memory that is registered next.
    token: Option<Weak<dyn Any + Send + Sync>>,
    /// Whether released pins are noted.
    quiet: bool,
    unpinned: Vec<Unpinned>,
    /// Violations by the core.
    wrong: Vec<String>,
}

/// Memory to register: numbers, and what would keep it mapped.
#[derive(Clone, Debug)]
pub struct Piece {
    ua: u64,
    bytes: u64,
    keep: Option<Token>,
}

impl Piece {
    /// `[ua, ua + bytes)`.
    #[must_use]
    pub const fn new(ua: u64, bytes: u64, keep: Option<Token>) -> Self {
        Self { ua, bytes, keep }
    }
}

// SAFETY: there is no memory behind the addresses, so no reference into it can exist.
#[expect(unsafe_code, reason = "the promise of the trait is kept by there being no memory")]
unsafe impl Memory for Piece {
    fn ua(&self) -> UserAddr {
        UserAddr::new(self.ua)
    }
    fn bytes(&self) -> u64 {
        self.bytes
    }
    fn keep(&self) -> Option<Token> {
        self.keep.clone()
    }
}

impl Host {
    /// A host with nothing pinned and no limit.
    #[must_use]
    pub fn new(granule: Granule) -> Self {
        let spots = catalogue(granule);
        let shown = spots.iter().map(|_| AtomicU64::new(0)).collect();
        Self(Arc::new(Shared { granule, spots, shown, state: Mutex::default() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The system page.
    #[must_use]
    pub fn granule(&self) -> Granule {
        self.0.granule
    }

    /// The catalogue of spots that can be pinned.
    #[must_use]
    pub fn spots(&self) -> &[Spot] {
        &self.0.spots
    }

    /// The number of handles, with those that address spaces hold.
    #[must_use]
    pub fn handles(&self) -> usize {
        Arc::strong_count(&self.0)
    }

    /// The spot that holds the byte at `ua`.
    #[must_use]
    pub fn spot_of(&self, ua: u64) -> Option<(usize, Spot)> {
        let holds = |spot: &Spot| ua >= spot.ua && ua - spot.ua < spot.pages * self.0.granule.bytes();
        let index = self.0.spots.iter().position(holds)?;
        Some((index, self.0.spots[index]))
    }

    /// Whether all of `[ua, ua + bytes)` lies in one spot.
    #[must_use]
    pub fn can_pin(&self, ua: u64, bytes: u64) -> bool {
        self.spot_of(ua)
            .is_some_and(|(_, spot)| bytes <= spot.pages * self.0.granule.bytes() - (ua - spot.ua))
    }

    /// The host addresses of pin `pin`, which begins at `ua`.
    #[must_use]
    pub fn truth(&self, pin: u64, ua: u64) -> Option<Truth> {
        let (_, spot) = self.spot_of(ua)?;
        let shift = self.0.granule.shift();
        Some(Truth::Pinned { layout: spot.layout, first: spot.ua >> shift.get(), pin, shift })
    }

    /// The pin that holds spot `index` as a whole; 0 when none does.
    #[must_use]
    pub fn shown(&self, index: usize) -> u64 {
        // Relaxed on purpose: see the field.
        self.0.shown[index].load(Ordering::Relaxed)
    }

    /// Limits charged pages.
    pub fn limit(&self, pages: Option<u64>) {
        self.state().limit = pages;
    }

    /// Makes one outside call of the next registration fail; `None`: none.
    pub fn fail_next(&self, failure: Option<Failure>) {
        self.state().failure = failure;
    }

    /// Says what keeps the memory that is registered next.
    pub fn expect_token(&self, token: Option<&Token>) {
        self.state().token = token.map(Arc::downgrade);
    }

    /// No longer notes released pins one by one.
    pub fn be_quiet(&self) {
        self.state().quiet = true;
    }

    /// The number of the latest pin.
    #[must_use]
    pub fn last_pin(&self) -> u64 {
        self.state().last_pin
    }

    /// The pins released since the last call, in order.
    pub fn take_unpinned(&self) -> Vec<Unpinned> {
        std::mem::take(&mut self.state().unpinned)
    }

    /// Whether pin `pin` holds its pages.
    #[must_use]
    pub fn is_pinned(&self, pin: u64) -> bool {
        self.state().pinned.contains_key(&pin)
    }

    /// Pages pinned and pages charged.
    #[must_use]
    pub fn pinned_and_charged(&self) -> (u64, u64) {
        let state = self.state();
        let pages = |(range, _): &(UserRange, _)| range.pages(self.0.granule);
        (state.pinned.values().map(pages).sum(), state.charged)
    }

    /// Violations by the core at the ports so far.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        self.state().wrong.clone()
    }

    /// Pins `range`; calls `push` with the host address of each run of pages.
    pub(crate) fn pin_pages<E: Into<PinError>>(
        &self,
        range: UserRange,
        mut push: impl FnMut(HostAddr, u64) -> Result<(), E>,
    ) -> Result<u64, PinError> {
        let mut state = self.state();
        let failure = state.failure.take();
        if failure == Some(Failure::Pin) {
            return Err(PinError::Fault { ua: range.first(), why: "this call was asked to fail" });
        }
        let (ua, bytes) = (range.first().raw(), range.bytes());
        state.last_pin += 1;
        let pin = state.last_pin;
        let truth = self.truth(pin, ua).filter(|_| self.can_pin(ua, bytes));
        let Some(truth) = truth else {
            return Err(PinError::Fault { ua: range.first(), why: "a page of the range is not there" });
        };
        let granule = self.0.granule;
        let page = |index: u64| truth.host(ua + index * granule.bytes());
        let mut left = range.pages(granule) - u64::from(failure == Some(Failure::TooFew));
        let mut index = 0;
        while left > 0 {
            // By runs or by single pages, as back ends do either.
            let follows = |count: &u64| {
                *count < left
                    && page(index).checked_add(*count * granule.bytes()) == Some(page(index + *count))
            };
            let count = if pin % 3 == 0 { 1 } else { 1 + (1..).take_while(follows).count() as u64 };
            push(HostAddr::new(page(index)), count).map_err(Into::into)?;
            index += count;
            left -= count;
        }
        if failure == Some(Failure::TooMany) {
            push(HostAddr::new(0), 1).map_err(Into::into)?;
        }
        let token = state.token.take();
        state.pinned.insert(pin, (range, token));
        self.show(range, pin);
        Ok(pin)
    }

    fn show(&self, range: UserRange, pin: u64) {
        if let Some((index, spot)) = self.spot_of(range.first().raw()) {
            if spot.ua == range.first().raw() && spot.pages == range.pages(self.0.granule) {
                // Relaxed on purpose: see the field.
                self.0.shown[index].store(pin, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn unpin_pages(&self, pin: u64, range: UserRange, dirty: impl Iterator<Item = u64>) {
        let dirty: Vec<u64> = dirty.collect();
        let mut state = self.state();
        match state.pinned.remove(&pin) {
            Some((pinned, token)) => {
                if pinned != range {
                    state.wrong.push(format!("pin {pin} of {pinned} was unpinned as {range}"));
                }
                if token.is_some_and(|token| token.strong_count() == 0) {
                    state.wrong.push(format!(
                        "the memory of pin {pin}, {range}, was released before it was unpinned"
                    ));
                }
                self.show(range, 0);
            }
            None => state.wrong.push(format!("pin {pin} of {range} was unpinned, and is not pinned")),
        }
        if !state.quiet {
            state.unpinned.push(Unpinned { pin, dirty });
        }
    }

    pub(crate) fn charge_pages(&self, pages: u64) -> Result<(), ChargeError> {
        let mut state = self.state();
        let limit = if state.failure == Some(Failure::Charge) { Some(0) } else { state.limit };
        if let Some(limit) = limit.filter(|&limit| state.charged.saturating_add(pages) > limit) {
            return Err(ChargeError::OverLimit { need: pages, charged: state.charged, limit });
        }
        state.charged = state.charged.saturating_add(pages);
        Ok(())
    }

    pub(crate) fn uncharge_pages(&self, pages: u64) {
        let mut state = self.state();
        let charged = state.charged;
        match charged.checked_sub(pages) {
            Some(rest) => state.charged = rest,
            None => state.wrong.push(format!("{pages} pages uncharged, {charged} were charged")),
        }
    }
}
