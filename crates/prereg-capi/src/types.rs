//! Types that C and Rust share: address kinds, holders, permissions, page sizes.

use prereg::{Access, AddressKind, Granule, Holder, HolderKind, PageShift};

use crate::error::CallError;
use crate::record::{self, Record, records};

/// Chosen by the back end: physical addresses if this process may read them, otherwise (slot, offset).
pub const PREREG_ADDRESS_ANY: u32 = 0;
/// Physical addresses.
pub const PREREG_ADDRESS_PHYSICAL: u32 = 1;
/// Addresses on an I/O bus.
pub const PREREG_ADDRESS_IOVA: u32 = 2;
/// (slot, offset) of an io_uring fixed buffer: see `prereg_slot_address`.
pub const PREREG_ADDRESS_SLOT_OFFSET: u32 = 3;
/// Addresses of device memory.
pub const PREREG_ADDRESS_DEVICE: u32 = 4;
/// No device may use them: they are invented, or belong to memory that is not pinned.
pub const PREREG_ADDRESS_INVENTED: u32 = 5;
/// The user addresses themselves: the kernel translates them wherever a host address is needed.
pub const PREREG_ADDRESS_USER: u32 = 6;

/// Held for anything else.
pub const PREREG_HOLDER_OTHER: u32 = 0;
/// Held by an entry of an IOMMU table.
pub const PREREG_HOLDER_TABLE_ENTRY: u32 = 1;
/// Held by an I/O in flight.
pub const PREREG_HOLDER_IN_FLIGHT: u32 = 2;

/// The holder of a registration or a mapping, for reports. NULL is a holder without number and kind.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_holder {
    /// sizeof(struct prereg_holder).
    pub size: usize,
    /// A number of the caller's choice; 0 for none.
    pub container: u64,
    /// A `PREREG_HOLDER_...`.
    pub kind: u32,
    /// Zero.
    pub reserved: u32,
}

records!(prereg_holder);

/// The device may read memory.
pub const PREREG_ACCESS_READ: u32 = 1;
/// The device may write memory.
pub const PREREG_ACCESS_WRITE: u32 = 2;

/// The holder of a C struct.
pub(crate) fn holder_from(holder: *const prereg_holder) -> Result<Holder, CallError> {
    let Some(holder) = record::read_if(holder)? else { return Ok(Holder::default()) };
    zero(prereg_holder::NAME, holder.reserved)?;
    let kind = match holder.kind {
        PREREG_HOLDER_OTHER => HolderKind::Other,
        PREREG_HOLDER_TABLE_ENTRY => HolderKind::TableEntry,
        PREREG_HOLDER_IN_FLIGHT => HolderKind::InFlight,
        _ => return Err(choice("kind of prereg_holder", holder.kind, "PREREG_HOLDER_...")),
    };
    Ok(Holder { container: holder.container, kind })
}

/// The kind of a holder in C.
pub(crate) const fn holder_kind(holder: Holder) -> u32 {
    match holder.kind {
        HolderKind::TableEntry => PREREG_HOLDER_TABLE_ENTRY,
        HolderKind::InFlight => PREREG_HOLDER_IN_FLIGHT,
        _ => PREREG_HOLDER_OTHER,
    }
}

/// The error for a number that is not defined.
#[cold]
pub(crate) fn choice(what: &'static str, found: u32, choices: &'static str) -> CallError {
    CallError::Choice { what, found: found.into(), choices }
}

/// Refuses a reserved member that is not zero, so that it can be defined later.
pub(crate) const fn zero(name: &'static str, reserved: u32) -> Result<(), CallError> {
    if reserved == 0 { Ok(()) } else { Err(CallError::Reserved(name)) }
}

/// A system page size; 0 is the system's.
pub(crate) fn granule_of(shift: u32) -> Result<Granule, CallError> {
    if shift == 0 {
        #[expect(unsafe_code, reason = "the page size is a system call")]
        // SAFETY: numbers only.
        let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
        return PageShift::new(bytes.trailing_zeros())
            .and_then(Granule::new)
            .ok_or(CallError::Argument("this system has no pages of 4 KiB to 16 MiB"));
    }
    PageShift::new(shift)
        .and_then(Granule::new)
        .ok_or_else(|| choice("granule_shift", shift, "0 (this system's page) and 12 to 24"))
}

/// A page size.
#[inline]
pub(crate) fn shift_from(shift: u32) -> Result<PageShift, CallError> {
    match PageShift::new(shift) {
        Some(shift) => Ok(shift),
        None => Err(choice("the page shift", shift, "0 to 63, the page size as a power of two")),
    }
}

/// An address kind; `None` for any.
pub(crate) fn kind_from(kind: u32) -> Result<Option<AddressKind>, CallError> {
    Ok(Some(match kind {
        PREREG_ADDRESS_ANY => return Ok(None),
        PREREG_ADDRESS_PHYSICAL => AddressKind::Physical,
        PREREG_ADDRESS_IOVA => AddressKind::Iova,
        PREREG_ADDRESS_SLOT_OFFSET => AddressKind::SlotOffset,
        PREREG_ADDRESS_DEVICE => AddressKind::Device,
        PREREG_ADDRESS_INVENTED => AddressKind::Invented,
        PREREG_ADDRESS_USER => AddressKind::User,
        _ => return Err(choice("address_kind", kind, "PREREG_ADDRESS_...")),
    }))
}

/// The number of an address kind in C.
pub(crate) const fn kind_number(kind: AddressKind) -> u32 {
    match kind {
        AddressKind::Physical => PREREG_ADDRESS_PHYSICAL,
        AddressKind::Iova => PREREG_ADDRESS_IOVA,
        AddressKind::SlotOffset => PREREG_ADDRESS_SLOT_OFFSET,
        AddressKind::Device => PREREG_ADDRESS_DEVICE,
        AddressKind::Invented => PREREG_ADDRESS_INVENTED,
        AddressKind::User => PREREG_ADDRESS_USER,
        _ => PREREG_ADDRESS_ANY,
    }
}

/// The access of a number in C.
pub(crate) fn access_from(bits: u32) -> Result<Access, CallError> {
    Access::from_bits(u64::from(bits))
        .filter(|_| bits <= 3)
        .ok_or_else(|| choice("access", bits, "PREREG_ACCESS_READ, PREREG_ACCESS_WRITE and both"))
}

/// The number of an access in C; 0 is none.
pub(crate) fn access_of(access: Option<Access>) -> u32 {
    access.map_or(0, |access| access.bits() as u32)
}
