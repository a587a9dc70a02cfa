//! Wherever a region lies and whatever its neighbours are, it is found, counted and refused like any other: in cells, beside
//! them, past the last slot that a cell can name.
#![expect(clippy::unwrap_used, reason = "a test says by panicking")]

use prereg::{AddressSpace, Errno, Granule, HostAddr, PageShift, Registration, Translator, UserAddr};
use prereg_sim::SimHost;

const K4: PageShift = PageShift::K4;

fn world() -> (SimHost, AddressSpace) {
    let host = SimHost::new(Granule::K4);
    (host.clone(), AddressSpace::new(host))
}

/// Maps first and last page of a region of ordinary memory, and not the bytes around it.
fn is_found(host: &SimHost, t: &mut Translator, registration: &Registration) {
    let (first, last) = (registration.range().first(), registration.range().last());
    for ua in [first, last] {
        let mapping = t.map(ua, K4).unwrap();
        assert_eq!(Some(mapping.hpa()), host.backs(ua.raw()));
        assert_eq!(registration.state().unwrap().mapped, 2);
        t.unmap(mapping);
    }
    for outside in [first.raw() - 1, last.raw() + 1] {
        assert_eq!(t.map(UserAddr::new(outside), K4).unwrap_err().errno(), Errno::EFAULT, "{outside:#x}");
    }
}

#[test]
fn a_page_beside_a_large_region_and_regions_far_apart() {
    let (host, space) = world();
    let mut t = space.translator();
    let large = if cfg!(miri) { 64 << 12 } else { 1 << 30 };
    let ranges = [
        (0x7f00_0000_0000, large),
        (0x7f00_0000_0000 + large + 0x3000, 0x1000),
        (0x5500_0000_0000, 0x8000),
        (0x10_0000, 0x2000),
        (0x7f80_0000_1000, 0x3000),
    ];
    let mut registrations = Vec::new();
    for (ua, bytes) in ranges {
        registrations.push(space.register(&host.memory(ua, bytes)).unwrap());
        for registration in &registrations {
            is_found(&host, &mut t, registration);
        }
    }
    // The same for a translator that comes late, and while they go one by one.
    let mut late = space.translator();
    while let Some(registration) = registrations.pop() {
        let ua = registration.ua();
        registrations
            .iter()
            .chain([&registration])
            .for_each(|registration| is_found(&host, &mut late, registration));
        registration.unregister().unwrap();
        // Both looked at the newest snapshot now.
        for t in [&mut late, &mut t] {
            assert!(t.map(ua, K4).is_err());
            assert_eq!(t.map(ua, K4).unwrap_err().errno(), Errno::EFAULT);
        }
    }
    host.assert_clean();
}

#[test]
fn device_memory_without_bound_costs_little() {
    let (_host, space) = world();
    let mut t = space.translator();
    // 2^52 bytes that start on an odd page: cells for it would be a trillion.
    let registration = space.register_device(UserAddr::new(0x1000), 1 << 52, HostAddr::new(0x3000)).unwrap();
    for offset in [0, 0x1234_5678_9000, (1 << 52) - 1] {
        let ua = UserAddr::new(0x1000 + offset);
        let mapping = t.map(ua, K4).unwrap();
        assert_eq!(mapping.hpa().raw(), 0x3000 + offset);
        t.unmap(mapping);
    }
    registration.unregister().unwrap();
}

#[test]
fn more_regions_than_a_cell_can_name() {
    let count: u64 = if cfg!(miri) { 40 } else { 66_000 };
    let (_host, space) = world();
    let mut t = space.translator();
    let at = |n: u64| UserAddr::new(0x7f00_0000_0000 + n * 0x2000);
    let mut registrations: Vec<_> = (0..count)
        .map(|n| space.register_device(at(n), 0x1000, HostAddr::new((1 << 40) + n * 0x1000)).unwrap())
        .collect();
    for n in (0..count).step_by(97).chain([count - 1]) {
        let mapping = t.map(at(n), K4).unwrap();
        assert_eq!(mapping.hpa().raw(), (1 << 40) + n * 0x1000);
        let registration = registrations.remove(n as usize);
        let registration = registration.unregister().unwrap_err().into_inner();
        t.unmap(mapping);
        registrations.insert(n as usize, registration);
    }
    assert!(Registration::unregister_many(registrations).is_empty());
    assert!(!space.is_preregistered());
    assert!(t.map(at(0), K4).is_err());
}
