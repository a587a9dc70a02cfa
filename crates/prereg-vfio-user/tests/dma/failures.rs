//! Every call to the outside fails once: nothing is left of the operation it was made for.

use prereg::{
    AddressKind, AddressSpace, Charge, ChargeError, DirtyPages, Granule, PageSink, Pin, PinError, PinId,
    UserRange,
};
use prereg_sim::SimHost;
use prereg_vfio_user::server::{MemoryPolicy, MemoryStore};
use std::sync::Arc;

use crate::world::{Client, PAGE, sealed};

/// A pretended host on which every address is memory.
pub(crate) struct Everywhere {
    pub(crate) host: SimHost,
    /// Looked at before each pin: `false` refuses it. May block.
    pub(crate) admits: Box<dyn Fn() -> bool + Send + Sync>,
    /// Called before each unpin.
    pub(crate) unpins: Box<dyn Fn() + Send + Sync>,
}

impl Everywhere {
    pub(crate) fn new(host: &SimHost) -> Self {
        Self { host: host.clone(), admits: Box::new(|| true), unpins: Box::new(|| ()) }
    }
}

// SAFETY: the addresses are invented, and no device exists.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for Everywhere {
    fn name(&self) -> &'static str {
        self.host.name()
    }
    fn granule(&self) -> Granule {
        self.host.granule()
    }
    fn address_kind(&self) -> AddressKind {
        self.host.address_kind()
    }
    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        if !(self.admits)() {
            return Err(PinError::OutOfMemory);
        }
        self.host.memory(range.first().raw(), range.bytes());
        self.host.pin(range, pages)
    }
    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>) {
        (self.unpins)();
        self.host.unpin(pin, range, dirty);
        self.host.unmap(range.first().raw(), range.bytes());
    }
}

impl Charge for Everywhere {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        self.host.charge(pages)
    }
    fn uncharge(&self, pages: u64) {
        self.host.uncharge(pages);
    }
}

fn play(policy: MemoryPolicy, fail: u64) -> bool {
    let host = SimHost::new(Granule::K4);
    let store =
        Arc::new(MemoryStore::new(AddressSpace::builder(Everywhere::new(&host)).build().unwrap(), policy));
    let (_memory, fd) = sealed(32);
    let (_other_memory, other) = sealed(32);
    // Whole files are registered by the first map of them.
    let fd_of_two = if policy == MemoryPolicy::EAGER { &other } else { &fd };
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(0, 1, &fd, 20).unwrap();
    let _ = one.dma.hold(crate::world::iova(0), 1, prereg::Access::Read).unwrap();
    let before = (host.pinned_pages(), host.charged_pages());
    host.fail_nth(fail);
    let mapped = two.map(0, 16, fd_of_two, 2).and_then(|()| {
        // Memory at first use fails here instead.
        let held = two.dma.hold(crate::world::iova(1), 14 * PAGE, prereg::Access::Read);
        held.map(|_| ()).map_err(|_| prereg_vfio_user::server::MapMemoryError::Disconnected)
    });
    let failed = host.has_failed();
    host.fail_nth(0);
    assert_eq!(mapped.is_err(), failed);
    if failed {
        assert_eq!((host.pinned_pages(), host.charged_pages()), before, "after failing call {fail}");
        assert_eq!(two.space.snapshot().iova.accesses, 0);
        // And it can be done after all.
        if two.space.snapshot().iova.mappings == 0 {
            two.map(0, 16, fd_of_two, 2).unwrap();
        }
        assert!(two.dma.hold(crate::world::iova(1), 14 * PAGE, prereg::Access::Read).is_ok());
    }
    drop((one, two));
    host.assert_clean();
    failed
}

#[test]
fn a_failed_call_leaves_nothing() {
    for policy in [
        MemoryPolicy::EAGER,
        MemoryPolicy::EAGER.with_extent(4 * PAGE),
        MemoryPolicy::FIRST_USE.with_extent(8 * PAGE),
    ] {
        let failures = (1..).take_while(|&fail| play(policy, fail)).count();
        let expected = if policy == MemoryPolicy::EAGER { 2 } else { 4 };
        assert!(failures >= expected, "{failures} calls for {policy:?}");
    }
}
