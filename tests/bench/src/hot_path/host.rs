//! A pin back end that invents addresses immediately, so that only the core is measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{
    AddressKind, Barrier, Charge, ChargeError, DirtyPages, Granule, HostAddr, PageSink, Pin, PinError, PinId,
    UserRange,
};

use super::layout::{Layout, PAGE};

/// Invents host addresses, scattered or contiguous, and charges nothing.
pub struct InventedHost {
    layout: Layout,
    barrier: Option<Arc<dyn Barrier>>,
    pins: AtomicU64,
}

impl InventedHost {
    /// A host with pages as in `layout`, and the fence `barrier`.
    #[must_use]
    pub fn new(layout: Layout, barrier: Option<Arc<dyn Barrier>>) -> Self {
        Self { layout, barrier, pins: AtomicU64::new(0) }
    }

    /// The host address of the page at `ua`: below 16 TiB, and never 0.
    fn invent(&self, ua: u64) -> u64 {
        let page = ua / PAGE;
        let frame = match self.layout {
            // An odd factor makes it a permutation; neighbours end up 2.6 billion pages apart.
            Layout::Scattered => (page as u32).wrapping_mul(0x9e37_79b1) | 1 << 31,
            Layout::Contiguous => (page as u32 & 0x0fff_ffff) | 1 << 28,
        };
        u64::from(frame) * PAGE
    }
}

impl std::fmt::Debug for InventedHost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InventedHost").field("layout", &self.layout).finish_non_exhaustive()
    }
}

// SAFETY: the addresses are invented, and no device exists.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for InventedHost {
    fn name(&self) -> &'static str {
        "invented"
    }

    fn granule(&self) -> Granule {
        Granule::K4
    }

    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }

    fn barrier(&self) -> Option<Arc<dyn Barrier>> {
        self.barrier.clone()
    }

    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        let first = range.first().raw();
        match self.layout {
            Layout::Contiguous => pages.push(HostAddr::new(self.invent(first)), range.bytes() / PAGE)?,
            Layout::Scattered => {
                for offset in (0..range.bytes()).step_by(PAGE as usize) {
                    pages.push(HostAddr::new(self.invent(first + offset)), 1)?;
                }
            }
        }
        // Relaxed: only uniqueness matters.
        Ok(PinId::new(self.pins.fetch_add(1, Ordering::Relaxed)))
    }

    fn unpin(&self, _pin: PinId, _range: UserRange, _dirty: DirtyPages<'_>) {}
}

impl Charge for InventedHost {
    fn charge(&self, _pages: u64) -> Result<(), ChargeError> {
        Ok(())
    }

    fn uncharge(&self, _pages: u64) {}
}
