//! Translation control entries (TCEs), the values of a guest's table (docs/specification.md 3.1).
//!
//! Bit 0 lets the device read, bit 1 lets it write, the rest is the guest-physical address. Without a permission bit nothing is
//! mapped, whatever the other bits ("poison"); they are kept for the guest to read back.

use core::fmt;

use prereg::{Access, GuestAddr, PageShift};

/// One TCE, in the host's byte order.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
#[repr(transparent)]
pub struct Tce(u64);

impl Tce {
    const PERMISSIONS: u64 = 3;

    /// Zero: no mapping.
    pub const NONE: Self = Self(0);

    /// Any 64 bits are a TCE.
    #[must_use]
    #[inline]
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The 64 bits.
    #[must_use]
    #[inline]
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// The access allowed, or `None` if nothing is mapped.
    #[must_use]
    #[inline]
    pub fn access(self) -> Option<Access> {
        Access::from_bits(self.0 & Self::PERMISSIONS)
    }

    /// The value without its permission bits, all of which KVM's rules check.
    #[must_use]
    #[inline]
    pub const fn address(self) -> GuestAddr {
        GuestAddr::new(self.0 & !Self::PERMISSIONS)
    }

    /// The guest page in a table of page size `shift`: lower bits are ignored.
    #[must_use]
    #[inline]
    pub const fn page(self, shift: PageShift) -> GuestAddr {
        GuestAddr::new(self.0).align_down(shift)
    }
}

impl fmt::Display for Tce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tce {:#x}", self.0)
    }
}

impl fmt::Debug for Tce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tce:{:#x}", self.0)
    }
}
