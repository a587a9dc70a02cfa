//! A guest on the simulated host: memory, an address space, one table, and shorthands for calls.

use std::collections::HashMap;
use std::sync::Arc;

use prereg::{AddressSpace, BusAddr, Granule, GuestAddr, PageShift, Registration, Translator};
use prereg_iommu::{
    Geometry, GuestRead, HReturn, HwTable, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Reply, Rules,
    Tce,
};
use prereg_sim::SimHost;

/// Guest-physical address of its memory, and the user address behind it.
pub(crate) const G: u64 = 0x10_0000;
pub(crate) const A: u64 = 0x7000_0000_0000;
pub(crate) const RAM: u64 = 1 << 20;

pub(crate) const LIOBN: u32 = 0x8000_0000;
pub(crate) const LIST: u64 = G + 0x8000;

pub(crate) const GRANULES: [Granule; 2] = [Granule::K4, Granule::K64];

/// Lists by guest address.
#[derive(Default, Clone)]
pub(crate) struct Lists(pub(crate) HashMap<u64, Vec<u64>>);

impl GuestRead for Lists {
    fn read_list(&self, at: GuestAddr, values: &mut [u64]) -> Result<(), NotRam> {
        let list = self.0.get(&at.raw()).ok_or(NotRam)?;
        values.copy_from_slice(list.get(..values.len()).ok_or(NotRam)?);
        Ok(())
    }
}

pub(crate) struct Guest {
    pub(crate) host: SimHost,
    pub(crate) space: Arc<AddressSpace>,
    pub(crate) translator: Translator,
    pub(crate) calls: Hypercalls,
    pub(crate) lists: Lists,
    pub(crate) ram: Option<Registration>,
}

pub(crate) fn window(start: u64, shift: PageShift, entries: u64) -> Geometry {
    Geometry::for_guest(BusAddr::new(start), shift, entries).unwrap()
}

pub(crate) fn slots() -> MemorySlots {
    let mut slots = MemorySlots::new();
    slots.insert(GuestAddr::new(G), prereg::UserAddr::new(A), RAM).unwrap();
    slots
}

impl Guest {
    /// A guest without tables whose memory is not registered.
    pub(crate) fn bare(granule: Granule, rules: Rules) -> Self {
        let host = SimHost::new(granule);
        host.memory(A, RAM);
        let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
        let translator = space.translator();
        let calls = Hypercalls::new(rules, slots());
        Self { host, space, translator, calls, lists: Lists::default(), ram: None }
    }

    /// The table of the scenarios of docs/specification.md: 256 guest pages of 64 KiB at bus address 0, registered memory, and
    /// one hardware table of 4 KiB pages.
    pub(crate) fn of_the_scenarios(granule: Granule, rules: Rules) -> Self {
        let mut guest = Self::bare(granule, rules);
        guest.register(A, RAM);
        guest.create(window(0, PageShift::K64, 256));
        guest.attach(PageShift::K4);
        guest
    }

    pub(crate) fn register(&mut self, ua: u64, bytes: u64) {
        self.ram = Some(self.space.register(&self.host.memory(ua, bytes)).unwrap());
    }

    pub(crate) fn create(&mut self, geometry: Geometry) {
        self.calls.create(Liobn::new(LIOBN), geometry).unwrap();
    }

    pub(crate) fn attach(&mut self, shift: PageShift) -> Arc<HwTable> {
        let table = self.calls.table_mut(Liobn::new(LIOBN)).unwrap();
        let hardware =
            Arc::new(HwTable::new(self.space.clone(), table.geometry().split(shift).unwrap(), 7).unwrap());
        table.attach(hardware.clone()).unwrap();
        hardware
    }

    pub(crate) fn hardware(&self) -> Vec<Arc<HwTable>> {
        self.calls.table(Liobn::new(LIOBN)).unwrap().hardware().cloned().collect()
    }

    pub(crate) fn call(&mut self, call: Hypercall) -> Reply {
        self.calls.call(&mut self.translator, &self.lists, call)
    }

    pub(crate) fn fast(&mut self, call: Hypercall) -> HReturn {
        self.calls.fast(&mut self.translator, &self.lists, call).code
    }

    /// Puts `values` into guest memory; returns the call that writes them from entry `ioba` on.
    pub(crate) fn list(&mut self, ioba: u64, values: &[u64]) -> Hypercall {
        self.lists.0.insert(LIST, values.to_vec());
        indirect(ioba, LIST, values.len() as u64)
    }

    /// The guest-visible value at `ioba`.
    pub(crate) fn value(&mut self, ioba: u64) -> u64 {
        let reply = self.call(get(ioba));
        assert_eq!(reply.code, HReturn::SUCCESS);
        reply.value.unwrap().raw()
    }

    /// Live mappings of the region at `A`.
    pub(crate) fn mapped(&self) -> u64 {
        self.mapped_at(A)
    }

    pub(crate) fn mapped_at(&self, ua: u64) -> u64 {
        self.space.find(prereg::UserAddr::new(ua), 1).map_or(0, |region| region.mapped)
    }

    pub(crate) fn live(&self) -> u64 {
        self.hardware().iter().map(|table| table.live()).sum()
    }

    /// Drops everything and asserts that the host is as before.
    pub(crate) fn end(mut self) {
        let ram = self.ram.take();
        self.end_with(ram);
    }

    /// [`end`](Self::end) with registrations that the test holds.
    pub(crate) fn end_with(self, registrations: impl IntoIterator<Item = Registration>) {
        let Self { host, space, translator, calls, .. } = self;
        drop((calls, translator));
        for registration in registrations {
            registration.unregister().unwrap();
        }
        drop(space);
        host.assert_clean();
    }
}

pub(crate) fn get(ioba: u64) -> Hypercall {
    Hypercall::Get { liobn: LIOBN.into(), ioba: BusAddr::new(ioba) }
}

pub(crate) fn put(ioba: u64, tce: u64) -> Hypercall {
    Hypercall::Put { liobn: LIOBN.into(), ioba: BusAddr::new(ioba), tce: Tce::new(tce) }
}

pub(crate) fn stuff(ioba: u64, tce: u64, pages: u64) -> Hypercall {
    Hypercall::Stuff { liobn: LIOBN.into(), ioba: BusAddr::new(ioba), tce: Tce::new(tce), pages }
}

pub(crate) fn indirect(ioba: u64, list: u64, pages: u64) -> Hypercall {
    Hypercall::PutIndirect {
        liobn: LIOBN.into(),
        ioba: BusAddr::new(ioba),
        list: GuestAddr::new(list),
        pages,
    }
}

/// Runs a scenario under KVM's rules with each system page size, and asserts that nothing is left on the host.
pub(crate) fn on_each_granule(scenario: impl Fn(&mut Guest)) {
    for granule in GRANULES {
        let mut guest = Guest::of_the_scenarios(granule, Rules::Kvm);
        scenario(&mut guest);
        assert_eq!(guest.mapped(), guest.live(), "one unit an entry");
        guest.end();
    }
}
