//! Translators and mappings: the hot path.
//!
//! A caller's struct of a mapping has its addresses and a reference to its slot in this library (see `live`), with the address of the
//! struct itself: a copy of the struct, or a released one, is not a mapping.

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::c_int;

use prereg::{Mapping, PageShift, RangeMapping, Translator, UserAddr};

use crate::caller::{Out, out, out_if, tell};
use crate::error::{CallError, prereg_error, run_call, value_or};
use crate::handle::{body, body_mut, create_handle, kinds, take};
use crate::live::{self, Counted, FreeSlots, Ticket};
use crate::record;
use crate::region::prereg_run;
use crate::space::prereg_space;
use crate::types::{holder_from, prereg_holder, shift_from};

/// A reader handle of a space: looks pages up and counts their mappings. Used by one thread at a time, any thread. A signal
/// handler has its own.
#[derive(Debug)]
pub struct prereg_translator(());

/// A translator and its free slots.
#[derive(Debug)]
pub struct Reader {
    pub(crate) translator: Translator,
    page: PageShift,
    slots: FreeSlots,
}

kinds! {
    prereg_translator, Reader, 5;
}

/// One live mapping of one page: while it lives, its region cannot be unregistered and the page stays pinned at `hpa`.
///
/// Filled by the call that maps. Do not move it until it is released: a copy is not a mapping. Its size never changes;
/// other members are private.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_mapping {
    /// The host address of the byte at `ua`, for the device.
    pub hpa: u64,
    /// The user address that was mapped.
    pub ua: u64,
    inside: [u64; 5],
}

/// One live mapping of a range inside one region, counted as one. The rules are those of `prereg_mapping`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_range {
    /// The first byte.
    pub ua: u64,
    /// The length in bytes.
    pub bytes: u64,
    inside: [u64; 7],
}

/// The first private word of a live struct at `address`.
#[inline]
fn mark_at(address: u64) -> u64 {
    address ^ u64::from_be_bytes(*b"pr-mappd")
}

/// A caller's struct of a mapping.
trait Token: Copy {
    const NAME: &'static str;
    type Counted: Counted;

    /// The struct with its addresses.
    fn made(counted: &Self::Counted) -> Self;
    /// The offset of its private words.
    const INSIDE: usize;
}

impl Token for prereg_mapping {
    const NAME: &'static str = "prereg_mapping";
    type Counted = Mapping;

    #[inline]
    fn made(mapping: &Mapping) -> Self {
        Self { hpa: mapping.hpa().raw(), ua: mapping.ua().raw(), inside: [0; 5] }
    }
    const INSIDE: usize = std::mem::offset_of!(prereg_mapping, inside);
}

impl Token for prereg_range {
    const NAME: &'static str = "prereg_range";
    type Counted = RangeMapping;

    #[inline]
    fn made(mapping: &RangeMapping) -> Self {
        Self { ua: mapping.ua().raw(), bytes: mapping.bytes(), inside: [0; 7] }
    }
    const INSIDE: usize = std::mem::offset_of!(prereg_range, inside);
}

/// The private words of a live struct: its mark, the slot and the serial number.
fn inside<T: Token>(place: &Out<T>) -> Out<[u64; 3]> {
    place.member(T::INSIDE)
}

impl Reader {
    /// Stores a mapping in a slot and writes the reference to the caller's struct. Without memory the mapping is passed to `release`.
    #[inline(always)]
    fn keep<T: Token>(
        &mut self,
        place: &Out<T>,
        counted: T::Counted,
        release: impl FnOnce(&mut Translator, T::Counted),
    ) -> Result<(), CallError> {
        let token = T::made(&counted);
        match self.slots.put(counted, place.address()) {
            Ok(Ticket { slot, serial, owner }) => {
                place.write(token);
                inside(place).write([mark_at(owner), slot, serial]);
                Ok(())
            }
            Err(counted) => {
                release(&mut self.translator, counted);
                Err(CallError::OutOfMemory)
            }
        }
    }

    /// Stores the mapping of a page.
    #[inline(always)]
    pub(crate) fn keep_page(
        &mut self,
        place: &Out<prereg_mapping>,
        mapping: Mapping,
    ) -> Result<(), CallError> {
        self.keep(place, mapping, Translator::unmap)
    }

    #[inline(always)]
    fn take<T: Token>(&mut self, place: *mut T) -> Result<T::Counted, CallError> {
        let (place, ticket) = ticket_at(place)?;
        emptied(&place, self.slots.take(ticket))
    }
}

/// The mapping of the caller's struct; `None` for a copy.
#[inline(always)]
fn ticket_at<T: Token>(place: *mut T) -> Result<(Out<T>, Ticket), CallError> {
    let place = out(place, T::NAME)?;
    let [mark, slot, serial] = inside(&place).read();
    if mark != mark_at(place.address()) {
        return Err(CallError::Handle(T::NAME));
    }
    let owner = place.address();
    Ok((place, Ticket { slot, serial, owner }))
}

/// Marks the caller's struct as released, if a mapping was taken.
#[inline(always)]
fn emptied<T: Token>(place: &Out<T>, taken: Option<T::Counted>) -> Result<T::Counted, CallError> {
    let Some(counted) = taken else { return Err(CallError::Handle(T::NAME)) };
    inside(place).write([0; 3]);
    Ok(counted)
}

/// Takes a mapping without a translator.
fn take_without_translator<T: Token>(place: *mut T) -> Result<T::Counted, CallError> {
    let (place, ticket) = ticket_at(place)?;
    emptied(&place, live::take(ticket))
}

/// Creates a translator; `holder` (may be NULL) is the holder of its mappings.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_translator_new(
    space: *const prereg_space,
    holder: *const prereg_holder,
    translator: *mut *mut prereg_translator,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(translator, || {
            let space = body(space)?;
            let slots = FreeSlots::new().ok_or(CallError::OutOfMemory)?;
            let translator = space.space.try_translator(holder_from(holder)?)?;
            Ok(Reader { translator, page: space.space.granule().shift(), slots })
        })
    })
}

/// Reserves slots for `mappings` live mappings (pages and ranges) of this translator: up to that number mapping allocates nothing. A
/// new translator has 32; beyond them mapping occasionally makes one system call for memory.
///
/// Returns 0; -ENOMEM, -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_translator_reserve(
    translator: *mut prereg_translator,
    mappings: u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let reader = body_mut(translator)?;
        if reader.slots.reserve(mappings) { Ok(()) } else { Err(CallError::OutOfMemory) }
    })
}

/// Frees the handle and sets `*translator` to NULL. Mappings that it made stay, and are released with another one or with
/// `prereg_mapping_drop`.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_translator_free(translator: *mut *mut prereg_translator) -> c_int {
    run_call(std::ptr::null_mut(), || take(translator).map(drop))
}

/// Uses the newest snapshot of the regions. Never needed for correctness; by refreshing, an idle translator allows old tables to be
/// freed.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_translator_refresh(translator: *mut prereg_translator) -> c_int {
    run_call(std::ptr::null_mut(), || {
        body_mut(translator)?.translator.refresh();
        Ok(())
    })
}

/// Maps the page of `2^shift` bytes that has `ua`: finds its region, counts one mapping, and returns the address. No lock,
/// no allocation, no system call, no page fault: works in a signal handler.
///
/// The library does not detect writes of the device: mark the pages that it may have written (`prereg_mark_dirty`,
/// `prereg_unmap_written`) before the mapping is released.
///
/// Returns 0; -EFAULT if no region has the whole page, or its memory is not contiguous enough; -ENXIO if
/// the region is being unregistered; -ENOMEM; -EINVAL. `*mapping` is then unchanged.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_map(
    translator: *mut prereg_translator,
    ua: u64,
    shift: u32,
    mapping: *mut prereg_mapping,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let place = out(mapping, "mapping")?;
        let reader = body_mut(translator)?;
        let made = reader.translator.map(UserAddr::new(ua), shift_from(shift)?)?;
        reader.keep_page(&place, made)
    })
}

/// Releases a mapping, without a lock or a system call. The device must no longer use the address.
///
/// Returns 0; -EINVAL if it is not a live mapping (released, a copy, or never filled): nothing changes.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmap(translator: *mut prereg_translator, mapping: *mut prereg_mapping) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let reader = body_mut(translator)?;
        let taken = reader.take(mapping)?;
        reader.translator.unmap(taken);
        Ok(())
    })
}

/// `prereg_unmap` of a page that a device may have written: marks it first, as `prereg_mark_dirty` does, the whole page if it is larger than a
/// system page.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmap_written(
    translator: *mut prereg_translator,
    mapping: *mut prereg_mapping,
) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let reader = body_mut(translator)?;
        let taken = reader.take(mapping)?;
        let first = taken.ua().align_down(taken.shift());
        mark(&mut reader.translator, reader.page, first, taken.shift().bytes());
        reader.translator.unmap(taken);
        Ok(())
    })
}

/// Releases a mapping on any thread, without a translator. If it was the last one of a draining region, releases
/// that region, which takes a lock and may make system calls.
///
/// Returns as `prereg_unmap`.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_mapping_drop(mapping: *mut prereg_mapping) -> c_int {
    run_call(std::ptr::null_mut(), || take_without_translator(mapping).map(drop))
}

/// Whether `prereg_map` would succeed at this moment. Nothing is counted and no address returned.
///
/// Returns as `prereg_map`.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_check(
    translator: *mut prereg_translator,
    ua: u64,
    shift: u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || Ok(body_mut(translator)?.translator.check(UserAddr::new(ua), shift_from(shift)?)?))
}

/// Maps all of `bytes` bytes at `ua`, which must be in one region, as one mapping. `prereg_range_runs` returns the addresses.
///
/// Returns as `prereg_map`; -EFAULT for an empty range.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_map_range(
    translator: *mut prereg_translator,
    ua: u64,
    bytes: u64,
    range: *mut prereg_range,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let place = out(range, "range")?;
        let reader = body_mut(translator)?;
        let made = reader.translator.map_range(UserAddr::new(ua), bytes)?;
        reader.keep(&place, made, Translator::unmap_range)
    })
}

/// The runs of contiguous host memory of a mapped range, in order, from number `first` on: a scatter-gather list. At most `room` are written, `runs[0].size` bytes apart; `*total` (may be NULL) is set to how many
/// there are.
///
/// Returns 0; -EINVAL if it is not a live range.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_range_runs(
    range: *const prereg_range,
    first: usize,
    runs: *mut prereg_run,
    room: usize,
    total: *mut usize,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (places, total) = (record::out_array(runs, room)?, out_if(total, "total")?);
        let (_, ticket) = ticket_at(range.cast_mut())?;
        let mapping = live::get::<RangeMapping>(ticket).ok_or(CallError::Handle("prereg_range"))?;
        let mut ua = mapping.ua().raw();
        let mut number = 0;
        for run in mapping.runs() {
            if let Some(index) = usize::checked_sub(number, first) {
                if index >= places.count() && total.is_none() {
                    break;
                }
                places.write(index, &prereg_run { size: 0, ua, host: run.host.raw(), bytes: run.bytes });
            }
            // Wraps only after the last run.
            ua = ua.wrapping_add(run.bytes);
            number += 1;
        }
        tell(total, number);
        Ok(())
    })
}

/// `prereg_unmap` for a range.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmap_range(translator: *mut prereg_translator, range: *mut prereg_range) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let reader = body_mut(translator)?;
        let taken = reader.take(range)?;
        reader.translator.unmap_range(taken);
        Ok(())
    })
}

/// `prereg_unmap_written` for a range.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unmap_range_written(
    translator: *mut prereg_translator,
    range: *mut prereg_range,
) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let reader = body_mut(translator)?;
        let taken = reader.take(range)?;
        mark(&mut reader.translator, reader.page, taken.ua(), taken.bytes());
        reader.translator.unmap_range(taken);
        Ok(())
    })
}

/// `prereg_mapping_drop` for a range.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_range_drop(range: *mut prereg_range) -> c_int {
    run_call(std::ptr::null_mut(), || take_without_translator(range).map(drop))
}

/// Marks the system page at `ua` as written by a device. Has no effect on unregistered memory and device memory.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_mark_dirty(translator: *mut prereg_translator, ua: u64) -> c_int {
    value_or(-prereg::Errno::EINVAL.raw(), || {
        body_mut(translator)?.translator.mark_dirty(UserAddr::new(ua));
        Ok(0)
    })
}

/// `prereg_mark_dirty` for every system page that has one of the `bytes` bytes at `ua`, all in one region.
///
/// Returns 0; -EFAULT if no region has them; -ENXIO if the region is being unregistered; -EINVAL. Then nothing is marked.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_mark_dirty_range(
    translator: *mut prereg_translator,
    ua: u64,
    bytes: u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let Reader { translator, page, .. } = body_mut(translator)?;
        let range = translator.map_range(UserAddr::new(ua), bytes)?;
        mark(translator, *page, range.ua(), bytes);
        translator.unmap_range(range);
        Ok(())
    })
}

/// Marks every system page with one of `bytes` bytes from `ua` on, which the caller holds.
pub(crate) fn mark(translator: &mut Translator, page: PageShift, ua: UserAddr, bytes: u64) {
    let Some(last) = ua.checked_add(bytes.saturating_sub(1)) else { return };
    let mut at = ua.align_down(page);
    while at <= last {
        translator.mark_dirty(at);
        let Some(next) = at.checked_add(page.bytes()) else { return };
        at = next;
    }
}
