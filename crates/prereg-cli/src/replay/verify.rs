//! Comparison of live entries with the kernel's page map.
//!
//! A live entry is mapped once more, as by an access of a device. While that mapping keeps the page pinned, its host address is compared
//! with the frame that the kernel reports for the user page of the guest's entry. Only physical addresses are compared.

use clap::ValueEnum;
use prereg::{AddressKind, AddressSpace, Holder, HostAddr, PageShift, Translator, UserAddr};
use prereg_iommu::{HwTable, TceTable};
use prereg_linux::{PageBacking, Pagemap};

use super::machine::Machine;
use crate::error::CommandError;

/// The entries to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Verify {
    /// Some entries of every 16th mapping call, and some of the live ones at each mark
    Sample,
    /// Every entry right after the call that wrote it, and all live ones at each mark
    All,
    /// None
    None,
}

/// Mapping calls for each one in the sample.
const EVERY: u64 = 16;
/// Entries of a call, and of a table at a mark, in the sample.
const OF_CALL: u64 = 4;
const OF_TABLE: usize = 64;

/// Compares entries and counts differences.
#[derive(Debug)]
pub(crate) struct Verifier {
    how: Verify,
    map: Option<Pagemap>,
    translator: Translator,
    mapping_calls: u64,
    /// System pages compared.
    pub checked: u64,
    /// System pages at another address.
    pub wrong: u64,
    /// The reason if nothing is compared.
    pub note: Option<String>,
}

impl Verifier {
    /// A verifier of entries selected by `how`; it compares nothing unless the host addresses of `space` are physical.
    ///
    /// # Errors
    /// [`CommandError::Host`] if pagemap is needed and cannot be opened, or without memory.
    pub(crate) fn new(how: Verify, space: &AddressSpace) -> Result<Self, CommandError> {
        let (map, note) = match (how, space.address_kind()) {
            (Verify::None, _) => (None, None),
            (_, AddressKind::Physical) => {
                (Some(Pagemap::open().map_err(|error| CommandError::host("comparing with pagemap", error))?), None)
            }
            (_, AddressKind::SlotOffset) => (
                None,
                Some(
                    "this user may not read physical addresses, so none were compared with pagemap (CAP_SYS_ADMIN allows it)"
                        .to_owned(),
                ),
            ),
            _ => (None, Some("addresses are not physical, so none were compared with pagemap".to_owned())),
        };
        let translator = space.try_translator(Holder::default())?;
        Ok(Self { how, map, translator, mapping_calls: 0, checked: 0, wrong: 0, note })
    }

    /// Compares entries after a call that wrote `count` entries of `liobn` from `first` and mapped some of them.
    pub(crate) fn after_call(&mut self, machine: &Machine<'_>, liobn: u64, first: u64, count: u64) {
        self.mapping_calls += 1;
        if self.map.is_none() || count == 0 {
            return;
        }
        let Some(table) = machine.table(liobn) else { return };
        match self.how {
            Verify::All => {
                for index in first..first + count {
                    self.guest_entry(machine, table, index);
                }
            }
            // The first mapping call is in the sample, so that it is never empty.
            _ if self.mapping_calls % EVERY == 1 => {
                let step = (count / OF_CALL).max(1);
                for index in (first..first + count).step_by(usize::try_from(step).unwrap_or(usize::MAX)) {
                    self.guest_entry(machine, table, index);
                }
            }
            _ => {}
        }
    }

    /// Compares live entries of all tables.
    pub(crate) fn at_mark(&mut self, machine: &Machine<'_>) {
        if self.map.is_none() {
            return;
        }
        for table in machine.calls.tables() {
            for hardware in table.hardware() {
                let mut live = Vec::new();
                hardware.for_each_live(0, hardware.geometry().entries(), |index, _| live.push(index));
                let step = if self.how == Verify::All { 1 } else { live.len().div_ceil(OF_TABLE).max(1) };
                for index in live.into_iter().step_by(step) {
                    self.hardware_entry(machine, table, hardware, index);
                }
            }
        }
    }

    /// Compares the hardware entries of one guest entry: all, or the first and the last.
    fn guest_entry(&mut self, machine: &Machine<'_>, table: &TceTable, index: u64) {
        for hardware in table.hardware() {
            let split = table.geometry().shift().get() - hardware.geometry().shift().get();
            let (first, last) = (index << split, (index << split) + ((1 << split) - 1));
            if self.how == Verify::All {
                for index in first..=last {
                    self.hardware_entry(machine, table, hardware, index);
                }
            } else {
                self.hardware_entry(machine, table, hardware, first);
                if last != first {
                    self.hardware_entry(machine, table, hardware, last);
                }
            }
        }
    }

    /// Compares one hardware entry, if it is live, with the guest's value.
    fn hardware_entry(&mut self, machine: &Machine<'_>, table: &TceTable, hardware: &HwTable, index: u64) {
        let Some(map) = &self.map else { return };
        let (guest, shift) = (table.geometry().shift(), hardware.geometry().shift());
        let split = guest.get() - shift.get();
        let inside = (index & ((1 << split) - 1)) << shift.get();
        let wanted = table.value(index >> split).page(guest).checked_add(inside);
        let wanted = wanted.and_then(|gpa| machine.ram().ua(gpa));
        let system = machine.granule().shift();
        let pages = 1 << shift.get().saturating_sub(system.get());
        let wrong = match hardware.hold_mapping(&mut self.translator, index) {
            Ok(None) => return,
            Ok(Some((mapping, _))) => misplaced(map, mapping.hpa(), wanted, pages, system),
            // Live, but it cannot be mapped.
            Err(_) => pages,
        };
        self.checked += pages;
        self.wrong += wrong;
    }
}

/// How many of the `pages` system pages from `host` on are not those at `wanted`.
fn misplaced(map: &Pagemap, host: HostAddr, wanted: Option<UserAddr>, pages: u64, system: PageShift) -> u64 {
    let wrong = |page: u64| {
        let offset = page << system.get();
        let frame = wanted.and_then(|ua| map.page(ua.checked_add(offset)?).ok());
        let expected = host.align_down(system).checked_add(offset).map(PageBacking::Frames);
        frame.is_none() || frame != expected
    };
    (0..pages).filter(|&page| wrong(page)).count() as u64
}
