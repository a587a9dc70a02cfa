//! IOVA maps, as a type1 container has one: `prereg_iova`, the accesses of a device (`prereg_hold`) and unmaps that wait for
//! them (`prereg_unmapping`).

#![expect(unsafe_code, reason = "names for C; calls a C caller's function; fills his arrays")]

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::sync::Arc;

use prereg::{Iova, UserAddr};
use prereg_iommu::iova::{Backing, Drained, Held, IovaLimits, IovaMap, Piece, Unmapping};

use crate::array::Array;
use crate::failure::{Failure, answer, prereg_error, value_or};
use crate::handle::{Handle, body, hand_out, kinds, room, take};
use crate::ports::Context;
use crate::space::prereg_space;
use crate::words::{access_from, holder_from, prereg_holder, shift_from};

/// What a device's address space is bounded by.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_iova_limits {
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
    /// The user address of its first byte; of remote memory, its I/O virtual address.
    pub address: u64,
    /// Where the device finds it; 0 for remote memory.
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
pub struct prereg_iova(Handle<IovaMap>);

/// An access under way: the memory stays pinned at its addresses until it is released, on whatever thread.
#[derive(Debug)]
pub struct prereg_hold(Handle<Held>);

/// An unmap that may have to wait for accesses.
#[derive(Debug)]
pub struct prereg_unmapping(Handle<Unmapping>);

kinds! {
    prereg_iova, IovaMap, b"pr-iovam";
    prereg_hold, Held, b"pr-holdi";
    prereg_unmapping, Unmapping, b"pr-unmap";
}

struct Told {
    context: Context,
    function: Option<unsafe extern "C" fn(*mut c_void)>,
}

impl Drained for Told {
    fn drained(&self) {
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
    space: Option<&prereg_space>,
    limits: Option<&prereg_iova_limits>,
    holder: Option<&prereg_holder>,
    drained: Option<&prereg_drained>,
    iova: Option<&mut MaybeUninit<Option<Box<prereg_iova>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        hand_out(iova, || {
            let space = body(space)?;
            let limits = limits_from(limits)?;
            let holder = holder_from(holder)?;
            let told = Arc::new(Told {
                context: Context::new(
                    drained.map_or(std::ptr::null_mut(), |drained| drained.context),
                    drained.and_then(|drained| drained.release),
                ),
                function: drained.and_then(|drained| drained.drained),
            });
            let map = IovaMap::new(&space.space, limits, holder, told.clone())?;
            told.context.taken();
            Ok(map)
        })
    })
}

fn limits_from(limits: Option<&prereg_iova_limits>) -> Result<IovaLimits, Failure> {
    let mut wanted = IovaLimits::default();
    let Some(limits) = limits else { return Ok(wanted) };
    if limits.page_shift != 0 {
        wanted.page = shift_from(limits.page_shift)?;
    }
    if limits.mappings != 0 {
        wanted.mappings = limits.mappings;
    }
    let last = if limits.last == 0 { u64::MAX } else { limits.last };
    if limits.first > last {
        return Err(Failure::Argument("the first address of the limits lies behind the last"));
    }
    wanted.aperture = (Iova::new(limits.first), Iova::new(last));
    Ok(wanted)
}

/// Unmaps everything, frees the map and sets `*iova` to NULL. Accesses under way stay good until they are released.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_free(iova: Option<&mut Option<Box<prereg_iova>>>) -> c_int {
    answer(None, || take(iova).map(drop))
}

/// Maps `bytes` bytes at I/O virtual address `at` to the registered memory at `ua`, all in one region, as one mapping of it.
/// `access` is what the device may do. Where a mapping was that still waits for its accesses, a new one can be at once.
///
/// Returns 0; -EINVAL (misaligned, empty, past 2^64, outside the limits), -EEXIST (something is mapped there), -ENOSPC (too
/// many), -EFAULT (not registered), -ENXIO (being unregistered). Nothing is mapped or counted then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_map(
    iova: Option<&prereg_iova>,
    at: u64,
    bytes: u64,
    ua: u64,
    access: u32,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let to = Backing::Local(UserAddr::new(ua));
        Ok(body(iova)?.map(Iova::new(at), bytes, to, access_from(access)?)?)
    })
}

/// The same for memory without a user address here, which the caller reaches by other means.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_map_remote(
    iova: Option<&prereg_iova>,
    at: u64,
    bytes: u64,
    access: u32,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || Ok(body(iova)?.map(Iova::new(at), bytes, Backing::Remote, access_from(access)?)?))
}

/// Unmaps every mapping in the range, none included. They are gone when this returns; `unmapping` (may be NULL) is set to a
/// handle that tells when the accesses that were under way are.
///
/// Returns 0; -EINVAL, also when the range begins or ends inside a mapping: nothing is unmapped then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_unmap(
    iova: Option<&prereg_iova>,
    at: u64,
    bytes: u64,
    unmapping: Option<&mut MaybeUninit<Option<Box<prereg_unmapping>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let unmap = || Ok(body(iova)?.unmap(Iova::new(at), bytes)?);
        match unmapping {
            Some(unmapping) => hand_out(Some(unmapping), unmap),
            None => unmap().map(drop),
        }
    })
}

/// Unmaps everything, in the same way.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_unmap_all(
    iova: Option<&prereg_iova>,
    unmapping: Option<&mut MaybeUninit<Option<Box<prereg_unmapping>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let unmap = || Ok(body(iova)?.unmap_all());
        match unmapping {
            Some(unmapping) => hand_out(Some(unmapping), unmap),
            None => unmap().map(drop),
        }
    })
}

/// Whether no access holds any of it any more: 1 or 0; 1 for NULL, -EINVAL for what is no such handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_is_done(unmapping: Option<&prereg_unmapping>) -> c_int {
    if unmapping.is_none() {
        return 1;
    }
    value_or(-prereg::Errno::EINVAL.raw(), || Ok(c_int::from(body(unmapping)?.is_done())))
}

/// Mappings taken away; 0 for what is no such handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_mappings(unmapping: Option<&prereg_unmapping>) -> u64 {
    value_or(0, || Ok(body(unmapping)?.mappings()))
}

/// Bytes taken away; all 2^64 of them are shown as 2^64 - 1. 0 for what is no such handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_bytes(unmapping: Option<&prereg_unmapping>) -> u64 {
    value_or(0, || Ok(body(unmapping)?.bytes()))
}

/// Frees the handle, which changes nothing else, and sets `*unmapping` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmapping_free(unmapping: Option<&mut Option<Box<prereg_unmapping>>>) -> c_int {
    answer(None, || take(unmapping).map(drop))
}

/// Holds the memory behind `bytes` bytes at `at`, which may lie in several mappings that touch, for the device to do with as
/// `access` says.
///
/// Returns 0; -EFAULT (nothing is mapped there), -EACCES (the mapping does not allow it), -ENXIO (being unmapped), -EINVAL,
/// -ENOMEM. Nothing is held then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_hold(
    iova: Option<&prereg_iova>,
    at: u64,
    bytes: u64,
    access: u32,
    hold: Option<&mut MaybeUninit<Option<Box<prereg_hold>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || hand_out(hold, || Ok(body(iova)?.hold(Iova::new(at), bytes, access_from(access)?)?)))
}

/// The pieces of a held access in order, from number `first` on. At most `room` are written; `*total` (may be NULL) is set to
/// how many there are.
///
/// Returns 0 or -EINVAL.
///
/// # Safety
/// `pieces` has room for `room` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prereg_hold_pieces(
    hold: Option<&prereg_hold>,
    first: usize,
    pieces: *mut MaybeUninit<prereg_piece>,
    room: usize,
    total: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        // SAFETY: as this function's.
        let places = unsafe { Array::new(pieces, room, "pieces") }?.into_mut();
        let hold = body(hold)?;
        for (place, piece) in places.iter_mut().zip(hold.pieces().skip(first)) {
            place.write(piece_of(piece));
        }
        if let Some(total) = total {
            total.write(hold.pieces().count());
        }
        Ok(())
    })
}

fn piece_of(piece: Piece) -> prereg_piece {
    match piece {
        Piece::Local { ua, host, bytes } => {
            prereg_piece { address: ua.raw(), host: host.raw(), bytes, is_remote: 0, reserved: 0 }
        }
        Piece::Remote { iova, bytes } => {
            prereg_piece { address: iova.raw(), host: 0, bytes, is_remote: 1, reserved: 0 }
        }
        _ => prereg_piece { address: 0, host: 0, bytes: 0, is_remote: 1, reserved: 0 },
    }
}

/// Ends the access, frees the handle and sets `*hold` to NULL. The device must not use the memory any more.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_hold_release(hold: Option<&mut Option<Box<prereg_hold>>>) -> c_int {
    answer(None, || take(hold).map(drop))
}

/// Looks for the newest regions. Never needed for correctness; lets old tables go.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_refresh(iova: Option<&prereg_iova>) -> c_int {
    answer(None, || {
        body(iova)?.refresh();
        Ok(())
    })
}

/// What is to be seen of the map. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_iova_snapshot(
    iova: Option<&prereg_iova>,
    state: Option<&mut MaybeUninit<prereg_iova_state>>,
) -> c_int {
    answer(None, || {
        let seen = body(iova)?.snapshot();
        room(state, "state")?.write(prereg_iova_state {
            mappings: seen.mappings,
            bytes: u64::try_from(seen.bytes).unwrap_or(u64::MAX),
            accesses: seen.accesses,
            closing: seen.closing.len() as u64,
        });
        Ok(())
    })
}
