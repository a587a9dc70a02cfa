//! Address spaces: `prereg_space`, the owner of a set of regions.

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::{CString, c_char, c_int};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::{AddressSpace, AddressSpaceBuilder, Charge, Errno, HostAddr, Pin, UserAddr};
use prereg_linux::{MemlockAccount, SlotAddress};

use crate::backend::{Backend, Vfio};
use crate::caller::{out_if, tell};
use crate::error::{CallError, prereg_error, run_call, value_or};
use crate::handle::{body, create_handle, kinds, take};
use crate::options::prereg_options;
use crate::ports::Charges;
use crate::record;
use crate::region::{prereg_region, region_of};
use crate::types::kind_number;

/// An address space: the owner of a set of regions. One per process, or one per guest. Any number of threads at once.
#[derive(Debug)]
pub struct prereg_space(());

kinds! {
    prereg_space, Space, 1;
}

/// An address space with its ports, which containers use too.
pub struct Space {
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) pins: Arc<dyn Pin>,
    pub(crate) charges: Arc<dyn Charge>,
    pub(crate) vfio: Vfio,
    name: CString,
    note: CString,
    cancel: Option<Arc<AtomicBool>>,
}

impl fmt::Debug for Space {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Space").field("space", &self.space).finish_non_exhaustive()
    }
}

impl Space {
    /// Clears the cancel flag of an earlier registration.
    pub(crate) fn resume(&self) {
        if let Some(cancel) = &self.cancel {
            // Relaxed: the flag orders nothing.
            cancel.store(false, Ordering::Relaxed);
        }
    }
}

fn make(options: &prereg_options) -> Result<Space, CallError> {
    let (mut backend, context) = Backend::new(options)?;
    let mut contexts = Vec::from_iter(context);
    match (options.charge.is_null(), options.locked_limit) {
        (true, 0) => {}
        (true, limit) => {
            let granule = backend.pins.granule();
            let pages = limit >> granule.shift().get();
            backend.charges = Arc::new(MemlockAccount::with_limit(granule, Some(pages)));
        }
        (false, 0) => {
            let (charges, context) = Charges::new(&record::read(options.charge)?)?;
            contexts.push(context);
            backend.charges = Arc::new(charges);
        }
        (false, _) => return Err(CallError::Argument("either charge or locked_limit, not both")),
    }
    let space = Arc::new(AddressSpaceBuilder::new(backend.pins.clone(), backend.charges.clone()).build()?);
    let name = CString::new(space.backend()).unwrap_or_default();
    let note = CString::new(backend.note).unwrap_or_default();
    for context in contexts {
        context.taken();
    }
    let Backend { pins, charges, vfio, cancel, .. } = backend;
    Ok(Space { space, pins, charges, vfio, name, note, cancel })
}

/// Creates an empty address space. `options` may be NULL: io_uring with its defaults.
///
/// Returns 0; -EPERM if this user may not use io_uring or the requested kind of addresses, -ENOSYS or -EINVAL if the kernel does not support
/// it, -ENOMEM, -EINVAL for conflicting or unused options. For the back ends of VFIO and iommufd also -ENOENT or -ENODEV (not supported by
/// the machine, the kernel or the device), -EACCES, -EPERM, -EBUSY: the message has the remedy.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_new(
    options: *const prereg_options,
    space: *mut *mut prereg_space,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || create_handle(space, || make(&record::read_if(options)?.unwrap_or_default())))
}

/// Frees the space with all its registrations, and sets `*space` to NULL. Unmapped regions are unpinned immediately, others with their
/// last mapping. Handles of registrations stay valid; their calls return -ENOENT. Tables, owners and IOVA maps of the space keep it
/// until they are freed.
///
/// Returns 0, also for NULL; -EINVAL for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_free(space: *mut *mut prereg_space) -> c_int {
    run_call(std::ptr::null_mut(), || take(space).map(drop))
}

/// The system page size of the space as a power of two; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_granule_shift(space: *const prereg_space) -> u32 {
    value_or(0, || Ok(body(space)?.space.granule().shift().get()))
}

/// The meaning of the space's host addresses: a `PREREG_ADDRESS_...`; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_address_kind(space: *const prereg_space) -> u32 {
    value_or(0, || Ok(kind_number(body(space)?.space.address_kind())))
}

/// The name of the back end, valid while the space lives; NULL for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_backend(space: *const prereg_space) -> *const c_char {
    value_or(std::ptr::null(), || Ok(body(space)?.name.as_ptr()))
}

/// The reason for the kind of its addresses, as a sentence, valid while the space lives; NULL for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_address_note(space: *const prereg_space) -> *const c_char {
    value_or(std::ptr::null(), || Ok(body(space)?.note.as_ptr()))
}

/// Whether anything is registered: 1 or 0; -EINVAL for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_is_preregistered(space: *const prereg_space) -> c_int {
    value_or(-Errno::EINVAL.raw(), || Ok(c_int::from(body(space)?.space.is_preregistered())))
}

/// Finds the region that has all of `bytes` bytes at `ua`.
///
/// Returns 0; -ENOENT without one (adjacent regions are not joined, and no region has zero bytes).
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_find(
    space: *const prereg_space,
    ua: u64,
    bytes: u64,
    region: *mut prereg_region,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let space = body(space)?;
        let region = record::out(region)?;
        let found = space.space.find(UserAddr::new(ua), bytes).ok_or_else(|| {
            let text = format!("no region has all of {bytes:#x} bytes at ua {ua:#x}");
            CallError::Refused(text, Errno::ENOENT)
        })?;
        region.write(&region_of(&found));
        Ok(())
    })
}

/// The number of the `bytes` bytes of host addresses from `host` on that are in one region of device memory; 0 for none.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_device_at(space: *const prereg_space, host: u64, bytes: u64) -> u64 {
    value_or(0, || Ok(body(space)?.space.device_at(HostAddr::new(host), bytes).unwrap_or(0)))
}

/// Releases regions whose last mapping was released by `prereg_unmap` or a table, which only queue them. Registering and
/// unregistering do it too.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_reap(space: *const prereg_space) -> c_int {
    run_call(std::ptr::null_mut(), || {
        body(space)?.space.reap();
        Ok(())
    })
}

/// Decodes a host address of the kind SLOT_OFFSET: the slot, counted over all rings (ring = slot / 16384), and the offset from the
/// start of the slot's memory.
///
/// Returns 0; -EINVAL for an address without a slot.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_slot_address(host: u64, slot: *mut u32, offset: *mut u64) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let (slot, offset) = (out_if(slot, "slot")?, out_if(offset, "offset")?);
        let address =
            SlotAddress::of(HostAddr::new(host)).ok_or(CallError::Argument("not a slot's address"))?;
        tell(slot, address.slot);
        tell(offset, address.offset);
        Ok(())
    })
}
