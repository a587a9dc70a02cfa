//! Hardware tables: windows of counted entries, `prereg_table`.

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::c_int;
use std::sync::Arc;

use prereg::{BusAddr, UserAddr};
use prereg_iommu::{Geometry, HwTable};

use crate::caller::{out, out_if, tell};
use crate::entries::{entry_of, prereg_entry};
use crate::error::{CallError, prereg_error, run_call, value_or};
use crate::handle::{body, body_mut, create_handle, kinds, take};
use crate::record::{self, Record, records};
use crate::space::prereg_space;
use crate::translator::{prereg_mapping, prereg_translator};
use crate::types::{access_from, access_of, shift_from, zero};

/// The position of a window of an I/O bus: `entries` pages of `2^shift` bytes (12 at least) from bus address `start` on, which is
/// the start of such a page; it ends below 2^64.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_geometry {
    /// sizeof(struct prereg_geometry).
    pub size: usize,
    /// The first bus address.
    pub start: u64,
    /// Pages; not zero.
    pub entries: u64,
    /// The page size as a power of two.
    pub shift: u32,
    /// Zero.
    pub reserved: u32,
}

/// A table through which devices access memory: each live entry is one counted mapping. Any number of threads at once, each with a
/// translator of its own. It may be shared with guests' tables and containers.
#[derive(Debug)]
pub struct prereg_table(());

kinds! {
    prereg_table, Arc<HwTable>, 7;
}

records!(prereg_geometry);

pub(crate) fn geometry_from(geometry: *const prereg_geometry) -> Result<Geometry, CallError> {
    let given = record::read(geometry)?;
    zero(prereg_geometry::NAME, given.reserved)?;
    Ok(Geometry::new(BusAddr::new(given.start), shift_from(given.shift)?, given.entries)?)
}

/// Creates an empty table over the memory of `space`. `container` is the holder of its mappings in reports; 0 for none.
///
/// Returns 0; -EINVAL for an invalid geometry, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_new(
    space: *const prereg_space,
    geometry: *const prereg_geometry,
    container: u64,
    table: *mut *mut prereg_table,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(table, || {
            let space = body(space)?.space.clone();
            Ok(Arc::new(HwTable::new(space, geometry_from(geometry)?, container)?))
        })
    })
}

/// Releases the handle and sets `*table` to NULL. The mappings of all entries are released with the last user of the table.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_free(table: *mut *mut prereg_table) -> c_int {
    run_call(std::ptr::null_mut(), || take(table).map(drop))
}

/// The position of the table's window. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_geometry(table: *const prereg_table, geometry: *mut prereg_geometry) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let (shape, place) = (body(table)?.geometry(), record::out(geometry)?);
        place.write(&geometry_of(shape));
        Ok(())
    })
}

pub(crate) fn geometry_of(shape: &Geometry) -> prereg_geometry {
    prereg_geometry {
        size: size_of::<prereg_geometry>(),
        start: shape.start().raw(),
        entries: shape.entries(),
        shift: shape.shift().get(),
        reserved: 0,
    }
}

/// Maps the page at `ua` into entry `index`. Its old mapping is released (its page marked dirty if the device could
/// write it); `*before` (may be NULL) is set to the old access, 0 if the entry was empty.
///
/// Returns 0; -EFAULT (not registered, or not contiguous enough), -ENXIO (being unregistered), -EINVAL, -EAGAIN (another
/// thread at the same entry), -ENOMEM. Then the entry is unchanged.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_set(
    table: *const prereg_table,
    translator: *mut prereg_translator,
    index: u64,
    ua: u64,
    access: u32,
    before: *mut u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (table, access, before) = (body(table)?, access_from(access)?, out_if(before, "before")?);
        let was = table.set(&mut body_mut(translator)?.translator, index, UserAddr::new(ua), access)?;
        tell(before, access_of(was));
        Ok(())
    })
}

/// Maps `count` consecutive pages from `ua` on into the entries from `first` on: all of them or none.
///
/// Returns as `prereg_table_set`. If the first page cannot be mapped nothing changes; if a later one cannot, all `count` entries are
/// empty.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_set_run(
    table: *const prereg_table,
    translator: *mut prereg_translator,
    first: u64,
    count: u64,
    ua: u64,
    access: u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (table, access) = (body(table)?, access_from(access)?);
        Ok(table.set_run(&mut body_mut(translator)?.translator, first, count, UserAddr::new(ua), access)?)
    })
}

/// Clears `count` entries from `first` on; `*cleared` (may be NULL) is set to the number of live ones among them.
///
/// Returns 0; -EINVAL beyond the end, with nothing changed; -EAGAIN at an entry that another thread changes, with those before it
/// cleared: repeat.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_clear(
    table: *const prereg_table,
    translator: *mut prereg_translator,
    first: u64,
    count: u64,
    cleared: *mut u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let cleared = out_if(cleared, "cleared")?;
        let live = body(table)?.clear_range(&mut body_mut(translator)?.translator, first, count)?;
        tell(cleared, live);
        Ok(())
    })
}

/// Allocates the memory for `count` entries from `first` on, so that mapping there neither allocates nor takes a lock.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_prepare(
    table: *const prereg_table,
    first: u64,
    count: u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || Ok(body(table)?.prepare(first, count)?))
}

/// Whether `prereg_table_set` of the page at `ua` would succeed at this moment. Nothing is counted or changed.
///
/// Returns 0 or the errno.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_check(
    table: *const prereg_table,
    translator: *mut prereg_translator,
    ua: u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || Ok(body(table)?.check(&mut body_mut(translator)?.translator, UserAddr::new(ua))?))
}

/// Returns entry `index` without its host address, which only a mapping from `prereg_table_take` has.
///
/// Returns 1 and fills `*entry` if the entry is live; 0 if it is empty or there is none; -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_inspect(
    table: *const prereg_table,
    index: u64,
    entry: *mut prereg_entry,
) -> c_int {
    value_or(-prereg::Errno::EINVAL.raw(), || {
        let place = record::out(entry)?;
        let seen = body(table)?.view(index);
        Ok(seen.map_or(0, |view| {
            place.write(&entry_of(&view));
            1
        }))
    })
}

/// Maps the page of entry `index` once more, for the duration of a device's access. `*access` (may be NULL) is set to the permitted
/// access.
///
/// Returns 1; 0 when the entry is empty (`*mapping` is unchanged); -ENXIO, -EAGAIN, -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_take(
    table: *const prereg_table,
    translator: *mut prereg_translator,
    index: u64,
    mapping: *mut prereg_mapping,
    access: *mut u32,
    error: *mut prereg_error,
) -> c_int {
    let mut live = 0;
    let code = run_call(error, || {
        let (place, access) = (out(mapping, "mapping")?, out_if(access, "access")?);
        let reader = body_mut(translator)?;
        if let Some((taken, allowed)) = body(table)?.hold_mapping(&mut reader.translator, index)? {
            reader.keep_page(&place, taken)?;
            tell(access, access_of(Some(allowed)));
            live = 1;
        }
        Ok(())
    });
    if code == 0 { live } else { code }
}

/// The number of live entries, counted at the call; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_live(table: *const prereg_table) -> u64 {
    value_or(0, || Ok(body(table)?.live()))
}

/// Bytes of memory of the table; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_memory_bytes(table: *const prereg_table) -> u64 {
    value_or(0, || Ok(body(table)?.memory_bytes()))
}
