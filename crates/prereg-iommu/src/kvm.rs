//! The hypercalls as KVM's handlers do them: the fast path (docs/specification.md 3.3 to 3.8).
//!
//! Every function answers with the handler's own code; `TOO_HARD` means that the slow path must do the call again. The
//! order of checks is the kernel's. Where the kernel loses a unit we do not: a value without permission is an unmap
//! wherever it comes from (B8), and a roll-back unmaps (B9). A list is copied out of guest memory once, so what was
//! validated is what is written; the kernel reads it twice.

use prereg::{Access, BusAddr, GuestAddr, PageShift, Translator, UserAddr};

use crate::hypercall::{GuestList, HReturn, Hypercall, with_list};
use crate::slots::MemorySlots;
use crate::table::TceTable;
use crate::tce::Tce;

type Target = Option<(UserAddr, Access)>;

#[inline]
fn locate(table: &TceTable, ioba: BusAddr, pages: u64) -> Result<u64, HReturn> {
    table.geometry().aligned_index(ioba, pages).ok_or(HReturn::PARAMETER)
}

/// Where `tce` points, or `None` without a permission; `TOO_HARD` if it does not start a guest page in a slot.
///
/// A guest page that leaves its slot can be stored but not mapped: the user memory behind the slot's end is not the
/// guest's. (The kernel looks at the page's first byte only.)
#[inline]
fn target(table: &TceTable, slots: &MemorySlots, tce: Tce) -> Result<Target, HReturn> {
    let Some(access) = tce.access() else { return Ok(None) };
    let shift = table.geometry().shift();
    if !tce.address().is_aligned(shift) {
        return Err(HReturn::TOO_HARD);
    }
    let must_hold = if table.has_hardware() { shift.bytes() } else { 1 };
    let ua = slots.translate(tce.address(), must_hold).ok_or(HReturn::TOO_HARD)?;
    Ok(Some((ua, access)))
}

#[inline]
fn write(
    table: &TceTable,
    translator: &mut Translator,
    index: u64,
    tce: Tce,
    target: Target,
) -> Result<(), HReturn> {
    let place = table.place(index, tce).map_err(|_| HReturn::TOO_HARD)?;
    let hardware = match target {
        Some((ua, access)) => table.map(translator, index, ua, access),
        None => table.unmap(translator, index, 1),
    };
    hardware.map_err(|_| HReturn::TOO_HARD)?;
    place.write(tce);
    Ok(())
}

#[inline]
pub(crate) fn get(table: &TceTable, ioba: BusAddr) -> Result<Tce, HReturn> {
    Ok(table.values().load(locate(table, ioba, 1)?))
}

#[inline]
pub(crate) fn put(
    table: &TceTable,
    slots: &MemorySlots,
    translator: &mut Translator,
    ioba: BusAddr,
    tce: Tce,
) -> Result<(), HReturn> {
    let index = locate(table, ioba, 1)?;
    let target = target(table, slots, tce)?;
    if let Some((ua, _)) = target {
        // The first table needs no check of its own: a refusal of its first sub-page leaves everything as it is.
        table.check(translator, ua, 1).map_err(|_| HReturn::TOO_HARD)?;
    }
    write(table, translator, index, tce, target)
}

#[inline]
pub(crate) fn put_indirect<G: GuestList + ?Sized>(
    table: &TceTable,
    slots: &MemorySlots,
    translator: &mut Translator,
    guest: &G,
    ioba: BusAddr,
    list: GuestAddr,
    pages: u64,
) -> Result<(), HReturn> {
    if pages > Hypercall::MAX_LIST as u64 || !list.is_aligned(PageShift::K4) {
        return Err(HReturn::PARAMETER);
    }
    let index = locate(table, ioba, pages)?;
    if slots.find(list).is_none() {
        return Err(HReturn::TOO_HARD);
    }
    with_list(guest, list, pages as usize, |values, read| {
        read.map_err(|_| HReturn::TOO_HARD)?;
        put_values(table, slots, translator, index, values)
    })
}

fn put_values(
    table: &TceTable,
    slots: &MemorySlots,
    translator: &mut Translator,
    index: u64,
    values: &[u64],
) -> Result<(), HReturn> {
    let mut any = 0;
    for &raw in values {
        any |= raw;
        if let Some((ua, _)) = target(table, slots, Tce::new(raw))? {
            table.check(translator, ua, 0).map_err(|_| HReturn::TOO_HARD)?;
            // Read below, once the whole list is known to be good: by then it is here.
            table.prefetch(translator, ua);
        }
    }
    table.prepare(index, values.len() as u64, Tce::new(any)).map_err(|_| HReturn::TOO_HARD)?;
    for (index, &raw) in (index..).zip(values) {
        let tce = Tce::new(raw);
        let target = target(table, slots, tce)?;
        // The kernel looks every value up here, also one that maps nothing: so poison that points outside of RAM is
        // refused in a list, though H_PUT_TCE takes it.
        if target.is_none() && slots.find(tce.address()).is_none() {
            return Err(HReturn::PARAMETER);
        }
        write(table, translator, index, tce, target)?;
    }
    Ok(())
}

#[inline]
pub(crate) fn stuff(
    table: &TceTable,
    translator: &mut Translator,
    ioba: BusAddr,
    tce: Tce,
    pages: u64,
) -> Result<(), HReturn> {
    let index = locate(table, ioba, pages)?;
    if tce.access().is_some() {
        return Err(HReturn::PARAMETER);
    }
    table.prepare(index, pages, tce).map_err(|_| HReturn::TOO_HARD)?;
    table.unmap(translator, index, pages).map_err(|_| HReturn::TOO_HARD)?;
    table.fill(index, pages, tce).map_err(|_| HReturn::TOO_HARD)
}
