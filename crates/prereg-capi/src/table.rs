//! Hardware tables: windows of counted entries, `prereg_table`.

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::Arc;

use prereg::{BusAddr, UserAddr};
use prereg_iommu::{Geometry, HwTable};

use crate::entries::{entry_of, prereg_entry};
use crate::failure::{Failure, answer, prereg_error, value_or};
use crate::handle::{Handle, body, body_mut, hand_out, kinds, room, take};
use crate::space::prereg_space;
use crate::translator::{prereg_mapping, prereg_translator};
use crate::words::{access_from, access_of, shift_from};

/// Where a window of an I/O bus is: `entries` pages of `2^shift` bytes (12 at least) from bus address `start` on, which is
/// the start of such a page; it ends below 2^64.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_geometry {
    /// The first bus address.
    pub start: u64,
    /// Pages; not zero.
    pub entries: u64,
    /// The page size as a power of two.
    pub shift: u32,
    /// Zero.
    pub reserved: u32,
}

/// A table that devices go through: each live entry is one counted mapping. Any thread, any number at once, each with a
/// translator of its own. Shared: guests' tables and containers may hold it too.
#[derive(Debug)]
pub struct prereg_table(Handle<Arc<HwTable>>);

kinds! {
    prereg_table, Arc<HwTable>, b"pr-table";
}

pub(crate) fn geometry_from(geometry: Option<&prereg_geometry>) -> Result<Geometry, Failure> {
    let given = geometry.ok_or(Failure::Null("geometry"))?;
    Ok(Geometry::new(BusAddr::new(given.start), shift_from(given.shift)?, given.entries)?)
}

/// Makes an empty table over the memory of `space`. `container` is who its mappings are reported as held by; 0 for nobody.
///
/// Returns 0; -EINVAL for a shape that no table has, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_new(
    space: Option<&prereg_space>,
    geometry: Option<&prereg_geometry>,
    container: u64,
    table: Option<&mut MaybeUninit<Option<Box<prereg_table>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        hand_out(table, || {
            let space = body(space)?.space.clone();
            Ok(Arc::new(HwTable::new(space, geometry_from(geometry)?, container)?))
        })
    })
}

/// Gives the handle up and sets `*table` to NULL. The last who shares the table gives the mappings of all entries back.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_free(table: Option<&mut Option<Box<prereg_table>>>) -> c_int {
    answer(None, || take(table).map(drop))
}

/// Where the window of the table is. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_geometry(
    table: Option<&prereg_table>,
    geometry: Option<&mut MaybeUninit<prereg_geometry>>,
) -> c_int {
    answer(None, || {
        let shape = body(table)?.geometry();
        room(geometry, "geometry")?.write(prereg_geometry {
            start: shape.start().raw(),
            entries: shape.entries(),
            shift: shape.shift().get(),
            reserved: 0,
        });
        Ok(())
    })
}

/// Maps the page at `ua` into entry `index`. What was there before is given back (its page marked dirty if the device could
/// write it); `*before` (may be NULL) is set to the access it had, 0 if it was empty.
///
/// Returns 0; -EFAULT (not registered, or not contiguous enough), -ENXIO (being unregistered), -EINVAL, -EAGAIN (another
/// thread at the same entry), -ENOMEM. The entry is as it was then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_set(
    table: Option<&prereg_table>,
    translator: Option<&mut prereg_translator>,
    index: u64,
    ua: u64,
    access: u32,
    before: Option<&mut MaybeUninit<u32>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let (table, access) = (body(table)?, access_from(access)?);
        let was = table.set(body_mut(translator)?, index, UserAddr::new(ua), access)?;
        if let Some(before) = before {
            before.write(access_of(was));
        }
        Ok(())
    })
}

/// Maps `count` consecutive pages from `ua` on into the entries from `first` on: all of them or none.
///
/// Returns as `prereg_table_set`. If the first page cannot be mapped nothing has changed; if a later one cannot, all `count`
/// entries are empty.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_set_run(
    table: Option<&prereg_table>,
    translator: Option<&mut prereg_translator>,
    first: u64,
    count: u64,
    ua: u64,
    access: u32,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let (table, access) = (body(table)?, access_from(access)?);
        Ok(table.set_run(body_mut(translator)?, first, count, UserAddr::new(ua), access)?)
    })
}

/// Empties `count` entries from `first` on; `*cleared` (may be NULL) is set to how many were live.
///
/// Returns 0; -EINVAL past the end, with nothing changed; -EAGAIN with the entries before another thread's emptied: repeat.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_clear(
    table: Option<&prereg_table>,
    translator: Option<&mut prereg_translator>,
    first: u64,
    count: u64,
    cleared: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let live = body(table)?.clear_range(body_mut(translator)?, first, count)?;
        if let Some(cleared) = cleared {
            cleared.write(live);
        }
        Ok(())
    })
}

/// Makes what `count` entries from `first` on need, so that mapping there neither allocates nor takes a lock.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_prepare(
    table: Option<&prereg_table>,
    first: u64,
    count: u64,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || Ok(body(table)?.prepare(first, count)?))
}

/// Whether `prereg_table_set` of the page at `ua` would succeed at this moment. Nothing is counted or changed.
///
/// Returns 0 or why not.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_check(
    table: Option<&prereg_table>,
    translator: Option<&mut prereg_translator>,
    ua: u64,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || Ok(body(table)?.check(body_mut(translator)?, UserAddr::new(ua))?))
}

/// Shows entry `index`, without its host address, which comes with a mapping from `prereg_table_take`.
///
/// Returns 1 and fills `*entry` if the entry is live; 0 if it is empty or there is none; -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_inspect(
    table: Option<&prereg_table>,
    index: u64,
    entry: Option<&mut MaybeUninit<prereg_entry>>,
) -> c_int {
    value_or(-prereg::Errno::EINVAL.raw(), || {
        let place = room(entry, "entry")?;
        let seen = body(table)?.view(index);
        Ok(seen.map_or(0, |view| {
            place.write(entry_of(&view));
            1
        }))
    })
}

/// One more mapping of what entry `index` maps: what a device's access holds until it is done. `*access` (may be NULL) is set
/// to what the device may do.
///
/// Returns 1; 0 when the entry is empty (`*mapping` is not touched); -ENXIO, -EAGAIN, -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_take(
    table: Option<&prereg_table>,
    translator: Option<&mut prereg_translator>,
    index: u64,
    mapping: Option<&mut MaybeUninit<prereg_mapping>>,
    access: Option<&mut MaybeUninit<u32>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    let mut live = 0;
    let code = answer(error, || {
        let place = room(mapping, "mapping")?;
        if let Some((taken, allowed)) = body(table)?.take(body_mut(translator)?, index)? {
            prereg_mapping::fill(place, taken);
            if let Some(access) = access {
                access.write(access_of(Some(allowed)));
            }
            live = 1;
        }
        Ok(())
    });
    if code == 0 { live } else { code }
}

/// How many entries are live, counted now; 0 for what is no table.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_live(table: Option<&prereg_table>) -> u64 {
    value_or(0, || Ok(body(table)?.live()))
}

/// Bytes of memory that the table takes now; 0 for what is no table.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_table_memory_bytes(table: Option<&prereg_table>) -> u64 {
    value_or(0, || Ok(body(table)?.memory_bytes()))
}
