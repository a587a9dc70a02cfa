//! Regions that do not fit one index: small and large, far from each other, and more than 65,535 of them.

use prereg::{
    AddressKind, AddressSpace, Charge, ChargeError, DirtyPages, Granule, HostAddr, PageShift, PageSink, Pin,
    PinError, PinId, Registration, Translator, UserAddr, UserRange,
};
use prereg_sim::SimHost;

const K4: PageShift = PageShift::K4;
const BIG: u64 = 0x7f00_0000_0000;
const FAR: u64 = 0x5500_0000_0000;

fn register(space: &AddressSpace, host: &SimHost, ua: u64, pages: u64) -> Registration {
    space.register(&host.memory(ua, pages << 12)).unwrap()
}

/// Maps the byte at `ua` and checks the address.
fn reaches(t: &mut Translator, host: &SimHost, ua: u64) {
    let mapping = t.map(UserAddr::new(ua), K4).unwrap();
    assert_eq!(Some(mapping.hpa()), host.backs(ua), "{ua:#x}");
    t.unmap(mapping);
}

#[test]
fn small_regions_beside_a_large_one_come_and_go_under_a_translator() {
    let host = SimHost::new(Granule::K4);
    let space = super::builder(host.clone()).build().unwrap();
    let pages = if cfg!(miri) { 1 << 8 } else { 1 << 15 };
    let _big = register(&space, &host, BIG, pages);
    let (mut old, mut t) = (space.translator(), space.translator());
    let small = |index: u64| BIG + (pages << 12) + index * 0x3000 + if index % 5 == 0 { FAR } else { 0 };
    for round in 0..3 {
        // More than the list's limit, so that the index is rebuilt.
        let mut held: Vec<_> = (0..40).map(|index| register(&space, &host, small(index), 1)).collect();
        for index in 0..40 {
            reaches(&mut t, &host, small(index) + 5);
            let beside = UserAddr::new(small(index) + 0x1000);
            assert!(t.map(beside, K4).is_err(), "nothing is registered beside a small region");
        }
        reaches(&mut t, &host, BIG + 0x7777);
        for index in (0..40).rev().step_by(2) {
            held.remove(index).unregister().unwrap();
        }
        for index in 0..40u64 {
            let mapped = t.map(UserAddr::new(small(index)), K4).map(drop).is_ok();
            assert_eq!(mapped, index % 2 == 0, "round {round}, region {index}");
        }
        // It kept the first snapshot until now.
        reaches(&mut old, &host, BIG + 0x1000);
        drop(held);
    }
    drop((old, t, _big));
    host.assert_clean();
}

#[test]
fn a_translator_that_never_looks_again_keeps_no_slot_from_being_counted_right() {
    let host = SimHost::new(Granule::K4);
    let space = super::builder(host.clone()).build().unwrap();
    let _big = register(&space, &host, BIG, 64);
    let idle = space.translator();
    let mut t = space.translator();
    for index in 0..300 {
        let ua = BIG + 0x10_0000 + (index % 7) * 0x2000;
        let registration = register(&space, &host, ua, 1);
        let mapping = t.map(UserAddr::new(ua), K4).unwrap();
        let busy = registration.unregister().unwrap_err();
        assert_eq!(busy.mapped(), 1, "time {index}");
        t.unmap(mapping);
        busy.into_inner().unregister().unwrap();
        assert!(t.map(UserAddr::new(ua), K4).is_err());
    }
    drop((idle, t, _big));
    host.assert_clean();
}

#[test]
#[cfg_attr(miri, ignore = "miri takes hours for this many")]
fn more_regions_than_sixteen_bits_can_number() {
    const REGIONS: u64 = 65_536 + 300;
    let host = SimHost::new(Granule::K4);
    let space = super::builder(host.clone()).build().unwrap();
    let at = |index: u64| BIG + index * 0x2000;
    let mut held: Vec<_> = (0..REGIONS - 100).map(|index| register(&space, &host, at(index), 1)).collect();
    let mut t = space.translator();
    held.extend((REGIONS - 100..REGIONS).map(|index| register(&space, &host, at(index), 1)));
    for index in (0..REGIONS).step_by(251).chain(REGIONS - 320..REGIONS) {
        reaches(&mut t, &host, at(index));
    }
    let last = t.map(UserAddr::new(at(REGIONS - 1)), K4).unwrap();
    let busy = held.pop().unwrap().unregister().unwrap_err();
    assert_eq!(busy.mapped(), 1);
    t.unmap(last);
    busy.into_inner().unregister().unwrap();
    drop(t);
    assert!(Registration::unregister_many(held).is_empty());
    host.assert_clean();
}

/// A host whose addresses are computed by a formula.
struct Formula(fn(u64) -> u64);

// SAFETY: the addresses are invented, and no device exists.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for Formula {
    fn name(&self) -> &'static str {
        "formula"
    }
    fn granule(&self) -> Granule {
        Granule::K4
    }
    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }
    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        for offset in (0..range.bytes()).step_by(0x1000) {
            pages.push(HostAddr::new((self.0)(range.first().raw() + offset)), 1)?;
        }
        Ok(PinId::new(0))
    }
    fn unpin(&self, _pin: PinId, _range: UserRange, _dirty: DirtyPages<'_>) {}
}

impl Charge for Formula {
    fn charge(&self, _pages: u64) -> Result<(), ChargeError> {
        Ok(())
    }
    fn uncharge(&self, _pages: u64) {}
}

#[test]
fn every_byte_is_found_wherever_the_host_pages_are() {
    let formulas: [fn(u64) -> u64; 7] = [
        // One run: lower than any user address, at the very beginning, and higher than all.
        |ua| ua - BIG + 0x1000,
        |ua| ua - BIG,
        |ua| ua - BIG + 0x00f0_0000_0000_0000,
        |ua| ua - BIG + 0xfff0_0000_0000_0000,
        // Scattered, numbers of 4 bytes; the same in 8 bytes; some of each.
        |ua| (ua - BIG) * 3 + 0x1000,
        |ua| (ua - BIG) * 3 + 0x0700_0000_0000_0000,
        |ua| (ua - BIG) * 3 + if ua & 0x10_0000 == 0 { 0 } else { 1 << 50 },
    ];
    let memory = SimHost::new(Granule::K4);
    let pages: u64 = if cfg!(miri) { 96 } else { 1024 };
    for (index, formula) in formulas.into_iter().enumerate() {
        let space = super::builder(Formula(formula)).build().unwrap();
        let mut t = space.translator();
        // A second region at a higher address, so that the index begins elsewhere.
        let at = [BIG, BIG + (pages << 14)];
        let held = at.map(|at| space.register(&memory.memory(at, pages << 12)).unwrap());
        for at in at {
            for offset in (0..pages << 12).step_by(0xfff) {
                let ua = UserAddr::new(at + offset);
                let mapping = t.map(ua, K4).unwrap();
                let expected = formula(ua.raw() & !0xfff) | (ua.raw() & 0xfff);
                assert_eq!(mapping.hpa().raw(), expected, "formula {index} at {ua}");
                t.unmap(mapping);
            }
            let range = t.map_range(UserAddr::new(at + 0x1234), 0x9000).unwrap();
            let mut done = 0x1234;
            for run in range.runs() {
                for byte in [0, run.bytes - 1] {
                    let ua = at + done + byte;
                    let expected = formula(ua & !0xfff) | (ua & 0xfff);
                    assert_eq!(run.host.raw() + byte, expected, "formula {index} in a range");
                }
                done += run.bytes;
            }
            assert_eq!(done, 0x1234 + 0x9000);
            t.unmap_range(range);
        }
        drop(held);
    }
}

#[test]
fn device_memory_without_bound_costs_little() {
    let space = super::builder(SimHost::new(Granule::K4)).build().unwrap();
    let mut t = space.translator();
    // 2^52 bytes that start on an odd page: an index for it would have a trillion entries.
    let registration = space.register_device(UserAddr::new(0x1000), 1 << 52, HostAddr::new(0x3000)).unwrap();
    for offset in [0, 0x1234_5678_9000, (1 << 52) - 1] {
        let ua = UserAddr::new(0x1000 + offset);
        let mapping = t.map(ua, K4).unwrap();
        assert_eq!(mapping.hpa().raw(), 0x3000 + offset);
        t.unmap(mapping);
    }
    registration.unregister().unwrap();
}
