//! The TCE hypercalls: numbers, arguments, results, and the port that reads lists from guest memory.
//!
//! Numbers and results are the guest's register values; unknown ones are kept as they are.

use core::fmt;

use prereg::{BusAddr, GuestAddr};

use crate::tce::Tce;

/// The result of a hypercall: register 3 on return (PAPR; docs/specification.md 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
#[repr(transparent)]
pub struct HReturn(i64);

macro_rules! returns {
    ($($(#[$doc:meta])* $name:ident = $value:literal, $papr:literal;)*) => {
        impl HReturn {
            $($(#[$doc])* pub const $name: Self = Self($value);)*

            /// The PAPR name, or `None` for a code that no call here returns.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some($papr),)*
                    _ => None,
                }
            }
        }
    };
}

returns! {
    /// Done.
    SUCCESS = 0, "H_SUCCESS";
    /// Another vCPU does not leave the entry; nothing changed, the guest may retry.
    BUSY = 1, "H_BUSY";
    /// The hardware table could not be changed: the translator belongs to another address space.
    HARDWARE = -1, "H_HARDWARE";
    /// A bad argument.
    PARAMETER = -4, "H_PARAMETER";
    /// No memory for a block of a table.
    RESOURCE = -16, "H_RESOURCE";
    /// The fast path leaves the call to the slow one. Never returned to a guest.
    TOO_HARD = 9999, "H_TOO_HARD";
}

impl HReturn {
    /// Wraps a register value.
    #[must_use]
    pub const fn new(raw: i64) -> Self {
        Self(raw)
    }

    /// The register value.
    #[must_use]
    pub const fn raw(self) -> i64 {
        self.0
    }
}

impl fmt::Display for HReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({})", self.0),
            None => write!(f, "H_? ({})", self.0),
        }
    }
}

impl fmt::Debug for HReturn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A TCE hypercall with its arguments in registers 4 to 7, not yet checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hypercall {
    /// H_GET_TCE: reads one entry.
    Get {
        /// The table.
        liobn: u64,
        /// The bus address of the entry.
        ioba: BusAddr,
    },
    /// H_PUT_TCE: writes one entry.
    Put {
        /// The table.
        liobn: u64,
        /// The bus address of the entry.
        ioba: BusAddr,
        /// The value.
        tce: Tce,
    },
    /// H_PUT_TCE_INDIRECT: writes a list of up to 512 values from guest memory.
    PutIndirect {
        /// The table.
        liobn: u64,
        /// The bus address of the first entry.
        ioba: BusAddr,
        /// The address of the list: 8 bytes a value, big-endian.
        list: GuestAddr,
        /// The number of values.
        pages: u64,
    },
    /// H_STUFF_TCE: writes one value into a range of entries.
    Stuff {
        /// The table.
        liobn: u64,
        /// The bus address of the first entry.
        ioba: BusAddr,
        /// The value.
        tce: Tce,
        /// The number of entries.
        pages: u64,
    },
}

impl Hypercall {
    const GET_TCE: u64 = 0x1c;
    const PUT_TCE: u64 = 0x20;
    const STUFF_TCE: u64 = 0x138;
    const PUT_TCE_INDIRECT: u64 = 0x13c;

    /// Values in one H_PUT_TCE_INDIRECT, at most: a 4 KiB page.
    pub const MAX_LIST: usize = 512;

    /// The call of register 3 = `number` with registers 4 to 7 = `arguments`, or `None` if it is none of these four.
    ///
    /// ```
    /// use prereg_iommu::{Hypercall, Tce};
    ///
    /// let call = Hypercall::decode(0x20, [0x8000_0000, 0x1000, 0x2003, 0]);
    /// assert!(matches!(call, Some(Hypercall::Put { liobn: 0x8000_0000, tce, .. }) if tce == Tce::new(0x2003)));
    /// assert_eq!(Hypercall::decode(0x04, [0; 4]), None);
    /// ```
    #[must_use]
    pub const fn decode(number: u64, arguments: [u64; 4]) -> Option<Self> {
        let [liobn, ioba, third, pages] = arguments;
        let ioba = BusAddr::new(ioba);
        Some(match number {
            Self::GET_TCE => Self::Get { liobn, ioba },
            Self::PUT_TCE => Self::Put { liobn, ioba, tce: Tce::new(third) },
            Self::STUFF_TCE => Self::Stuff { liobn, ioba, tce: Tce::new(third), pages },
            Self::PUT_TCE_INDIRECT => Self::PutIndirect { liobn, ioba, list: GuestAddr::new(third), pages },
            _ => return None,
        })
    }

    /// The liobn, as it is in the register.
    #[must_use]
    #[inline]
    pub const fn liobn(&self) -> u64 {
        match *self {
            Self::Get { liobn, .. }
            | Self::Put { liobn, .. }
            | Self::PutIndirect { liobn, .. }
            | Self::Stuff { liobn, .. } => liobn,
        }
    }
}

/// The result of a hypercall.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub struct Reply {
    /// Register 3.
    pub code: HReturn,
    /// Register 4 after a successful H_GET_TCE; otherwise the register is unchanged.
    pub value: Option<Tce>,
    /// Whether the fast path returned H_TOO_HARD and this is the slow path's result.
    pub fell_back_to_userspace: bool,
}

impl Reply {
    #[inline]
    pub(crate) const fn plain(code: HReturn) -> Self {
        Self { code, value: None, fell_back_to_userspace: false }
    }

    #[inline]
    pub(crate) fn of_read(read: Result<Tce, HReturn>) -> Self {
        match read {
            Ok(tce) => Self { code: HReturn::SUCCESS, value: Some(tce), fell_back_to_userspace: false },
            Err(code) => Self::plain(code),
        }
    }

    #[inline]
    pub(crate) fn of_write(written: Result<(), HReturn>) -> Self {
        Self::plain(match written {
            Ok(()) => HReturn::SUCCESS,
            Err(code) => code,
        })
    }
}

/// The list of an H_PUT_TCE_INDIRECT is not in guest memory.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the list is not in guest memory")]
pub struct NotRam;

prereg::debug_as_display!(NotRam);

/// The port to guest memory: copies a list of TCEs.
///
/// Called once a hypercall, so a guest that changes the list meanwhile cannot make the validated and the written values differ.
pub trait GuestRead {
    /// Fills `values` (at most 512) from `at`, a multiple of 4 KiB: 8 bytes each, big-endian in guest memory, native here.
    ///
    /// # Errors
    /// [`NotRam`] if they are not all in guest memory; `values` is ignored then.
    fn read_list(&self, at: GuestAddr, values: &mut [u64]) -> Result<(), NotRam>;
}

/// Most lists of a running guest are this short; longer ones use a buffer of the full size.
const SHORT_LIST: usize = 32;

/// Reads `count` values (at most 512) at `at` and passes them to `work` with the result of the read; after an error their
/// contents are arbitrary.
#[inline]
pub(crate) fn with_list<G: GuestRead + ?Sized, T>(
    guest: &G,
    at: GuestAddr,
    count: usize,
    work: impl FnOnce(&mut [u64], Result<(), NotRam>) -> T,
) -> T {
    if count <= SHORT_LIST {
        with_buffer::<SHORT_LIST, G, T>(guest, at, count, work)
    } else {
        with_buffer::<{ Hypercall::MAX_LIST }, G, T>(guest, at, count, work)
    }
}

#[inline]
fn with_buffer<const CAPACITY: usize, G: GuestRead + ?Sized, T>(
    guest: &G,
    at: GuestAddr,
    count: usize,
    work: impl FnOnce(&mut [u64], Result<(), NotRam>) -> T,
) -> T {
    let mut buffer = [0; CAPACITY];
    let values = &mut buffer[..count];
    let read = guest.read_list(at, values);
    work(values, read)
}

impl<F: Fn(GuestAddr, &mut [u64]) -> Result<(), NotRam>> GuestRead for F {
    #[inline]
    fn read_list(&self, at: GuestAddr, values: &mut [u64]) -> Result<(), NotRam> {
        self(at, values)
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn the_four_numbers_decode_and_no_other_does() {
        let arguments = [1, 2, 3, 4];
        let (liobn, ioba, pages) = (1, BusAddr::new(2), 4);
        for (number, call) in [
            (0x1c, Hypercall::Get { liobn, ioba }),
            (0x20, Hypercall::Put { liobn, ioba, tce: Tce::new(3) }),
            (0x138, Hypercall::Stuff { liobn, ioba, tce: Tce::new(3), pages }),
            (0x13c, Hypercall::PutIndirect { liobn, ioba, list: GuestAddr::new(3), pages }),
        ] {
            assert_eq!(Hypercall::decode(number, arguments), Some(call));
            assert_eq!(call.liobn(), 1);
        }
        for number in (0..0x400).filter(|number| ![0x1c, 0x20, 0x138, 0x13c].contains(number)) {
            assert_eq!(Hypercall::decode(number, arguments), None, "{number:#x}");
        }
    }

    #[test]
    fn results_print_their_name_and_number() {
        assert_eq!(HReturn::PARAMETER.to_string(), "H_PARAMETER (-4)");
        assert_eq!(HReturn::TOO_HARD.to_string(), "H_TOO_HARD (9999)");
        assert_eq!(HReturn::new(-77).to_string(), "H_? (-77)");
        assert_eq!(HReturn::new(-4), HReturn::PARAMETER);
    }
}
