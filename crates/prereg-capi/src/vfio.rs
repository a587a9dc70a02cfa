//! Functions of the VFIO and iommufd back ends only: devices (`prereg_device`, `prereg_bar`), the windows of SPAPR containers
//! (`prereg_window`), and tables of the memory that devices of an iommufd reach (`prereg_io_table`).

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::{c_char, c_int, c_void};
use std::sync::Arc;

use prereg::{Access, BusAddr, Errno, Iova, UserAddr};
use prereg_linux::{Bar, Iommufd, IommufdTable, SpaprTable, VfioDevice, VfioSpaprV2, WindowPlace};

use crate::backend::Vfio;
use crate::caller::{array, out, out_if, tell, text};
use crate::entries::prereg_entry;
use crate::error::{CallError, prereg_error, run_call, value_or};
use crate::handle::{body, body_mut, create_handle, kinds, take};
use crate::record;
use crate::space::{Space, prereg_space};
use crate::table::prereg_geometry;
use crate::translator::prereg_translator;
use crate::types::{access_from, access_of, choice, shift_from};

/// A window in addition to the default one, at a high bus address.
pub const PREREG_WINDOW_BESIDE: u32 = 0;
/// A window in the place of the default one, which is removed: for devices that cannot address more.
pub const PREREG_WINDOW_INSTEAD: u32 = 1;

/// A PCI device opened through VFIO. Any number of threads at once.
#[derive(Debug)]
pub struct prereg_device(());

/// The registers of a device, mapped.
#[derive(Debug)]
pub struct prereg_bar(());

/// The table of a window of a SPAPR container: every entry is a counted mapping here and an entry in the kernel. Any thread, any
/// number at once, each with a translator of its own.
#[derive(Debug)]
pub struct prereg_window(());

/// The ranges of registered memory that devices of an iommufd reach: each is a counted mapping here and a copy in the kernel. Any
/// number of threads at once, each with a translator of its own.
#[derive(Debug)]
pub struct prereg_io_table(());

kinds! {
    prereg_device, Arc<VfioDevice>, 16;
    prereg_window, SpaprTable, 17;
    prereg_io_table, IommufdTable, 18;
    prereg_bar, Bar, 19;
}

fn device_name<'a>(device: *const c_char) -> Result<&'a str, CallError> {
    text(device, "device")?.ok_or(CallError::Null("device"))
}

fn not_here(space: &Space, what: &str) -> CallError {
    let text = format!("a space of the back end {} has no {what}", space.space.backend());
    CallError::Refused(text, Errno::EOPNOTSUPP)
}

/// Adds a device: its group is added to the container, or it is attached to the iommufd. Pins and charges nothing.
///
/// Returns 0; -EOPNOTSUPP for a space of another back end or on the caller's own container; -ENODEV, -ENOENT, -EACCES, -EPERM,
/// -EBUSY: see the message. Nothing changes then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_add_device(
    space: *const prereg_space,
    device: *const c_char,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (space, device) = (body(space)?, device_name(device)?);
        match &space.vfio {
            Vfio::Type1(type1) => type1.add_group_of(device)?,
            Vfio::SpaprV2(spapr) => spapr.add_group_of(device)?,
            Vfio::Iommufd(iommufd) => iommufd.add_device(device).map(drop)?,
            Vfio::None => return Err(not_here(space, "devices")),
        }
        Ok(())
    })
}

/// Removes a device, or its group. Registered memory stays pinned.
///
/// Returns 0; -EBUSY if it is the last one and registered memory would be unpinned with it, or if the device is open; -EOPNOTSUPP,
/// -ENODEV. Nothing changes then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_space_remove_device(
    space: *const prereg_space,
    device: *const c_char,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (space, device) = (body(space)?, device_name(device)?);
        match &space.vfio {
            Vfio::Type1(type1) => type1.remove_group_of(device)?,
            Vfio::Iommufd(iommufd) => iommufd.remove_device(device)?,
            Vfio::SpaprV2(_) | Vfio::None => return Err(not_here(space, "removable devices")),
        }
        Ok(())
    })
}

/// Opens a device of the space's container, or shares one that is attached to its iommufd.
///
/// Returns 0; -EOPNOTSUPP, -ENODEV, -EBUSY, or the system's errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_device_open(
    space: *const prereg_space,
    name: *const c_char,
    device: *mut *mut prereg_device,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(device, || {
            let (space, name) = (body(space)?, device_name(name)?);
            Ok(match &space.vfio {
                Vfio::Type1(type1) => Arc::new(type1.device(name)?),
                Vfio::SpaprV2(spapr) => Arc::new(spapr.device(name)?),
                Vfio::Iommufd(iommufd) => iommufd.device(name)?,
                Vfio::None => return Err(not_here(space, "devices")),
            })
        })
    })
}

/// Releases the handle and sets `*device` to NULL. The device is closed with its last handle, unless an iommufd has it.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_device_close(device: *mut *mut prereg_device) -> c_int {
    run_call(std::ptr::null_mut(), || take(device).map(drop))
}

/// Enables the device's registers and DMA (`on` is 1), or disables DMA (0).
///
/// Returns 0, -EINVAL, or the system's errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_device_set_bus_master(
    device: *const prereg_device,
    on: c_int,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || match on {
        0 | 1 => Ok(body(device)?.set_bus_master(on == 1)?),
        _ => Err(choice("on", on as u32, "0 and 1")),
    })
}

/// Resets the device.
///
/// Returns 0, -EINVAL, or the system's errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_device_reset(device: *const prereg_device, error: *mut prereg_error) -> c_int {
    run_call(error, || Ok(body(device)?.reset()?))
}

/// Reads 16 bits of the device's configuration space.
///
/// Returns 0; -EINVAL beyond its end, or the system's errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_device_config_read(
    device: *const prereg_device,
    offset: u64,
    value: *mut u16,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let value = out(value, "value")?;
        value.write(body(device)?.config_u16(offset)?);
        Ok(())
    })
}

/// Writes 16 bits of the device's configuration space.
///
/// Returns 0; -EINVAL beyond its end, or the system's errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_device_config_write(
    device: *const prereg_device,
    offset: u64,
    value: u16,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || Ok(body(device)?.set_config_u16(offset, value)?))
}

/// Maps the registers of base address register `index`, 0 to 5, of the device.
///
/// Returns 0; -EINVAL; -EOPNOTSUPP if they cannot be mapped; the system's errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_bar_map(
    device: *const prereg_device,
    index: u32,
    bar: *mut *mut prereg_bar,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || create_handle(bar, || Ok(body(device)?.map_bar(index)?)))
}

/// Address of the registers, for volatile accesses, valid while the handle lives; NULL for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_bar_registers(bar: *const prereg_bar) -> *mut c_void {
    value_or(std::ptr::null_mut(), || Ok(body(bar)?.as_ptr().cast()))
}

/// The number of bytes of registers; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_bar_bytes(bar: *const prereg_bar) -> u64 {
    value_or(0, || Ok(body(bar)?.bytes()))
}

/// Unmaps the registers and sets `*bar` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_bar_unmap(bar: *mut *mut prereg_bar) -> c_int {
    run_call(std::ptr::null_mut(), || take(bar).map(drop))
}

fn spapr<'a>(space: *const prereg_space) -> Result<&'a VfioSpaprV2, CallError> {
    let space = body(space)?;
    match &space.vfio {
        Vfio::SpaprV2(spapr) => Ok(spapr),
        _ => Err(not_here(space, "windows")),
    }
}

/// The table of the default window of a space of `PREREG_BACKEND_VFIO_SPAPR_V2`. One at a time.
///
/// Returns 0; -EINVAL if it has a table or was replaced; -EOPNOTSUPP for a space of another back end.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_window_default(
    space: *const prereg_space,
    window: *mut *mut prereg_window,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || create_handle(window, || Ok(spapr(space)?.default_window()?)))
}

/// Creates a window of `bytes` bytes in pages of `2^shift`, and its table; `place` is a `PREREG_WINDOW_...`. The kernel chooses its
/// start: see `prereg_window_geometry`.
///
/// Returns 0; -EINVAL for invalid arguments; -EOPNOTSUPP for a space of another back end; the system's errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_window_create(
    space: *const prereg_space,
    shift: u32,
    bytes: u64,
    place: u32,
    window: *mut *mut prereg_window,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(window, || {
            let place = match place {
                PREREG_WINDOW_BESIDE => WindowPlace::Beside,
                PREREG_WINDOW_INSTEAD => WindowPlace::InsteadOfDefault,
                _ => return Err(choice("place", place, "PREREG_WINDOW_...")),
            };
            Ok(spapr(space)?.create_window(shift_from(shift)?, bytes, place)?)
        })
    })
}

/// Clears the table, removes the window if it was created for it, and sets `*window` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_window_free(window: *mut *mut prereg_window) -> c_int {
    run_call(std::ptr::null_mut(), || take(window).map(drop))
}

/// The position of the window. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_window_geometry(
    window: *const prereg_window,
    geometry: *mut prereg_geometry,
) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let (table, place) = (body(window)?, record::out(geometry)?);
        place.write(&prereg_geometry {
            size: 0,
            start: table.start().raw(),
            entries: table.bytes() >> table.shift().get(),
            shift: table.shift().get(),
            reserved: 0,
        });
        Ok(())
    })
}

/// Maps `pages` consecutive pages from `ua` on into the entries from bus address `ioba` on: one call to the kernel. The old mappings
/// are released.
///
/// Returns 0; -EFAULT, -ENXIO, -EINVAL, -ENOMEM, or the kernel's errno. Then the entries are unchanged, except those that the
/// message counts as lost.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_window_set_run(
    window: *const prereg_window,
    translator: *mut prereg_translator,
    ioba: u64,
    pages: u64,
    ua: u64,
    access: u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (table, access) = (body(window)?, access_from(access)?);
        let translator = &mut body_mut(translator)?.translator;
        Ok(table.put_run(translator, BusAddr::new(ioba), UserAddr::new(ua), pages, access)?)
    })
}

/// Maps any `count` pages into consecutive entries from `ioba` on: one call to the kernel for each run of consecutive pages.
///
/// Returns as `prereg_window_set_run` for the run that failed; the runs before it are mapped.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_window_set_list(
    window: *const prereg_window,
    translator: *mut prereg_translator,
    ioba: u64,
    pages: *const u64,
    count: usize,
    access: u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (table, access) = (body(window)?, access_from(access)?);
        let translator = &mut body_mut(translator)?.translator;
        let given = array(pages.cast_mut(), count, "pages")?;
        let mut list = Vec::new();
        list.try_reserve_exact(given.len()).map_err(|_| CallError::OutOfMemory)?;
        list.extend(given.iter().map(|&ua| UserAddr::new(ua)));
        Ok(table.put_list(translator, BusAddr::new(ioba), &list, access)?)
    })
}

/// Clears `pages` entries from `ioba` on: one call to the kernel, or none if all are empty. `*cleared` (may be NULL) is set to how
/// many were live.
///
/// Returns 0; -EINVAL, or the kernel's errno: then the entries stay counted.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_window_clear(
    window: *const prereg_window,
    translator: *mut prereg_translator,
    ioba: u64,
    pages: u64,
    cleared: *mut u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let cleared = out_if(cleared, "cleared")?;
        let translator = &mut body_mut(translator)?.translator;
        tell(cleared, body(window)?.stuff(translator, BusAddr::new(ioba), pages)?);
        Ok(())
    })
}

/// Returns the entry at `ioba`: 1 and fills `*entry` if it is live; 0 if it is empty or there is none; -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_window_inspect(
    window: *const prereg_window,
    ioba: u64,
    entry: *mut prereg_entry,
) -> c_int {
    value_or(-Errno::EINVAL.raw(), || {
        let place = record::out(entry)?;
        let seen: Option<(UserAddr, Access)> = body(window)?.entry(BusAddr::new(ioba));
        Ok(seen.map_or(0, |(ua, access)| {
            place.write(&prereg_entry {
                size: 0,
                ua: ua.raw(),
                access: access_of(Some(access)),
                reserved: 0,
            });
            1
        }))
    })
}

/// The number of live entries; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_window_live(window: *const prereg_window) -> u64 {
    value_or(0, || Ok(body(window)?.live()))
}

fn held<'a>(space: *const prereg_space) -> Result<(&'a Space, &'a Iommufd), CallError> {
    let space = body(space)?;
    match &space.vfio {
        Vfio::Iommufd(iommufd) => Ok((space, iommufd)),
        _ => Err(not_here(space, "tables of memory for devices")),
    }
}

/// Creates an empty table of the memory that devices reach, of a space of `PREREG_BACKEND_IOMMUFD` and `PREREG_PLACEMENT_HELD`.
///
/// Returns 0; -EOPNOTSUPP for another space; -ENOMEM, -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_io_table_new(
    space: *const prereg_space,
    table: *mut *mut prereg_io_table,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(table, || {
            let (space, iommufd) = held(space)?;
            iommufd.table().ok_or_else(|| not_here(space, "table unless its placement is HELD"))
        })
    })
}

/// Unmaps everything, frees the table and sets `*table` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_io_table_free(table: *mut *mut prereg_io_table) -> c_int {
    run_call(std::ptr::null_mut(), || take(table).map(drop))
}

/// Maps `bytes` bytes from `ua` on, all in one region, at I/O virtual address `at` for devices. Pins and charges nothing.
///
/// Returns 0; -EINVAL (empty, past 2^64, not whole units), -EEXIST, -EFAULT, -ENXIO, or the kernel's errno. Then nothing is
/// mapped.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_io_table_map(
    table: *const prereg_io_table,
    translator: *mut prereg_translator,
    at: u64,
    bytes: u64,
    ua: u64,
    access: u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (table, access) = (body(table)?, access_from(access)?);
        let translator = &mut body_mut(translator)?.translator;
        Ok(table.map(translator, Iova::new(at), UserAddr::new(ua), bytes, access)?)
    })
}

/// Unmaps the whole mapping at `at`.
///
/// Returns 0; -ENOENT if no mapping has exactly this range; or the kernel's errno: then the mapping stays counted.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_io_table_unmap(
    table: *const prereg_io_table,
    translator: *mut prereg_translator,
    at: u64,
    bytes: u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let translator = &mut body_mut(translator)?.translator;
        Ok(body(table)?.unmap(translator, Iova::new(at), bytes)?)
    })
}

/// The number of mapped ranges; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_io_table_live(table: *const prereg_io_table) -> u64 {
    value_or(0, || Ok(body(table)?.live()))
}
