//! QEMU's user-space hypercall handlers: the slow path, whose result is final.
//!
//! The guest table stores any value. The bus address is rounded down to a page; a range beyond the end is performed up to the
//! end and then refused. A hardware entry follows its value if it has a permission and a whole page in one memory slot that is
//! registered; otherwise it is cleared, and the guest gets no error.

use prereg::{Access, BusAddr, GuestAddr, PageShift, Translator, UserAddr};

use crate::hw_table::EntryError;
use crate::hypercall::{GuestRead, HReturn, Hypercall, with_list};
use crate::slots::MemorySlots;
use crate::sparse::TableError;
use crate::table::TceTable;
use crate::tce::Tce;

/// Values that are looked up before any of them is written.
const BLOCK: usize = 32;

#[inline]
fn locate(table: &TceTable, ioba: BusAddr) -> Result<u64, HReturn> {
    table.geometry().index(ioba).ok_or(HReturn::PARAMETER)
}

/// The first entry, and how many of `pages` lie inside the table.
#[inline]
fn locate_range(table: &TceTable, ioba: BusAddr, pages: u64) -> Result<(u64, u64), HReturn> {
    if pages == 0 {
        return Err(HReturn::PARAMETER);
    }
    let index = locate(table, ioba)?;
    Ok((index, pages.min(table.geometry().entries() - index)))
}

#[inline]
fn code(error: EntryError) -> HReturn {
    if error.is_contended() {
        return HReturn::BUSY;
    }
    match error {
        EntryError::Table(error) => table_code(error),
        _ => HReturn::HARDWARE,
    }
}

#[cold]
fn table_code(error: TableError) -> HReturn {
    match error {
        TableError::OutOfMemory => HReturn::RESOURCE,
        TableError::OutOfRange { .. } => HReturn::PARAMETER,
    }
}

type Target = Option<(UserAddr, Access)>;

/// The mapping that `tce` asks for, if it is a whole page in one slot.
#[inline]
fn target(table: &TceTable, slots: &MemorySlots, tce: Tce) -> Target {
    let shift = table.geometry().shift();
    tce.access().and_then(|access| Some((slots.translate(tce.page(shift), shift.bytes())?, access)))
}

#[inline]
fn write(
    table: &TceTable,
    translator: &mut Translator,
    index: u64,
    tce: Tce,
    target: Target,
) -> Result<(), HReturn> {
    let value_slot = table.value_slot(index, tce).map_err(table_code)?;
    table.sync_hw(translator, index, target).map_err(code)?;
    value_slot.write(tce);
    Ok(())
}

#[inline]
pub(crate) fn get(table: &TceTable, ioba: BusAddr) -> Result<Tce, HReturn> {
    Ok(table.value(locate(table, ioba)?))
}

#[inline]
pub(crate) fn put(
    table: &TceTable,
    slots: &MemorySlots,
    translator: &mut Translator,
    ioba: BusAddr,
    tce: Tce,
) -> Result<(), HReturn> {
    let index = locate(table, ioba)?;
    write(table, translator, index, tce, target(table, slots, tce))
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
    let (index, inside) = locate_range(table, ioba, pages)?;
    with_list(guest, list, inside as usize, |values, read| {
        if read.is_err() {
            // QEMU's bus reads as zeros outside of RAM, so the call succeeds.
            values.fill(0);
        }
        put_values(table, slots, translator, index, values)
    })?;
    if inside < pages { Err(HReturn::PARAMETER) } else { Ok(()) }
}

fn put_values(
    table: &TceTable,
    slots: &MemorySlots,
    translator: &mut Translator,
    index: u64,
    values: &[u64],
) -> Result<(), HReturn> {
    let mut index = index;
    for values in values.chunks(BLOCK) {
        // All are prefetched before the first is mapped, so that the cache misses overlap.
        let mut targets = [None; BLOCK];
        for (&raw, value_slot) in values.iter().zip(&mut targets) {
            *value_slot = target(table, slots, Tce::new(raw));
            if let Some((ua, _)) = *value_slot {
                table.prefetch(translator, ua);
            }
        }
        for (&raw, &target) in values.iter().zip(&targets) {
            write(table, translator, index, Tce::new(raw), target)?;
            index += 1;
        }
    }
    Ok(())
}

#[inline]
pub(crate) fn stuff(
    table: &TceTable,
    slots: &MemorySlots,
    translator: &mut Translator,
    ioba: BusAddr,
    tce: Tce,
    pages: u64,
) -> Result<(), HReturn> {
    if pages > table.geometry().entries() {
        return Err(HReturn::PARAMETER);
    }
    let (index, inside) = locate_range(table, ioba, pages)?;
    if tce.access().is_some() {
        let target = target(table, slots, tce);
        for index in index..index + inside {
            write(table, translator, index, tce, target)?;
        }
    } else {
        table.prepare(index, inside, tce).map_err(table_code)?;
        table.clear_hw(translator, index, inside).map_err(code)?;
        table.fill(index, inside, tce).map_err(table_code)?;
    }
    if inside < pages { Err(HReturn::PARAMETER) } else { Ok(()) }
}
