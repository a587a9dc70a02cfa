//! VFIO SPAPR containers by the bytes of their ioctls: `prereg_container`, and `prereg_owner`, who uses them.

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
use crate::failure::{Failure, answer, prereg_error};
use crate::handle::{body, hand_out, kinds, take};
use crate::ports::{CallersMemory, Context};
use crate::record::{self, records};
use crate::space::prereg_space;
use crate::table::{geometry_of, prereg_geometry, prereg_table};
use crate::words::choice;

/// Bare-metal POWER9.
pub const PREREG_PLATFORM_POWERNV: u32 = 0;
/// Bare-metal POWER8.
pub const PREREG_PLATFORM_POWERNV8: u32 = 1;
/// A guest of a POWER hypervisor.
pub const PREREG_PLATFORM_PSERIES: u32 = 2;

/// A process that uses containers: an address space, the account that pays, the memory that is named by range. Two owners are
/// the same process if they were made from the same space. Any thread.
#[derive(Debug)]
pub struct prereg_owner(());

/// A VFIO container. Any thread; calls take their turns, as under the kernel's own lock.
#[derive(Debug)]
pub struct prereg_container(());

kinds! {
    prereg_owner, Owner, 9;
    prereg_container, Mutex<Container>, 10;
}

/// The hardware behind a group. The functions are called with the container's lock held: they may not call it.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_group_ops {
    /// sizeof(struct prereg_group_ops).
    pub size: usize,
    /// Passed to each function.
    pub context: *mut c_void,
    /// Programs window `slot`. Returns 0, or a negative errno and nothing is programmed. May be NULL.
    pub set_window: Option<
        unsafe extern "C" fn(context: *mut c_void, slot: usize, geometry: *const prereg_geometry) -> c_int,
    >,
    /// Takes window `slot` away; every entry of it was cleared before. May be NULL.
    pub unset_window: Option<unsafe extern "C" fn(context: *mut c_void, slot: usize)>,
    /// The context is not used any more. May be NULL.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

records!(prereg_group_ops);

/// All memory of the process; the pin finds out what is there.
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

/// Makes an owner: containers that it uses register memory in `space` and charge tables to its account.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_owner_new(
    space: *const prereg_space,
    owner: *mut *mut prereg_owner,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        hand_out(owner, || {
            let space = body(space)?;
            let (charges, pins) = (space.charges.clone(), space.pins.clone());
            Ok(Owner::new(space.space.clone(), charges, pins, Arc::new(OwnMemory)))
        })
    })
}

/// Gives the handle up and sets `*owner` to NULL. Containers that it uses go on.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_owner_free(owner: *mut *mut prereg_owner) -> c_int {
    answer(std::ptr::null_mut(), || take(owner).map(drop))
}

/// Makes an empty container; `number` is what reports of who holds a mapping call it, 0 stands for none.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_new(
    number: u64,
    container: *mut *mut prereg_container,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || hand_out(container, || Ok(Mutex::new(Container::new(number)))))
}

/// Frees the container and sets `*container` to NULL: every entry is cleared, every window removed, every registration given
/// up.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_free(container: *mut *mut prereg_container) -> c_int {
    answer(std::ptr::null_mut(), || take(container).map(drop))
}

fn lock<'a>(container: *const prereg_container) -> Result<MutexGuard<'a, Container>, Failure> {
    // A panic inside a call leaves nothing half done that another call would trip over.
    Ok(body(container)?.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Adds group `number` of `platform` (a `PREREG_PLATFORM_...`). `hardware` may be NULL: its windows are then reached through
/// their tables only.
///
/// Returns 0; -EBUSY (it is here already), -EPERM (another platform than the groups here), -EINVAL, or what the hardware said.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_attach(
    container: *const prereg_container,
    number: u32,
    platform: u32,
    hardware: *const prereg_group_ops,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
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

/// Takes group `number` out. The other groups keep every mapping; with the last group goes the IOMMU.
///
/// Returns 0; -ENOENT.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_detach(
    container: *const prereg_container,
    number: u32,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        if lock(container)?.detach(number) {
            return Ok(());
        }
        Err(Failure::Refused(format!("group {number} is not in the container"), Errno::ENOENT))
    })
}

/// A request as it comes from a VMM: `command` is the ioctl's number (VFIO_IOMMU_SPAPR_REGISTER_MEMORY and so on, as in
/// linux/vfio.h), `argument` the ioctl's third argument: a number made a pointer for those requests that take one, else the
/// request's struct, of which `readable` bytes may be read and written.
///
/// Returns what the ioctl returns: 0, 1 for an extension that is there, or a negative errno.
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
    let code = answer(error, || {
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

/// The table of window `slot`, shared: what a guest's table is attached to.
///
/// Returns 0; -ENOENT.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_container_window(
    container: *const prereg_container,
    slot: usize,
    table: *mut *mut prereg_table,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        hand_out(table, || {
            let container = lock(container)?;
            let found = container.windows().find(|(number, _)| *number == slot);
            let missing = || Failure::Refused(format!("the container has no window {slot}"), Errno::ENOENT);
            found.map(|(_, table)| Arc::clone(table)).ok_or_else(missing)
        })
    })
}
