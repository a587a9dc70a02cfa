//! A back end that really pins, and runs what a test wants between a pin and its answer.

use prereg::{
    AddressKind, Charge, ChargeError, DirtyPages, Granule, PageSink, Pin, PinError, PinId, UserRange,
};
use prereg_linux::IoUring;

pub(crate) struct Hooked {
    pub(crate) pins: IoUring,
    /// Called after each pin, without a lock.
    pub(crate) pinned: Box<dyn Fn() + Send + Sync>,
}

// SAFETY: every call is passed on to a back end that keeps the promise.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for Hooked {
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
        let pin = self.pins.pin(range, pages)?;
        (self.pinned)();
        Ok(pin)
    }
    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>) {
        self.pins.unpin(pin, range, dirty);
    }
}

impl Charge for Hooked {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        self.pins.charge(pages)
    }
    fn uncharge(&self, pages: u64) {
        self.pins.uncharge(pages);
    }
}
