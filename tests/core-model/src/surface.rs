//! The calls of the core whose form is not settled: constructors, ports, and how an entry is looked at.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use prereg::{
    Access, AddressKind, AddressSpace, Barrier, Charge, ChargeError, DirtyPages, EntryBlock, Granule,
    HostAddr, PageSink, Pin, PinError, PinId, TableMemory, UserAddr, UserRange,
};

use crate::host::Host;

/// Which fence mapping passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fence {
    /// A full one: the address space is given no barrier.
    Full,
    /// None but the compiler's: the address space is given a barrier, which is honest as long as one thread runs.
    Compiler,
}

/// A barrier for one thread.
struct OneThread;

// SAFETY: the caller is the only thread that runs while a world of this crate works: others it starts are joined at once.
#[expect(unsafe_code, reason = "the promise of a fence on all threads is kept by there being one")]
unsafe impl Barrier for OneThread {
    fn all_threads(&self) {
        fence(Ordering::SeqCst);
    }
}

/// An address space for one thread, with or without a barrier.
pub(crate) fn space(host: &Host, mode: Fence, tables: Arc<dyn TableMemory>) -> AddressSpace {
    let barrier: Option<Arc<dyn Barrier>> = match mode {
        Fence::Full => None,
        Fence::Compiler => Some(Arc::new(OneThread)),
    };
    space_with(host, barrier, tables)
}

/// An address space with the barrier given.
pub(crate) fn space_with(
    host: &Host,
    barrier: Option<Arc<dyn Barrier>>,
    tables: Arc<dyn TableMemory>,
) -> AddressSpace {
    let mut builder = AddressSpace::builder(host.clone()).tables(tables);
    if let Some(barrier) = barrier {
        builder = builder.barrier(barrier);
    }
    match builder.build() {
        Ok(space) => space,
        Err(error) => panic!("{error}"),
    }
}

/// Entry `index`: user address, host address if there is one, access.
pub(crate) fn look_at(block: &EntryBlock, index: usize) -> Option<(UserAddr, Option<HostAddr>, Access)> {
    block.view(index).map(|view| (view.ua, None, view.access))
}

// SAFETY: the addresses are invented, and no device exists.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for Host {
    fn name(&self) -> &'static str {
        "core-model"
    }
    fn granule(&self) -> Granule {
        Self::granule(self)
    }
    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }
    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        self.pin_pages(range, |host, count| pages.push(host, count)).map(PinId::new)
    }
    fn unpin(&self, pin: PinId, range: UserRange, dirty: DirtyPages<'_>) {
        self.unpin_pages(pin.raw(), range, dirty);
    }
}

impl Charge for Host {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        self.charge_pages(pages)
    }
    fn uncharge(&self, pages: u64) {
        self.uncharge_pages(pages);
    }
}
