//! VFIO SPAPR containers, called by the structs of their ioctls: `prereg_container`, and its owner, `prereg_owner`.

#![expect(
    unsafe_code,
    reason = "names for C; reads and writes a C caller's ioctl structs; calls its functions"
)]

use std::ffi::{c_int, c_void};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Errno, Memory, UserRange};
use prereg_iommu::Geometry;
use prereg_iommu::container::{Argument, Command, Container, Group, Owner, Platform, UserMemory};

use crate::caller::array;
use crate::error::{CallError, prereg_error, run_call};
use crate::handle::{body, create_handle, kinds, take};
use crate::ports::{CallersMemory, Context};
use crate::record::{self, records};
use crate::space::prereg_space;
use crate::table::{geometry_of, prereg_geometry, prereg_table};
use crate::types::choice;

/// Bare-metal POWER9.
pub const PREREG_PLATFORM_POWERNV: u32 = 0;
/// Bare-metal POWER8.
pub const PREREG_PLATFORM_POWERNV8: u32 = 1;
/// A guest of a POWER hypervisor.
pub const PREREG_PLATFORM_PSERIES: u32 = 2;

/// The process of containers: an address space, an account, and the memory of the process. Two owners of the same space are the same
/// process. Any thread.
#[derive(Debug)]
pub struct prereg_owner(());

/// A VFIO container. Any thread; calls are serialised by a lock, as in the kernel.
#[derive(Debug)]
pub struct prereg_container(());

kinds! {
    prereg_owner, Owner, 9;
    prereg_container, Mutex<Container>, 10;
}

/// The hardware of a group. The functions are called with the container's lock held, so they must not call the container.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_group_ops {
    /// sizeof(struct prereg_group_ops).
    pub size: usize,
    /// Passed to each function.
    pub context: *mut c_void,
    /// Programs window `slot`. Returns 0, or a negative errno with nothing programmed. May be NULL.
    pub set_window: Option<
        unsafe extern "C" fn(context: *mut c_void, slot: usize, geometry: *const prereg_geometry) -> c_int,
    >,
    /// Removes window `slot`, whose entries are cleared. May be NULL.
    pub unset_window: Option<unsafe extern "C" fn(context: *mut c_void, slot: usize)>,
    /// Called after the last use of the context. May be NULL.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

records!(prereg_group_ops);

/// All memory of the process.
struct OwnMemory;

impl UserMemory for OwnMemory {
    fn at(&self, range: UserRange) -> Option<Box<dyn Memory>> {
        Some(Box::new(CallersMemory::new(range.first().raw(), range.bytes(), None)))
    }
}

struct CallersGroup {
    number: u32,
    platform: Platform,
    hardware: Option<(prereg_group_ops, Context)>,
}

// SAFETY: the function pointers are plain; the context is one that may be used on any thread, as the header demands.
unsafe impl Send for CallersGroup {}
// SAFETY: as above.
unsafe impl Sync for CallersGroup {}

impl fmt::Debug for CallersGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CallersGroup").field("number", &self.number).finish_non_exhaustive()
    }
}

impl Group for CallersGroup {
    fn number(&self) -> u32 {
        self.number
    }

    fn platform(&self) -> &Platform {
        &self.platform
    }

    fn set_window(&self, slot: usize, geometry: &Geometry) -> Result<(), Errno> {
        let Some((ops, context)) = &self.hardware else { return Ok(()) };
        let Some(function) = ops.set_window else { return Ok(()) };
        let shape = geometry_of(geometry);
        // SAFETY: the caller's function with the caller's context.
        match unsafe { function(context.pointer, slot, &raw const shape) } {
            0 => Ok(()),
            code => Err(Errno::from_raw(if code < 0 { code.wrapping_neg() } else { Errno::EIO.raw() })),
        }
    }

    fn unset_window(&self, slot: usize) {
        let Some((ops, context)) = &self.hardware else { return };
        if let Some(function) = ops.unset_window {
            // SAFETY: the caller's function with the caller's context.
            unsafe { function(context.pointer, slot) };
        }
    }
}

/// Creates an owner: its containers register memory in `space` and charge tables to its account.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_owner_new(
    space: *const prereg_space,
    owner: *mut *mut prereg_owner,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(owner, || {
            let space = body(space)?;
            let (charges, pins) = (space.charges.clone(), space.pins.clone());
            Ok(Owner::new(space.space.clone(), charges, pins, Arc::new(OwnMemory)))
        })
    })
}

/// Releases the handle and sets `*owner` to NULL. Its containers stay valid.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_owner_free(owner: *mut *mut prereg_owner) -> c_int {
    run_call(std::ptr::null_mut(), || take(owner).map(drop))
}

/// Creates an empty container. `number` is its number as a holder in reports; 0 for none.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_new(
    number: u64,
    container: *mut *mut prereg_container,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || create_handle(container, || Ok(Mutex::new(Container::new(number)))))
}

/// Frees the container and sets `*container` to NULL: every entry is cleared, every window removed, every registration
/// released.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_free(container: *mut *mut prereg_container) -> c_int {
    run_call(std::ptr::null_mut(), || take(container).map(drop))
}

fn lock<'a>(container: *const prereg_container) -> Result<MutexGuard<'a, Container>, CallError> {
    // A panic inside a call leaves the container consistent.
    Ok(body(container)?.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Adds group `number` of `platform` (a `PREREG_PLATFORM_...`). `hardware` may be NULL: then its windows have only their
/// tables.
///
/// Returns 0; -EBUSY (it is attached already), -EPERM (another platform than the attached groups), -EINVAL, or the hardware's errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_attach(
    container: *const prereg_container,
    number: u32,
    platform: u32,
    hardware: *const prereg_group_ops,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let platform = match platform {
            PREREG_PLATFORM_POWERNV => Platform::POWERNV,
            PREREG_PLATFORM_POWERNV8 => Platform::POWERNV8,
            PREREG_PLATFORM_PSERIES => Platform::PSERIES,
            _ => return Err(choice("platform", platform, "PREREG_PLATFORM_...")),
        };
        let hardware = record::read_if(hardware)?;
        let hardware = hardware.map(|ops| (ops, Context::new(ops.context, ops.release)));
        let group = Arc::new(CallersGroup { number, platform, hardware });
        lock(container)?.attach(group.clone())?;
        if let Some((_, context)) = &group.hardware {
            context.taken();
        }
        Ok(())
    })
}

/// Removes group `number`. The other groups keep every mapping; without groups the container has no IOMMU.
///
/// Returns 0; -ENOENT.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_detach(
    container: *const prereg_container,
    number: u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        if lock(container)?.detach(number) {
            return Ok(());
        }
        Err(CallError::Refused(format!("group {number} is not in the container"), Errno::ENOENT))
    })
}

/// Performs an ioctl of a VMM. `command` is its number (VFIO_IOMMU_SPAPR_REGISTER_MEMORY and so on, as in linux/vfio.h), `argument` its
/// third argument: a number cast to a pointer, or the struct of the request, of which `readable` bytes may be read and written.
///
/// Returns the result of the ioctl: 0, 1 for a supported extension, or a negative errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_ioctl(
    container: *const prereg_container,
    owner: *const prereg_owner,
    command: u32,
    argument: *mut c_void,
    readable: usize,
    error: *mut prereg_error,
) -> c_int {
    let mut answered = 0;
    let code = run_call(error, || {
        let owner = body(owner)?;
        let mut container = lock(container)?;
        let takes = Command::from_raw(command).map_or(0, Command::argument_bytes);
        let argument = if takes == 0 {
            Argument::Value(argument.addr() as u64)
        } else {
            let start = argument.cast::<u8>();
            let readable = if start.is_null() { 0 } else { readable.min(takes) };
            Argument::Bytes(array(start, readable, "argument")?)
        };
        answered = c_int::try_from(container.ioctl(owner, command, argument)?).unwrap_or(c_int::MAX);
        Ok(())
    });
    if code == 0 { answered } else { code }
}

/// The table of window `slot`, shared with the container, for attaching a guest's table to it.
///
/// Returns 0; -ENOENT.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_window(
    container: *const prereg_container,
    slot: usize,
    table: *mut *mut prereg_table,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(table, || {
            let container = lock(container)?;
            let found = container.windows().find(|(number, _)| *number == slot);
            let missing = || CallError::Refused(format!("the container has no window {slot}"), Errno::ENOENT);
            found.map(|(_, table)| Arc::clone(table)).ok_or_else(missing)
        })
    })
}
