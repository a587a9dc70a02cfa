//! The windows of a container: at most two, each a table and its charge.

use alloc::sync::Arc;

use prereg::{Access, AddressSpace, BusAddr, MapError, PageShift, Translator, UserAddr};

use super::error::ContainerError;
use super::owner::{Charged, Owner};
use super::platform::{Platform, TableShapeError};
use crate::hw_table::{EntryError, HwTable};

/// Windows of a container, at most.
pub(super) const SLOTS: usize = 2;

/// One window: its table and its charge.
#[derive(Debug)]
pub(super) struct Window {
    table: Arc<HwTable>,
    /// Uncharged when dropped, after the entries.
    _charged: Charged,
}

impl Window {
    /// Charges and creates the table of a window for `slot`.
    pub(super) fn new(
        platform: &Platform,
        owner: &Owner,
        space: &Arc<AddressSpace>,
        container: u64,
        slot: usize,
        shape: Shape,
    ) -> Result<Self, ContainerError> {
        let Shape { shift, bytes, levels } = shape;
        let unshaped = ContainerError::TableShape { bytes, levels };
        let granule = space.granule();
        let plan = platform.plan(granule, slot, shift, bytes, levels).ok_or(unshaped)?;
        let charged = owner.charge(plan.pages).map_err(ContainerError::Charge)?;
        let geometry = plan.geometry.map_err(|why| match why {
            TableShapeError::Shape => unshaped,
            TableShapeError::Piece => ContainerError::LevelTooLarge,
        })?;
        let table = HwTable::new(space.clone(), geometry, container)?;
        Ok(Self { table: Arc::new(table), _charged: charged })
    }

    pub(super) fn table(&self) -> &Arc<HwTable> {
        &self.table
    }

    /// First entry and count of `[ioba, ioba + bytes)`, if this window contains all of it.
    pub(super) fn entries(&self, ioba: BusAddr, bytes: u64) -> Result<(u64, u64), ContainerError> {
        let geometry = self.table.geometry();
        let page = geometry.shift().bytes();
        if !ioba.is_aligned(geometry.shift()) {
            return Err(ContainerError::MisalignedBus { ioba, page });
        }
        let pages = bytes >> geometry.shift().get();
        let past = ContainerError::PastWindow { ioba, bytes };
        geometry.aligned_index(ioba, pages).map(|first| (first, pages)).ok_or(past)
    }

    /// Maps `count` pages from `ua` on into the entries from `first` on. On failure the entries written so far are cleared,
    /// and the units of the entries they replaced released; later entries keep their mappings.
    pub(super) fn map(
        &self,
        translator: &mut Translator,
        (first, count): (u64, u64),
        ua: UserAddr,
        access: Access,
    ) -> Result<(), ContainerError> {
        // The newest snapshot of regions, once a call: memory that was released is then unregistered rather than closing.
        translator.refresh();
        let shift = self.table.geometry().shift();
        for step in 0..count {
            let set = match ua.checked_add(step << shift.get()) {
                Some(ua) => retry_contended(|| self.table.set(translator, first + step, ua, access)),
                None => Err(MapError::Unregistered { ua, shift }.into()),
            };
            if let Err(error) = set {
                self.clear(translator, first, step);
                let ioba = self.table.geometry().address(first + step).unwrap_or_default();
                return Err(ContainerError::Map { ioba, error });
            }
        }
        Ok(())
    }

    /// Clears the live ones of `count` entries from `first` on.
    pub(super) fn clear(&self, translator: &mut Translator, first: u64, count: u64) {
        let cleared = retry_contended(|| self.table.clear_range(translator, first, count));
        debug_assert!(cleared.is_ok(), "the range is inside and the translator is the table's: {cleared:?}");
    }

    /// Clears every entry.
    pub(super) fn clear_all(&self, translator: &mut Translator) {
        self.clear(translator, 0, self.table.geometry().entries());
    }
}

/// Repeats `change` while another thread (a hypercall on this table) changes the entry, which takes it a few instructions.
fn retry_contended<T>(mut change: impl FnMut() -> Result<T, EntryError>) -> Result<T, EntryError> {
    loop {
        match change() {
            Err(error) if error.is_contended() => core::hint::spin_loop(),
            done => return done,
        }
    }
}

/// The requested size of a window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Shape {
    pub(super) shift: PageShift,
    pub(super) bytes: u64,
    pub(super) levels: u32,
}

impl Shape {
    /// The default window: 4 KiB pages, one level.
    pub(super) fn default_window(platform: &Platform) -> Self {
        Self { shift: PageShift::K4, bytes: u64::from(platform.dma32_bytes), levels: 1 }
    }
}
