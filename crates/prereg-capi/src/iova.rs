//! IOVA maps, as a type1 container has one: `prereg_iova`, the accesses of a device (`prereg_hold`) and unmaps that wait for
//! them (`prereg_unmapping`).

#![expect(unsafe_code, reason = "names for C; calls a C caller's function; fills its arrays")]

use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Iova, PageShift, Translator, UserAddr};
use prereg_iommu::iova::{
    Backing, HeldRange, HostSegment, IovaLimits, IovaMap, OnDrained, Unmapping, UserSegment,
};

use crate::caller::{out_if, tell};
use crate::failure::{Failure, answer, prereg_error, value_or};
use crate::handle::{body, hand_out, kinds, take};
use crate::ports::Context;
use crate::record::{self, records};
use crate::space::prereg_space;
use crate::translator::mark;
use crate::words::{access_from, choice, holder_from, prereg_holder, shift_from};

/// Limits of a device's address space.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_iova_limits {
    /// sizeof(struct prereg_iova_limits).
    pub size: usize,
    /// The first address that can be mapped.
    pub first: u64,
    /// The last address that can be mapped; 0 for 2^64 - 1.
    pub last: u64,
    /// Mappings at a time; 0 for 65,535, as the kernel has it.
    pub mappings: u32,
    /// The smallest page as a power of two; 0 for 4 KiB.
    pub page_shift: u32,
}

/// Told when the last access of an unmapped mapping has left, once for each mapping that had to wait, on the thread that left.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_drained {
    /// sizeof(struct prereg_drained).
    pub size: usize,
    /// Passed to each function.
    pub context: *mut c_void,
    /// The last access has left.
    pub drained: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// The context is not used any more. May be NULL.
    pub release: Option<unsafe extern "C" fn(context: *mut c_void)>,
}

/// A piece of a held access.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_piece {
    /// sizeof(struct prereg_piece), set by the caller; in an array, in the first element.
    pub size: usize,
    /// The user address of its first byte; of remote memory, its I/O virtual address.
    pub address: u64,
    /// The host address, for the device; 0 for remote memory.
    pub host: u64,
    /// How long it is.
    pub bytes: u64,
    /// 1: memory that the owner of the map reaches by other means.
    pub is_remote: u32,
    /// Zero.
    pub reserved: u32,
}

/// A device's I/O virtual address space as it was at some moment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_iova_state {
    /// sizeof(struct prereg_iova_state), set by the caller.
    pub size: usize,
    /// Live mappings.
    pub mappings: u64,
    /// Bytes they cover; all 2^64 of them are shown as 2^64 - 1.
    pub bytes: u64,
    /// Accesses under way in live mappings.
    pub accesses: u64,
    /// Mappings that were unmapped and wait for their accesses.
    pub closing: u64,
}

/// A device's I/O virtual address space. Any thread may map, unmap and access at any time.
#[derive(Debug)]
pub struct prereg_iova(());

/// An access under way: the memory stays pinned at its addresses until it is released, on whatever thread.
#[derive(Debug)]
pub struct prereg_hold(());

/// An unmap that may have to wait for accesses.
#[derive(Debug)]
pub struct prereg_unmapping(());

records!(prereg_iova_limits, prereg_drained, prereg_piece, prereg_iova_state);

kinds! {
    prereg_iova, Map, 11;
    prereg_hold, Hold, 12;
    prereg_unmapping, Unmapping, 13;
}

/// A map, and what marks pages that devices may have written through it.
#[derive(Debug)]
pub struct Map {
    map: IovaMap,
    marker: Arc<Marker>,
}

#[derive(Debug)]
struct Marker {
    translator: Mutex<Translator>,
    page: PageShift,
}

impl Marker {
    // A panic in between leaves the translator right.
    fn translator(&self) -> MutexGuard<'_, Translator> {
        self.translator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An access, and for one that writes what marks its pages when it ends.
#[derive(Debug)]
pub struct Hold {
    held: HeldRange,
    writes: Option<Arc<Marker>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(marker) = &self.writes else { return };
        let mut translator = marker.translator();
        // While the memory is still held, so that no mark comes after the unpin.
        for stretch in self.held.user_segments() {
            if let UserSegment::Local { ua, bytes, .. } = stretch {
                mark(&mut translator, marker.page, ua, bytes);
            }
        }
    }
}

struct Told {
    context: Context,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
}

impl OnDrained for Told {
    fn on_drained(&self) {
        if let Some(function) = self.function {
            // SAFETY: the caller's function with the caller's context.
            unsafe { function(self.context.pointer) };
        }
    }
}

/// Makes an empty map over the memory registered in `space`. `limits`, `holder` and `drained` may be NULL.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_new(
    space: *const prereg_space,
    limits: *const prereg_iova_limits,
    holder: *const prereg_holder,
    drained: *const prereg_drained,
    iova: *mut *mut prereg_iova,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        hand_out(iova, || {
            let space = body(space)?;
            let limits = limits_from(limits)?;
            let holder = holder_from(holder)?;
            let drained = record::read_if(drained)?;
            let told = Arc::new(Told {
                context: Context::new(
                    drained.map_or(std::ptr::null_mut(), |drained| drained.context),
                    drained.and_then(|drained| drained.release),
                ),
                function: drained.and_then(|drained| drained.drained),
            });
            let translator = Mutex::new(space.space.try_translator(holder)?);
            let marker = Arc::new(Marker { translator, page: space.space.granule().shift() });
            let map = IovaMap::new(&space.space, limits, holder, told.clone())?;
            told.context.taken();
            Ok(Map { map, marker })
        })
    })
}

fn limits_from(limits: *const prereg_iova_limits) -> Result<IovaLimits, Failure> {
    let mut wanted = IovaLimits::default();
    let Some(limits) = record::read_if(limits)? else { return Ok(wanted) };
    if limits.page_shift != 0 {
        if limits.page_shift < 12 {
            let choices = "0 (4 KiB) and 12 to 63: no IOMMU has pages below 4 KiB";
            return Err(choice("page_shift of prereg_iova_limits", limits.page_shift, choices));
        }
        wanted.page = shift_from(limits.page_shift)?;
    }
    if limits.mappings != 0 {
        wanted.mappings = limits.mappings;
    }
    let last = if limits.last == 0 { u64::MAX } else { limits.last };
    if limits.first > last {
        return Err(Failure::Argument(
            "first of prereg_iova_limits lies behind last; no address would be left to map",
        ));
    }
    wanted.aperture = (Iova::new(limits.first), Iova::new(last));
    Ok(wanted)
}

/// Unmaps everything, frees the map and sets `*iova` to NULL. Accesses under way stay good until they are released.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_free(iova: *mut *mut prereg_iova) -> c_int {
    answer(std::ptr::null_mut(), || take(iova).map(drop))
}

/// Maps `bytes` bytes at I/O virtual address `at` to the registered memory at `ua`, all in one region, as one mapping of it.
/// `access` is what the device may do. Where a mapping was that still waits for its accesses, a new one can be at once.
///
/// Returns 0; -EINVAL (misaligned, empty, past 2^64, outside the limits), -EEXIST (something is mapped there), -ENOSPC (too
/// many), -EFAULT (not registered), -ENXIO (being unregistered). Nothing is mapped or counted then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_map(
    iova: *const prereg_iova,
    at: u64,
    bytes: u64,
    ua: u64,
    access: u32,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        let to = Backing::Local(UserAddr::new(ua));
        Ok(body(iova)?.map.map(Iova::new(at), bytes, to, access_from(access)?)?)
    })
}

/// Like `prereg_iova_map`, for memory without a user address in this process, which the caller reaches by other means.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_map_remote(
    iova: *const prereg_iova,
    at: u64,
    bytes: u64,
    access: u32,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || Ok(body(iova)?.map.map(Iova::new(at), bytes, Backing::Remote, access_from(access)?)?))
}

/// Unmaps every mapping in the range, none included. They are gone when this returns; `unmapping` (may be NULL) is set to a
/// handle that reports when the accesses under way have ended.
///
/// Returns 0; -EINVAL, also when the range begins or ends inside a mapping: nothing is unmapped then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_unmap(
    iova: *const prereg_iova,
    at: u64,
    bytes: u64,
    unmapping: *mut *mut prereg_unmapping,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        let unmap = || Ok(body(iova)?.map.unmap(Iova::new(at), bytes)?);
        if unmapping.is_null() { unmap().map(drop) } else { hand_out(unmapping, unmap) }
    })
}

/// Unmaps everything, in the same way.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_unmap_all(
    iova: *const prereg_iova,
    unmapping: *mut *mut prereg_unmapping,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        let unmap = || Ok(body(iova)?.map.unmap_all());
        if unmapping.is_null() { unmap().map(drop) } else { hand_out(unmapping, unmap) }
    })
}

/// Whether no access holds any of it any more: 1 or 0; 1 for NULL, -EINVAL for what is no such handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_is_done(unmapping: *const prereg_unmapping) -> c_int {
    if unmapping.is_null() {
        return 1;
    }
    value_or(-prereg::Errno::EINVAL.raw(), || Ok(c_int::from(body(unmapping)?.is_done())))
}

/// Mappings taken away; 0 for what is no such handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_mappings(unmapping: *const prereg_unmapping) -> u64 {
    value_or(0, || Ok(body(unmapping)?.mappings()))
}

/// Bytes taken away; all 2^64 of them are shown as 2^64 - 1. 0 for what is no such handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_bytes(unmapping: *const prereg_unmapping) -> u64 {
    value_or(0, || Ok(body(unmapping)?.bytes()))
}

/// Frees the handle, which changes nothing else, and sets `*unmapping` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_free(unmapping: *mut *mut prereg_unmapping) -> c_int {
    answer(std::ptr::null_mut(), || take(unmapping).map(drop))
}

/// Holds the memory behind `bytes` bytes at `at`, which may lie in several mappings that touch, for the device to do with as
/// `access` says.
///
/// Returns 0; -EFAULT (nothing is mapped there), -EACCES (the mapping does not allow it), -ENXIO (being unmapped), -EINVAL,
/// -ENOMEM. Nothing is held then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_hold(
    iova: *const prereg_iova,
    at: u64,
    bytes: u64,
    access: u32,
    hold: *mut *mut prereg_hold,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        hand_out(hold, || {
            let (Map { map, marker }, access) = (body(iova)?, access_from(access)?);
            let held = map.hold(Iova::new(at), bytes, access)?;
            Ok(Hold { held, writes: access.writes().then(|| Arc::clone(marker)) })
        })
    })
}

/// The pieces of a held access in order, from number `first` on. At most `room` are written, which lie as far apart
/// as `pieces[0].size` says; `*total` (may be NULL) is set to how many there are.
///
/// Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_hold_pieces(
    hold: *const prereg_hold,
    first: usize,
    pieces: *mut prereg_piece,
    room: usize,
    total: *mut usize,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        let (places, total) = (record::out_array(pieces, room)?, out_if(total, "total")?);
        let held = &body(hold)?.held;
        for (index, piece) in held.host_segments().skip(first).take(places.count()).enumerate() {
            places.write(index, &piece_of(piece));
        }
        if total.is_some() {
            tell(total, held.host_segments().count());
        }
        Ok(())
    })
}

fn piece_of(piece: HostSegment) -> prereg_piece {
    match piece {
        HostSegment::Local { ua, host, bytes } => {
            prereg_piece { size: 0, address: ua.raw(), host: host.raw(), bytes, is_remote: 0, reserved: 0 }
        }
        HostSegment::Remote { iova, bytes } => {
            prereg_piece { size: 0, address: iova.raw(), host: 0, bytes, is_remote: 1, reserved: 0 }
        }
        _ => prereg_piece { size: 0, address: 0, host: 0, bytes: 0, is_remote: 1, reserved: 0 },
    }
}

/// Ends the access, frees the handle and sets `*hold` to NULL. The device must not use the memory any more. The pages of an access
/// that writes are marked as written, before the memory can be unpinned.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_hold_release(hold: *mut *mut prereg_hold) -> c_int {
    answer(std::ptr::null_mut(), || take(hold).map(drop))
}

/// Looks for the newest regions. Never needed for correctness; lets old tables go.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_refresh(iova: *const prereg_iova) -> c_int {
    answer(std::ptr::null_mut(), || {
        let Map { map, marker } = body(iova)?;
        map.refresh();
        marker.translator().refresh();
        Ok(())
    })
}

/// The state of the map. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_snapshot(iova: *const prereg_iova, state: *mut prereg_iova_state) -> c_int {
    answer(std::ptr::null_mut(), || {
        let (seen, place) = (body(iova)?.map.snapshot(), record::out(state)?);
        place.write(&prereg_iova_state {
            size: 0,
            mappings: seen.mappings,
            bytes: u64::try_from(seen.bytes).unwrap_or(u64::MAX),
            accesses: seen.accesses,
            closing: seen.closing.len() as u64,
        });
        Ok(())
    })
}
