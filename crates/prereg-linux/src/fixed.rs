//! The pin back end for device memory: a host address is a base and an offset, and nothing is pinned.
//!
//! As with the kernel's `mm_iommu_newdev` (docs/specification.md 1.4), the pages are not system memory, never move and
//! are not charged.

use std::sync::Arc;

use prereg::{
    AddressKind, Barrier, Charge, ChargeError, DirtyPages, Granule, HostAddr, PageSink, Pin, PinError, PinId,
    UserAddr, UserRange,
};

use crate::barrier::Membarrier;

/// A window of user addresses that maps contiguous device memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fixed {
    window: UserRange,
    host: HostAddr,
    granule: Granule,
}

impl Fixed {
    /// A window whose first byte has the host address `host`. `None` when `host` is not page-aligned or the window
    /// would pass 2^64.
    #[must_use]
    pub fn new(window: UserRange, host: HostAddr, granule: Granule) -> Option<Self> {
        host.checked_add(window.bytes() - 1)?;
        host.is_aligned(granule.shift()).then_some(Self { window, host, granule })
    }
}

// SAFETY: the addresses are of kind `Device`, for which the caller is responsible.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for Fixed {
    fn name(&self) -> &'static str {
        "fixed"
    }

    fn granule(&self) -> Granule {
        self.granule
    }

    fn address_kind(&self) -> AddressKind {
        AddressKind::Device
    }

    fn barrier(&self) -> Option<Arc<dyn Barrier>> {
        Membarrier::shared()
    }

    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        let outside = |ua| PinError::Unsupported { ua, why: "it lies outside the device's window" };
        if !self.window.holds(range.first(), range.bytes()) {
            let ua = if self.window.holds(range.first(), 1) {
                UserAddr::new(self.window.last().raw() + 1)
            } else {
                range.first()
            };
            return Err(outside(ua));
        }
        let offset = range.first().offset_from(self.window.first()).unwrap_or_default();
        let host = self.host.checked_add(offset).ok_or(outside(range.first()))?;
        pages.push(host, range.pages(self.granule))?;
        Ok(PinId::new(0))
    }

    fn unpin(&self, _pin: PinId, _range: UserRange, _dirty: DirtyPages<'_>) {}
}

impl Charge for Fixed {
    fn charge(&self, _pages: u64) -> Result<(), ChargeError> {
        Ok(())
    }

    fn uncharge(&self, _pages: u64) {}
}

#[cfg(test)]
mod tests {
    use super::*;
    use prereg::PageList;

    const PAGE: u64 = 4096;

    fn range(first: u64, pages: u64) -> UserRange {
        UserRange::new(UserAddr::new(first), pages * PAGE, Granule::K4).unwrap()
    }

    #[test]
    fn inside_the_window_every_page_is_pushed_and_outside_none() {
        let fixed = Fixed::new(range(0x10_0000, 16), HostAddr::new(0xf000_0000), Granule::K4).unwrap();
        let inside = range(0x10_4000, 12);
        let mut pages = PageList::new(inside, Granule::K4);
        fixed.pin(inside, &mut pages.sink()).unwrap();
        assert_eq!(pages.filled(), 12);
        for (first, count, ua) in
            [(0x0f_f000, 2, 0x0f_f000), (0x10_f000, 2, 0x11_0000), (0x20_0000, 1, 0x20_0000)]
        {
            let range = range(first, count);
            let mut pages = PageList::new(range, Granule::K4);
            let error = fixed.pin(range, &mut pages.sink()).unwrap_err();
            assert!(matches!(error, PinError::Unsupported { ua: found, .. } if found.raw() == ua), "{error}");
            assert_eq!(pages.filled(), 0);
        }
    }

    #[test]
    fn windows_that_cannot_be_are_refused() {
        assert_eq!(Fixed::new(range(0x1000, 2), HostAddr::new(0x800), Granule::K4), None);
        assert_eq!(Fixed::new(range(0x1000, 2), HostAddr::new(!0xfff), Granule::K4), None);
        assert!(Fixed::new(range(0x1000, 1), HostAddr::new(!0xfff), Granule::K4).is_some());
    }
}
