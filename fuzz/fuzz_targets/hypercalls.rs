//! Arbitrary hypercalls of a guest under both rule sets, while the owner unregisters the memory.
//!
//! After every step the region's mappings equal the live entries of all hardware tables; at the end nothing is pinned or charged.

#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use prereg::{AddressSpace, BusAddr, Granule, GuestAddr, PageShift, Registration};
use prereg_iommu::{
    Geometry, HReturn, HwTable, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Rules, Tce,
};
use prereg_sim::SimHost;

const RAM_UA: u64 = 0x10_0000_0000;
const RAM_PAGES: u64 = 64;
/// Unregistered guest memory above the registered memory.
const LOOSE_PAGES: u64 = 16;
const PAGE: u64 = 4096;

#[derive(Arbitrary, Debug)]
struct Guest {
    kvm: bool,
    steps: Vec<Step>,
}

#[derive(Arbitrary, Debug)]
enum Step {
    /// Arbitrary registers.
    Raw {
        number: u64,
        arguments: [u64; 4],
        list: Vec<u64>,
    },
    /// Plausible registers.
    Get {
        place: Place,
    },
    Put {
        place: Place,
        value: Value,
    },
    Indirect {
        place: Place,
        list_page: u8,
        list_low: u8,
        pages: u16,
        list: Vec<Value>,
    },
    Stuff {
        place: Place,
        value: Value,
        pages: u32,
    },
    /// An access of a device.
    Access {
        place: Place,
    },
    /// The owner unregisters the memory, and registers it again after a success.
    Unregister,
}

#[derive(Arbitrary, Debug)]
struct Place {
    table: u8,
    entry: u16,
    low: u16,
}

#[derive(Arbitrary, Debug)]
struct Value {
    page: u8,
    far: bool,
    low: u16,
}

impl Value {
    fn raw(&self) -> u64 {
        let far = if self.far { 1 << 50 } else { 0 };
        far | (u64::from(self.page) << 12) | u64::from(self.low)
    }
}

struct Window {
    liobn: u64,
    shift: u32,
    start: u64,
}

/// Equal page sizes; a larger guest page over 4 KiB hardware pages; no hardware table, with the most entries: 8 MiB of values, which a
/// guest may fill.
const WINDOWS: [Window; 3] = [
    Window { liobn: 0x8000_0000, shift: 12, start: 0 },
    Window { liobn: 0x8000_0001, shift: 16, start: 1 << 59 },
    Window { liobn: 0x7100_0000, shift: 12, start: 0 },
];
const ENTRIES: [u64; 3] = [64, 16, 1 << 20];

impl Place {
    fn liobn(&self) -> u64 {
        WINDOWS.get(usize::from(self.table % 4)).map_or(0xdead, |window| window.liobn)
    }

    /// The low bits are mostly 0, as in an aligned address.
    fn ioba(&self) -> BusAddr {
        let window = &WINDOWS[usize::from(self.table % 4) % 3];
        let low = if self.low & 0x8000 != 0 { u64::from(self.low & 0x7fff) } else { 0 };
        BusAddr::new(window.start.wrapping_add(u64::from(self.entry) << window.shift).wrapping_add(low))
    }
}

impl Step {
    fn call(&self) -> Option<(Hypercall, Vec<u64>)> {
        let call = |call| Some((call, Vec::new()));
        match self {
            Self::Raw { number, arguments, list } => {
                Hypercall::decode(*number, *arguments).map(|call| (call, list.clone()))
            }
            Self::Get { place } => call(Hypercall::Get { liobn: place.liobn(), ioba: place.ioba() }),
            Self::Put { place, value } => {
                call(Hypercall::Put { liobn: place.liobn(), ioba: place.ioba(), tce: Tce::new(value.raw()) })
            }
            Self::Indirect { place, list_page, list_low, pages, list } => Some((
                Hypercall::PutIndirect {
                    liobn: place.liobn(),
                    ioba: place.ioba(),
                    list: GuestAddr::new((u64::from(*list_page) << 12) | u64::from(*list_low & 8)),
                    pages: u64::from(*pages % 600),
                },
                list.iter().map(Value::raw).collect(),
            )),
            Self::Stuff { place, value, pages } => call(Hypercall::Stuff {
                liobn: place.liobn(),
                ioba: place.ioba(),
                tce: Tce::new(value.raw()),
                pages: u64::from(*pages),
            }),
            Self::Access { .. } | Self::Unregister => None,
        }
    }
}

fuzz_target!(|guest: Guest| {
    let host = SimHost::new(Granule::K4);
    let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
    let ram = host.memory(RAM_UA, (RAM_PAGES + LOOSE_PAGES) * PAGE);
    let registered = host.range(RAM_UA, RAM_PAGES * PAGE);
    let mut registration: Option<Registration> = Some(space.register(&registered).unwrap());

    let mut slots = MemorySlots::new();
    slots.insert(GuestAddr::new(0), prereg::Memory::ua(&ram), prereg::Memory::bytes(&ram)).unwrap();
    let mut calls = Hypercalls::new(if guest.kvm { Rules::Kvm } else { Rules::Qemu }, slots);
    let mut hardware = Vec::new();
    for (window, entries) in WINDOWS.iter().zip(ENTRIES) {
        let shift = PageShift::new(window.shift).unwrap();
        let geometry = Geometry::for_guest(BusAddr::new(window.start), shift, entries).unwrap();
        let table = calls.create(Liobn::new(window.liobn as u32), geometry).unwrap();
        if entries < 1 << 20 {
            let pages = Geometry::new(geometry.start(), PageShift::K4, geometry.bytes() / PAGE).unwrap();
            let hardware_table = Arc::new(HwTable::new(space.clone(), pages, 1).unwrap());
            table.attach(hardware_table.clone()).unwrap();
            hardware.push(hardware_table);
        }
    }
    let mut translator = space.translator();

    for step in &guest.steps {
        if let Some((call, list)) = step.call() {
            // The caller limits walks over existing entries; here only a few exist.
            let read = |at: GuestAddr, values: &mut [u64]| {
                if at.raw() >= (RAM_PAGES + LOOSE_PAGES) * PAGE {
                    return Err(NotRam);
                }
                for (i, value) in values.iter_mut().enumerate() {
                    *value = list.get(i).copied().unwrap_or(0);
                }
                Ok(())
            };
            let reply = calls.call(&mut translator, &read, call);
            assert_ne!(reply.code, HReturn::TOO_HARD, "a guest never sees it: {call:?}");
        }
        match step {
            Step::Access { place } => {
                let liobn = Liobn::new(place.liobn() as u32);
                if let Ok(Some(found)) = calls.lookup(&mut translator, liobn, place.ioba()) {
                    if let Some((mapping, _)) = found.host {
                        assert!(
                            mapping.ua().raw() >= RAM_UA && mapping.ua().raw() < RAM_UA + RAM_PAGES * PAGE
                        );
                        assert_eq!(host.backs(mapping.ua().raw()), Some(mapping.hpa()));
                        translator.unmap(mapping);
                    }
                }
            }
            Step::Unregister => {
                let live: u64 = hardware.iter().map(|table| table.live()).sum();
                match registration.take().unwrap().unregister() {
                    Ok(()) => {
                        assert_eq!(live, 0);
                        assert_eq!(host.pinned_pages(), 0);
                        registration = Some(space.register(&registered).unwrap());
                    }
                    Err(busy) => {
                        assert_eq!(busy.mapped(), live);
                        registration = Some(busy.into_inner());
                    }
                }
            }
            _ => {}
        }
        let live: u64 = hardware.iter().map(|table| table.live()).sum();
        let state = space.find(prereg::UserAddr::new(RAM_UA), RAM_PAGES * PAGE).unwrap();
        assert_eq!(state.mapped, live);
        assert_eq!(host.pinned_pages(), RAM_PAGES);
    }

    drop(calls);
    drop(hardware);
    drop(translator);
    registration.unwrap().unregister().unwrap();
    host.assert_clean();
});
