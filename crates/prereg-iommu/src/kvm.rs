//! KVM's hypercall handlers: the fast path (docs/specification.md 3.3 to 3.8).
//!
//! Functions return the handler's code; `TOO_HARD` leaves the call to the slow path. The order of checks is the kernel's.
//! Deviations, where the kernel loses a unit: a value without permission always unmaps (B8), and a roll-back unmaps (B9). A
//! list is copied from guest memory once, so the validated values are the written ones; the kernel reads it twice.

use prereg::{Access, BusAddr, GuestAddr, PageShift, Translator, UserAddr};

use crate::hypercall::{GuestRead, HReturn, Hypercall, with_list};
use crate::slots::MemorySlots;
use crate::table::TceTable;
use crate::tce::Tce;

type Target = Option<(UserAddr, Access)>;

#[inline]
fn locate(table: &TceTable, ioba: BusAddr, pages: u64) -> Result<u64, HReturn> {
    table.geometry().aligned_index(ioba, pages).ok_or(HReturn::PARAMETER)
}

/// The mapping that `tce` asks for, or `None` without a permission; `TOO_HARD` if it is not an aligned guest page in a
/// slot.
///
/// A guest page that leaves its slot can be stored but not mapped: the user memory behind the end of the slot is not the
/// guest's. (The kernel checks only the page's first byte.)
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
    let value_slot = table.value_slot(index, tce).map_err(|_| HReturn::TOO_HARD)?;
    let hardware = match target {
        Some((ua, access)) => table.map(translator, index, ua, access),
        None => table.unmap(translator, index, 1),
    };
    hardware.map_err(|_| HReturn::TOO_HARD)?;
    value_slot.write(tce);
    Ok(())
}

#[inline]
pub(crate) fn get(table: &TceTable, ioba: BusAddr) -> Result<Tce, HReturn> {
    Ok(table.value(locate(table, ioba, 1)?))
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
        // The first table is not checked: if its first subpage is refused, nothing has changed yet.
        table.check(translator, ua, 1).map_err(|_| HReturn::TOO_HARD)?;
    }
    write(table, translator, index, tce, target)
}

#[inline]
pub(crate) fn put_indirect<G: GuestRead + ?Sized>(
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
            // Prefetched for the loop below, which runs once the whole list is validated.
            table.prefetch(translator, ua);
        }
    }
    table.prepare(index, values.len() as u64, Tce::new(any)).map_err(|_| HReturn::TOO_HARD)?;
    for (index, &raw) in (index..).zip(values) {
        let tce = Tce::new(raw);
        let target = target(table, slots, tce)?;
        // The kernel looks up every value here, also without permission: poison outside of RAM is refused in a list,
        // although H_PUT_TCE accepts it.
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
