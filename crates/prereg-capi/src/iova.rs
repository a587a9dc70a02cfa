//! IOVA maps like that of a type1 container: `prereg_iova`, accesses of a device (`prereg_hold`) and unmaps that wait for them
//! (`prereg_unmapping`).

#![expect(unsafe_code, reason = "names for C; calls a C caller's function; fills its arrays")]

use std::ffi::{c_int, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Iova, PageShift, Translator, UserAddr};
use prereg_iommu::iova::{
    Backing, HeldRange, HostSegment, IovaLimits, IovaMap, OnDrained, Unmapping, UserSegment,
};

use crate::caller::{out_if, tell};
use crate::error::{CallError, prereg_error, run_call, value_or};
use crate::handle::{body, create_handle, kinds, take};
use crate::ports::Context;
use crate::record::{self, records};
use crate::space::prereg_space;
use crate::translator::mark;
use crate::types::{access_from, choice, holder_from, prereg_holder, shift_from};

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
    /// The most mappings; 0 for 65,535, the kernel's default.
    pub mappings: u32,
    /// The smallest page as a power of two; 0 for 4 KiB.
    pub page_shift: u32,
}

/// A callback at the end of the last access to an unmapped mapping: once for each mapping with accesses at its unmap, on the thread of
/// that access.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_drained {
    /// sizeof(struct prereg_drained).
    pub size: usize,
    /// Passed to each function.
    pub context: *mut c_void,
    /// Called at the end of the last access.
    pub drained: Option<unsafe extern "C" fn(context: *mut c_void)>,
    /// Called after the last use of the context. May be NULL.
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
    /// Its length.
    pub bytes: u64,
    /// 1: memory that only the owner of the map can reach.
    pub is_remote: u32,
    /// Zero.
    pub reserved: u32,
}

/// The state of an IOVA map at one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_iova_state {
    /// sizeof(struct prereg_iova_state), set by the caller.
    pub size: usize,
    /// Live mappings.
    pub mappings: u64,
    /// Bytes mapped; 2^64 is reported as 2^64 - 1.
    pub bytes: u64,
    /// Accesses in flight to live mappings.
    pub accesses: u64,
    /// Unmapped mappings with accesses in flight.
    pub closing: u64,
}

/// A device's I/O virtual address space. Any thread may map, unmap and access at any time.
#[derive(Debug)]
pub struct prereg_iova(());

/// An access in flight: the memory stays pinned at its addresses until it is released, on any thread.
#[derive(Debug)]
pub struct prereg_hold(());

/// An unmap that may wait for accesses.
#[derive(Debug)]
pub struct prereg_unmapping(());

records!(prereg_iova_limits, prereg_drained, prereg_piece, prereg_iova_state);

kinds! {
    prereg_iova, Map, 11;
    prereg_hold, Hold, 12;
    prereg_unmapping, Unmapping, 13;
}

/// A map, and the translator that marks written pages.
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
    // A panic leaves the translator consistent.
    fn translator(&self) -> MutexGuard<'_, Translator> {
        self.translator.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An access, and, if it writes, the map that marks its pages at its end.
#[derive(Debug)]
pub struct Hold {
    held: HeldRange,
    writes: Option<Arc<Marker>>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        let Some(marker) = &self.writes else { return };
        let mut translator = marker.translator();
        // While the memory is still held, so that no mark follows the unpin.
        for stretch in self.held.user_segments() {
            if let UserSegment::Local { ua, bytes, .. } = stretch {
                mark(&mut translator, marker.page, ua, bytes);
            }
        }
    }
}

struct DrainCallback {
    context: Context,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
}

impl OnDrained for DrainCallback {
    fn on_drained(&self) {
        if let Some(function) = self.function {
            // SAFETY: the caller's function with the caller's context.
            unsafe { function(self.context.pointer) };
        }
    }
}

/// Creates an empty map over the memory registered in `space`. `limits`, `holder` and `drained` may be NULL.
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
    run_call(error, || {
        create_handle(iova, || {
            let space = body(space)?;
            let limits = limits_from(limits)?;
            let holder = holder_from(holder)?;
            let drained = record::read_if(drained)?;
            let told = Arc::new(DrainCallback {
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

fn limits_from(limits: *const prereg_iova_limits) -> Result<IovaLimits, CallError> {
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
        return Err(CallError::Argument(
            "first of prereg_iova_limits is above last: no address could be mapped",
        ));
    }
    wanted.aperture = (Iova::new(limits.first), Iova::new(last));
    Ok(wanted)
}

/// Unmaps everything, frees the map and sets `*iova` to NULL. Accesses in flight stay valid until they are released.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_free(iova: *mut *mut prereg_iova) -> c_int {
    run_call(std::ptr::null_mut(), || take(iova).map(drop))
}

/// Maps `bytes` bytes at I/O virtual address `at` to the registered memory at `ua`, all in one region, as one mapping of it.
/// `access` is the permitted access. An unmapped mapping with accesses in flight can be replaced at once.
///
/// Returns 0; -EINVAL (misaligned, empty, past 2^64, outside the limits), -EEXIST (overlaps a mapping), -ENOSPC (too
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
    run_call(error, || {
        let to = Backing::Local(UserAddr::new(ua));
        Ok(body(iova)?.map.map(Iova::new(at), bytes, to, access_from(access)?)?)
    })
}

/// Like `prereg_iova_map`, for memory without a user address in this process, which only the caller can reach.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_map_remote(
    iova: *const prereg_iova,
    at: u64,
    bytes: u64,
    access: u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        Ok(body(iova)?.map.map(Iova::new(at), bytes, Backing::Remote, access_from(access)?)?)
    })
}

/// Unmaps every mapping in the range, if any. They are unmapped when this returns; `unmapping` (may be NULL) is set to a handle
/// that reports when the accesses in flight have ended.
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
    run_call(error, || {
        let unmap = || Ok(body(iova)?.map.unmap(Iova::new(at), bytes)?);
        if unmapping.is_null() { unmap().map(drop) } else { create_handle(unmapping, unmap) }
    })
}

/// Unmaps everything, as `prereg_iova_unmap`.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_unmap_all(
    iova: *const prereg_iova,
    unmapping: *mut *mut prereg_unmapping,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let unmap = || Ok(body(iova)?.map.unmap_all());
        if unmapping.is_null() { unmap().map(drop) } else { create_handle(unmapping, unmap) }
    })
}

/// Whether all accesses have ended: 1 or 0; 1 for NULL, -EINVAL for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_is_done(unmapping: *const prereg_unmapping) -> c_int {
    if unmapping.is_null() {
        return 1;
    }
    value_or(-prereg::Errno::EINVAL.raw(), || Ok(c_int::from(body(unmapping)?.is_done())))
}

/// The number of unmapped mappings; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_mappings(unmapping: *const prereg_unmapping) -> u64 {
    value_or(0, || Ok(body(unmapping)?.mappings()))
}

/// The number of unmapped bytes; 2^64 is reported as 2^64 - 1. 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_bytes(unmapping: *const prereg_unmapping) -> u64 {
    value_or(0, || Ok(body(unmapping)?.bytes()))
}

/// Frees the handle and sets `*unmapping` to NULL. The unmap continues.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_free(unmapping: *mut *mut prereg_unmapping) -> c_int {
    run_call(std::ptr::null_mut(), || take(unmapping).map(drop))
}

/// Holds the memory of `bytes` bytes at `at`, in one or several adjacent mappings, for an access of the device.
///
/// Returns 0; -EFAULT (not mapped), -EACCES (not permitted), -ENXIO (being unmapped), -EINVAL,
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
    run_call(error, || {
        create_handle(hold, || {
            let (Map { map, marker }, access) = (body(iova)?, access_from(access)?);
            let held = map.hold(Iova::new(at), bytes, access)?;
            Ok(Hold { held, writes: access.writes().then(|| Arc::clone(marker)) })
        })
    })
}

/// The pieces of a held access in order, from number `first` on. At most `room` are written,
/// `pieces[0].size` bytes apart; `*total` (may be NULL) is set to the number of all.
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
    run_call(error, || {
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

/// Ends the access, frees the handle and sets `*hold` to NULL. The device must no longer use the memory. The pages of an access
/// that writes are marked as written before the memory can be unpinned.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_hold_release(hold: *mut *mut prereg_hold) -> c_int {
    run_call(std::ptr::null_mut(), || take(hold).map(drop))
}

/// Uses the newest snapshot of the regions. Never needed for correctness; allows old tables to be freed.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_refresh(iova: *const prereg_iova) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let Map { map, marker } = body(iova)?;
        map.refresh();
        marker.translator().refresh();
        Ok(())
    })
}

/// The state of the map. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_snapshot(iova: *const prereg_iova, state: *mut prereg_iova_state) -> c_int {
    run_call(std::ptr::null_mut(), || {
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
