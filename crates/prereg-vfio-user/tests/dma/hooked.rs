//! A back end that calls hooks of the test before and after its pins and unpins.

use prereg::{
    AddressKind, Charge, ChargeError, DirtyPages, Granule, PageSink, Pin, PinError, PinId, UserRange,
};
use prereg_sim::SimHost;

pub(crate) struct Hooked<P> {
    pub(crate) pins: P,
    /// Called before each pin, without a lock: an error refuses it. May block.
    pub(crate) admits: Box<dyn Fn(UserRange) -> Result<(), PinError> + Send + Sync>,
    /// Called after each pin, without a lock.
    pub(crate) pinned: Box<dyn Fn() + Send + Sync>,
    /// Called before each unpin.
    pub(crate) unpins: Box<dyn Fn() + Send + Sync>,
    /// Called after each unpin.
    pub(crate) unpinned: Box<dyn Fn(UserRange) + Send + Sync>,
}

impl<P> Hooked<P> {
    pub(crate) fn new(pins: P) -> Self {
        Self {
            pins,
            admits: Box::new(|_| Ok(())),
            pinned: Box::new(|| ()),
            unpins: Box::new(|| ()),
            unpinned: Box::new(|_| ()),
        }
    }
}

/// A simulated host on which every address is memory; `admits` is called before each pin.
pub(crate) fn everywhere(
    host: &SimHost,
    admits: impl Fn() -> Result<(), PinError> + Send + Sync + 'static,
) -> Hooked<SimHost> {
    let (before, after) = (host.clone(), host.clone());
    let admits = move |range: UserRange| {
        admits()?;
        before.memory(range.first().raw(), range.bytes());
        Ok(())
    };
    let unpinned = move |range: UserRange| after.unmap(range.first().raw(), range.bytes());
    Hooked { admits: Box::new(admits), unpinned: Box::new(unpinned), ..Hooked::new(host.clone()) }
}

// SAFETY: every call is forwarded to a back end that keeps the contract.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl<P: Pin> Pin for Hooked<P> {
    fn name(&self) -> &'static str {
        self.pins.name()
    }
    fn granule(&self) -> Granule {
        self.pins.granule()
    }
    fn address_kind(&self) -> AddressKind {
        self.pins.address_kind()
    }
    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        (self.admits)(range)?;
        let pin = self.pins.pin(range, pages)?;
        (self.pinned)();
        Ok(pin)
    }
    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>) {
        (self.unpins)();
        self.pins.unpin(pin, range, dirty);
        (self.unpinned)(range);
    }
}

impl<P: Charge> Charge for Hooked<P> {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        self.pins.charge(pages)
    }
    fn uncharge(&self, pages: u64) {
        self.pins.uncharge(pages);
    }
}
