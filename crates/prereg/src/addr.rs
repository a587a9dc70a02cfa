//! Addresses, page sizes and ranges, used by every crate.
//!
//! Five kinds of address that must never be mixed are five types. Their arithmetic is checked; nothing wraps by
//! accident. A range is closed (`first..=last`) and never empty, so "last" never means "one past the end", and it may
//! not reach the very top of the address space (`first + bytes == 2^64` is refused, as in the kernel's VFIO:
//! docs/specification.md 1.5).

use core::fmt;

use crate::errno::Errno;

macro_rules! addresses {
    ($($(#[$doc:meta])* $name:ident, $tag:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// Wraps a raw number.
            #[must_use]
            #[inline]
            pub const fn new(raw: u64) -> Self {
                Self(raw)
            }

            /// The raw number.
            #[must_use]
            #[inline]
            pub const fn raw(self) -> u64 {
                self.0
            }

            /// `self + bytes`, or `None` when that wraps.
            #[must_use]
            #[inline]
            pub const fn checked_add(self, bytes: u64) -> Option<Self> {
                match self.0.checked_add(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// `self - bytes`, or `None` when that wraps.
            #[must_use]
            #[inline]
            pub const fn checked_sub(self, bytes: u64) -> Option<Self> {
                match self.0.checked_sub(bytes) {
                    Some(raw) => Some(Self(raw)),
                    None => None,
                }
            }

            /// The number of bytes that `self` lies above `base`, or `None` when it lies below.
            #[must_use]
            #[inline]
            pub const fn offset_from(self, base: Self) -> Option<u64> {
                self.0.checked_sub(base.0)
            }

            /// The start of the page of `shift` that holds this address.
            #[must_use]
            #[inline]
            pub const fn align_down(self, shift: PageShift) -> Self {
                Self(self.0 & !shift.mask())
            }

            /// Whether this is the first byte of a page of `shift`.
            #[must_use]
            #[inline]
            pub const fn is_aligned(self, shift: PageShift) -> bool {
                self.0 & shift.mask() == 0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, " {:#x}"), self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($tag, ":{:#x}"), self.0)
            }
        }
    )*};
}

addresses! {
    /// An address in the owner's own (user) address space: what is registered.
    UserAddr, "ua";
    /// The address a device must use to reach a pinned page: a physical address, an IOVA, or a back end's own token.
    HostAddr, "hpa";
    /// A physical address of the guest: what a guest writes into its tables.
    GuestAddr, "gpa";
    /// An I/O virtual address: what a device emits behind an IOMMU.
    Iova, "iova";
    /// An address on the I/O bus of a TCE window.
    BusAddr, "ioba";
}

/// The size of a page as a power of two: `2^shift` bytes, `shift` from 0 to 63.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[repr(transparent)]
pub struct PageShift(u8);

impl PageShift {
    /// 4 KiB.
    pub const K4: Self = Self(12);
    /// 64 KiB.
    pub const K64: Self = Self(16);
    /// 2 MiB.
    pub const M2: Self = Self(21);
    /// 16 MiB.
    pub const M16: Self = Self(24);
    /// 1 GiB.
    pub const G1: Self = Self(30);

    /// A shift of 0 to 63, else `None`.
    #[must_use]
    pub const fn new(shift: u32) -> Option<Self> {
        if shift < 64 { Some(Self(shift as u8)) } else { None }
    }

    /// The exponent.
    #[must_use]
    #[inline]
    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    /// The size in bytes.
    #[must_use]
    #[inline]
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// The bits of an address below the page.
    #[must_use]
    #[inline]
    pub const fn mask(self) -> u64 {
        self.bytes() - 1
    }
}

impl fmt::Display for PageShift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            shift @ 0..=9 => write!(f, "{} B", 1u64 << shift),
            shift @ 10..=19 => write!(f, "{} KiB", 1u64 << (shift - 10)),
            shift @ 20..=29 => write!(f, "{} MiB", 1u64 << (shift - 20)),
            shift @ 30..=39 => write!(f, "{} GiB", 1u64 << (shift - 30)),
            shift => write!(f, "2^{shift} B"),
        }
    }
}

impl fmt::Debug for PageShift {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PageShift({})", self.0)
    }
}

/// The system page size: the unit of pins and charges. A parameter of every address space, never a constant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Granule(PageShift);

impl Granule {
    /// 4 KiB system pages.
    pub const K4: Self = Self(PageShift::K4);
    /// 64 KiB system pages.
    pub const K64: Self = Self(PageShift::K64);

    /// A system page of 4 KiB to 16 MiB, else `None`.
    #[must_use]
    pub const fn new(shift: PageShift) -> Option<Self> {
        if shift.0 >= 12 && shift.0 <= 24 { Some(Self(shift)) } else { None }
    }

    /// The exponent as a page shift.
    #[must_use]
    #[inline]
    pub const fn shift(self) -> PageShift {
        self.0
    }

    /// The size in bytes.
    #[must_use]
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.0.bytes()
    }
}

/// The reason why a (start, length) pair is not a range that can be registered. An error of the caller; EINVAL.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// Zero bytes. (Linux returns ENOMEM and warns: docs/specification.md 1.4, B15.)
    #[error("the range at {ua} is empty; register at least one page")]
    Empty {
        /// The start asked for.
        ua: UserAddr,
    },
    /// Start or length is not a multiple of the system page.
    #[error("{ua} + {bytes:#x} bytes is not made of whole {granule} pages; align start and length")]
    Misaligned {
        /// The start asked for.
        ua: UserAddr,
        /// The length asked for.
        bytes: u64,
        /// The system page.
        granule: PageShift,
    },
    /// The range reaches or passes 2^64.
    #[error("{ua} + {bytes:#x} bytes passes the end of the address space")]
    Wraps {
        /// The start asked for.
        ua: UserAddr,
        /// The length asked for.
        bytes: u64,
    },
}

crate::debug_as_display!(RangeError);

impl RangeError {
    /// EINVAL.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}

/// A closed, non-empty range of whole system pages of user memory. Holding one proves alignment and no wrap.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct UserRange {
    first: UserAddr,
    last: UserAddr,
}

impl UserRange {
    /// Proves `[ua, ua + bytes)` to be whole pages of `granule` that do not reach 2^64.
    ///
    /// # Errors
    /// [`RangeError`], in this order: misaligned, empty, wrapping.
    pub const fn new(ua: UserAddr, bytes: u64, granule: Granule) -> Result<Self, RangeError> {
        if (ua.0 | bytes) & granule.0.mask() != 0 {
            return Err(RangeError::Misaligned { ua, bytes, granule: granule.0 });
        }
        if bytes == 0 {
            return Err(RangeError::Empty { ua });
        }
        match ua.0.checked_add(bytes) {
            Some(end) => Ok(Self { first: ua, last: UserAddr(end - 1) }),
            None => Err(RangeError::Wraps { ua, bytes }),
        }
    }

    /// The first byte.
    #[must_use]
    #[inline]
    pub const fn first(self) -> UserAddr {
        self.first
    }

    /// The last byte, inside the range.
    #[must_use]
    #[inline]
    pub const fn last(self) -> UserAddr {
        self.last
    }

    /// The length in bytes; never zero, never 2^64.
    #[must_use]
    #[inline]
    pub const fn bytes(self) -> u64 {
        self.last.0 - self.first.0 + 1
    }

    /// The length in pages of `granule`.
    #[must_use]
    #[inline]
    pub const fn pages(self, granule: Granule) -> u64 {
        self.bytes() >> granule.0.0
    }

    /// Whether `bytes` bytes from `ua` on lie inside. False for zero bytes (docs/specification.md scenario 23) and for
    /// a range that wraps (22).
    #[must_use]
    #[inline]
    pub const fn holds(self, ua: UserAddr, bytes: u64) -> bool {
        bytes != 0 && ua.0 >= self.first.0 && ua.0 <= self.last.0 && bytes - 1 <= self.last.0 - ua.0
    }

    /// Whether the two ranges share a byte. Touching neighbours do not.
    #[must_use]
    #[inline]
    pub const fn intersects(self, other: Self) -> bool {
        self.first.0 <= other.last.0 && other.first.0 <= self.last.0
    }
}

impl fmt::Display for UserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ua {:#x}..={:#x}", self.first.0, self.last.0)
    }
}

impl fmt::Debug for UserRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
