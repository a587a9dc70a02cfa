//! Translators and mappings: the hot path.
//!
//! A mapping lives in the caller's own struct, so that making one allocates nothing. A word in it says that it is live and
//! where: a copy of the struct is no mapping, and one that was given back is none any more.

#![expect(unsafe_code, reason = "names for C; keeps a mapping in the bytes of a C caller's struct")]

use std::ffi::c_int;
use std::mem::MaybeUninit;

use prereg::{Mapping, RangeMapping, Translator, UserAddr};

use crate::array::Array;
use crate::failure::{Failure, answer, prereg_error, value_or};
use crate::handle::{Handle, body_mut, hand_out, kinds, room, take};
use crate::region::prereg_run;
use crate::space::prereg_space;
use crate::words::{holder_from, prereg_holder, shift_from};

/// A reader handle on a space: looks pages up and counts their mappings. One thread at a time uses it; any thread may. A
/// signal handler has one of its own.
#[derive(Debug)]
pub struct prereg_translator(Handle<Translator>);

kinds! {
    prereg_translator, Translator, b"pr-trans";
}

// The numbers stand in the structs once more, because the header has no names for them.
const PAGE_WORDS: usize = 4;
const RANGE_WORDS: usize = 6;

/// One live mapping of one page: while it lives, its region cannot be unregistered and the page stays pinned at `hpa`.
///
/// Filled by the call that maps. Leave it where it was filled until it is given back: a copy is not a mapping.
#[repr(C)]
#[derive(Debug)]
pub struct prereg_mapping {
    /// Where the device finds the byte at `ua`.
    pub hpa: u64,
    /// The user address that was mapped.
    pub ua: u64,
    mark: u64,
    inside: [MaybeUninit<u64>; 4],
}

/// One live mapping of a range inside one region, counted as one. The rules are those of `prereg_mapping`.
#[repr(C)]
#[derive(Debug)]
pub struct prereg_range {
    /// The first byte.
    pub ua: u64,
    /// The length in bytes.
    pub bytes: u64,
    mark: u64,
    inside: [MaybeUninit<u64>; 6],
}

const _: () = assert!(size_of::<Mapping>() <= PAGE_WORDS * 8 && align_of::<Mapping>() <= align_of::<u64>());
const _: () =
    assert!(size_of::<RangeMapping>() <= RANGE_WORDS * 8 && align_of::<RangeMapping>() <= align_of::<u64>());

/// What stands in `mark` of a live struct at `place`.
fn mark_at<T>(place: *const T) -> u64 {
    (place.addr() as u64) ^ u64::from_be_bytes(*b"pr-mappd")
}

impl prereg_mapping {
    /// Puts `mapping` into the caller's struct.
    #[inline]
    pub(crate) fn fill(place: &mut MaybeUninit<Self>, mapping: Mapping) {
        let mark = mark_at(place.as_ptr());
        let (hpa, ua) = (mapping.hpa().raw(), mapping.ua().raw());
        let this = place.write(Self { hpa, ua, mark, inside: [const { MaybeUninit::uninit() }; PAGE_WORDS] });
        // SAFETY: enough room, suitably aligned: asserted above.
        unsafe { this.inside.as_mut_ptr().cast::<Mapping>().write(mapping) };
    }

    /// Takes it out again: once.
    #[inline]
    fn empty(place: Option<&mut Self>) -> Result<Mapping, Failure> {
        let Some(this) = place else { return Err(Failure::Null("mapping")) };
        if this.mark != mark_at(this) {
            return Err(Failure::Handle("prereg_mapping"));
        }
        this.mark = 0;
        // SAFETY: the mark was right, so `fill` put one here and nobody has taken it out.
        Ok(unsafe { this.inside.as_ptr().cast::<Mapping>().read() })
    }
}

impl prereg_range {
    fn fill(place: &mut MaybeUninit<Self>, mapping: RangeMapping) {
        let mark = mark_at(place.as_ptr());
        let (ua, bytes) = (mapping.ua().raw(), mapping.bytes());
        let this =
            place.write(Self { ua, bytes, mark, inside: [const { MaybeUninit::uninit() }; RANGE_WORDS] });
        // SAFETY: enough room, suitably aligned: asserted above.
        unsafe { this.inside.as_mut_ptr().cast::<RangeMapping>().write(mapping) };
    }

    fn empty(place: Option<&mut Self>) -> Result<RangeMapping, Failure> {
        let this = place.ok_or(Failure::Null("range"))?;
        this.live()?;
        this.mark = 0;
        // SAFETY: it was live, so `fill` put one here and nobody has taken it out.
        Ok(unsafe { this.inside.as_ptr().cast::<RangeMapping>().read() })
    }

    fn live(&self) -> Result<&RangeMapping, Failure> {
        if self.mark != mark_at(self) {
            return Err(Failure::Handle("prereg_range"));
        }
        // SAFETY: the mark was right, so `fill` put one here and nobody has taken it out.
        Ok(unsafe { &*self.inside.as_ptr().cast::<RangeMapping>() })
    }
}

/// Makes a translator; `holder` (may be NULL) is whose mappings it makes.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_translator_new(
    space: Option<&prereg_space>,
    holder: Option<&prereg_holder>,
    translator: Option<&mut MaybeUninit<Option<Box<prereg_translator>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        hand_out(translator, || {
            let space = crate::handle::body(space)?;
            Ok(space.space.try_translator(holder_from(holder)?)?)
        })
    })
}

/// Frees it and sets `*translator` to NULL. Mappings that it made stay, and are given back with another one or with
/// `prereg_mapping_drop`.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_translator_free(translator: Option<&mut Option<Box<prereg_translator>>>) -> c_int {
    answer(None, || take(translator).map(drop))
}

/// Looks for the newest regions. Never needed for correctness; an idle translator that refreshes lets old tables go.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_translator_refresh(translator: Option<&mut prereg_translator>) -> c_int {
    answer(None, || {
        body_mut(translator)?.refresh();
        Ok(())
    })
}

/// Maps the page of `2^shift` bytes that holds `ua`: finds its region, counts one mapping, and yields the address. No lock,
/// no allocation, no system call, no page fault: works in a signal handler.
///
/// Returns 0; -EFAULT when no one region holds the whole page, or its memory is not contiguous enough for it; -ENXIO when
/// the region is being unregistered; -EINVAL. `*mapping` is not touched then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_map(
    translator: Option<&mut prereg_translator>,
    ua: u64,
    shift: u32,
    mapping: Option<&mut MaybeUninit<prereg_mapping>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let place = room(mapping, "mapping")?;
        let made = body_mut(translator)?.map(UserAddr::new(ua), shift_from(shift)?)?;
        prereg_mapping::fill(place, made);
        Ok(())
    })
}

/// Gives a mapping back, without a lock or a system call. The device must not use the address any more.
///
/// Returns 0; -EINVAL for what is no live mapping (given back already, copied, never filled): an unbalanced unmap changes
/// nothing.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmap(
    translator: Option<&mut prereg_translator>,
    mapping: Option<&mut prereg_mapping>,
) -> c_int {
    answer(None, || {
        let translator = body_mut(translator)?;
        translator.unmap(prereg_mapping::empty(mapping)?);
        Ok(())
    })
}

/// Gives a mapping back on any thread, without a translator. If it was the last one of a region whose registrations are
/// gone, releases that region, which takes a lock and may make system calls.
///
/// Returns as `prereg_unmap`.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_mapping_drop(mapping: Option<&mut prereg_mapping>) -> c_int {
    answer(None, || prereg_mapping::empty(mapping).map(drop))
}

/// Whether `prereg_map` would succeed at this moment. Nothing is counted and no address leaves.
///
/// Returns as `prereg_map`.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_check(
    translator: Option<&mut prereg_translator>,
    ua: u64,
    shift: u32,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || Ok(body_mut(translator)?.check(UserAddr::new(ua), shift_from(shift)?)?))
}

/// Maps all of `bytes` bytes at `ua`, which must lie in one region, as one mapping. `prereg_range_runs` has the addresses.
///
/// Returns as `prereg_map`; an empty range lies nowhere.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_map_range(
    translator: Option<&mut prereg_translator>,
    ua: u64,
    bytes: u64,
    range: Option<&mut MaybeUninit<prereg_range>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let place = room(range, "range")?;
        let made = body_mut(translator)?.map_range(UserAddr::new(ua), bytes)?;
        prereg_range::fill(place, made);
        Ok(())
    })
}

/// The stretches of contiguous host memory that make up a mapped range, in order, from number `first` on: a scatter-gather
/// list. At most `room` are written; `*total` (may be NULL) is set to how many there are.
///
/// Returns 0; -EINVAL for what is no live range.
///
/// # Safety
/// `runs` has room for `room` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prereg_range_runs(
    range: Option<&prereg_range>,
    first: usize,
    runs: *mut MaybeUninit<prereg_run>,
    room: usize,
    total: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        // SAFETY: as this function's.
        let mut places = unsafe { Array::new(runs, room, "runs") }?.into_mut().iter_mut();
        let mapping = range.ok_or(Failure::Null("range"))?.live()?;
        let mut ua = mapping.ua().raw();
        let mut number = 0;
        for run in mapping.runs() {
            if number >= first {
                if let Some(place) = places.next() {
                    place.write(prereg_run { ua, host: run.host.raw(), bytes: run.bytes });
                } else if total.is_none() {
                    break;
                }
            }
            ua += run.bytes;
            number += 1;
        }
        if let Some(total) = total {
            total.write(number);
        }
        Ok(())
    })
}

/// `prereg_unmap` for a range.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmap_range(
    translator: Option<&mut prereg_translator>,
    range: Option<&mut prereg_range>,
) -> c_int {
    answer(None, || {
        let translator = body_mut(translator)?;
        translator.unmap_range(prereg_range::empty(range)?);
        Ok(())
    })
}

/// `prereg_mapping_drop` for a range.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_range_drop(range: Option<&mut prereg_range>) -> c_int {
    answer(None, || prereg_range::empty(range).map(drop))
}

/// Marks the system page at `ua` as written by a device. Nothing happens where nothing is registered, and for device
/// memory.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_mark_dirty(translator: Option<&mut prereg_translator>, ua: u64) -> c_int {
    value_or(-prereg::Errno::EINVAL.raw(), || {
        body_mut(translator)?.mark_dirty(UserAddr::new(ua));
        Ok(0)
    })
}
