//! Accessors and debug output of the handles.

use prereg::{
    Access, AddressSpace, EntryBlock, EntryBlockError, Errno, Granule, Holder, HolderKind, HostRun, MapError,
    PageShift, RegisterError, UserAddr,
};
use prereg_sim::{MapSpec, SimHost};

const A: u64 = 0x7f00_0000_0000;
const FAR: u64 = 0x5500_0000_0000;
const K4: PageShift = PageShift::K4;

fn set_up() -> (SimHost, AddressSpace) {
    let host = SimHost::new(Granule::K4);
    (host.clone(), super::builder(host).build().unwrap())
}

#[test]
fn a_mapping_says_whether_its_region_was_registered_on_demand() {
    let (host, space) = set_up();
    let on_demand = Holder { container: 3, kind: HolderKind::OnDemand };
    let first = space.register_for(&host.memory(A, 2 << 12), on_demand).unwrap();
    // Further registrations of a region do not change its kind.
    let shared = [
        space.register(&host.range(A, 2 << 12)).unwrap(),
        space.register(&host.memory(FAR, 2 << 12)).unwrap(),
        space.register_for(&host.range(FAR, 2 << 12), on_demand).unwrap(),
    ];
    let mut t = space.translator();
    for (at, expected) in [(A, true), (FAR, false)] {
        assert_eq!(t.map_range(UserAddr::new(at), 1 << 12).unwrap().is_on_demand(), expected);
        assert_eq!(space.find(UserAddr::new(at), 1).unwrap().on_demand, expected);
    }
    drop((first, shared));
    assert_eq!(on_demand.to_string(), "registrations on demand of container 3");
}

#[test]
fn debug_output_names_what_a_caller_needs() {
    let (host, space) = set_up();
    let holder = Holder { container: 3, kind: HolderKind::InFlight };
    let registration = space.register(&host.memory(A, 4 << 12)).unwrap();
    let mut t = space.translator_for(holder);
    assert_eq!(t.holder(), holder);
    let mapping = t.map(UserAddr::new(A + 5), K4).unwrap();
    let range = t.map_range(UserAddr::new(A + 0x1000), 0x1800).unwrap();
    let block = EntryBlock::new(&space, K4, 3, holder).unwrap();
    let seen = [
        (format!("{t:?}"), "Translator { holder: Holder { container: 3, kind: InFlight }, .. }"),
        (
            format!("{registration:?}"),
            "Registration { range: ua 0x7f0000000000..=0x7f0000003fff, holder: Holder { container: 0, kind: Other }, .. }",
        ),
        (format!("{range:?}"), "RangeMapping { ua: ua:0x7f0000001000, bytes: 6144, .. }"),
        (format!("{block:?}"), "EntryBlock { shift: PageShift(12), len: 3, .. }"),
    ];
    for (text, expected) in seen {
        assert_eq!(text, expected);
    }
    assert!(format!("{mapping:?}").starts_with("Mapping { ua: ua:0x7f0000000005, host: hpa:0x"));
    assert!(format!("{space:?}").contains("backend: \"sim\""));
    assert!(format!("{:?}", super::builder(host)).contains("sim"));
    t.unmap(mapping);
    t.unmap_range(range);
    let draining = registration.drain();
    assert_eq!(
        format!("{draining:?}"),
        "Draining { range: ua 0x7f0000000000..=0x7f0000003fff, waiting: false }"
    );
    assert!(draining.is_done());
}

#[test]
fn a_block_of_entries_knows_its_size() {
    let (host, space) = set_up();
    let block = EntryBlock::new(&space, PageShift::K64, 5, Holder::default()).unwrap();
    assert_eq!((block.len(), block.is_empty(), block.shift()), (5, false, PageShift::K64));
    assert_eq!((block.memory_bytes(), block.live()), (80, 0));
    assert!(EntryBlock::new(&space, K4, 0, Holder::default()).unwrap().is_empty());
    let small = PageShift::new(11).unwrap();
    let refused = EntryBlock::new(&space, small, 1, Holder::default()).map(drop).unwrap_err();
    assert_eq!((refused, refused.errno()), (EntryBlockError::PageTooSmall { shift: small }, Errno::ENOMEM));
    assert_eq!(
        refused.to_string(),
        "entries of 2 KiB cannot be made: the smallest page of a table is 4 KiB; use 4 KiB or a larger page"
    );
    assert!(Access::Read.reads() && Access::ReadWrite.reads() && !Access::Write.reads());
    assert!(!Access::Read.writes() && Access::ReadWrite.writes() && Access::Write.writes());
    drop(host);
}

#[test]
fn check_answers_as_map_would_and_counts_nothing() {
    let (host, space) = set_up();
    let near = space.register(&host.map(A, 1 << 21, MapSpec::huge(PageShift::M2))).unwrap();
    let far = space.register(&host.memory(FAR, 2 << 12)).unwrap();
    let mut t = space.translator();
    let pages = if cfg!(miri) { 64 } else { 4096 };
    let later = space.register(&host.memory(A + (1 << 30), pages << 12)).unwrap();
    for (ua, shift) in [
        (A, K4),
        (A + 0x1234, PageShift::M2),
        (FAR + 0x1fff, K4),
        (FAR, PageShift::K64),
        (FAR + 0x2000, K4),
        (A + (1 << 21), K4),
        (A + (1 << 30), K4),
        (A + (1 << 30), PageShift::G1),
    ] {
        let ua = UserAddr::new(ua);
        let checked = t.check(ua, shift);
        assert_eq!(checked, t.map(ua, shift).map(drop), "{ua} {shift}");
    }
    for registration in [near, far, later] {
        assert_eq!(registration.state().unwrap().mapped, 0);
        let draining = space.share(registration.ua(), registration.bytes()).unwrap();
        let mapping = t.map(registration.ua(), K4).unwrap();
        drop((draining, registration));
        let ua = mapping.ua();
        assert_eq!(t.check(ua, K4), Err(MapError::Closing { ua }));
        assert_eq!(t.map(ua, K4).map(drop), Err(MapError::Closing { ua }));
    }
    assert_eq!(space.share(UserAddr::new(A), 1 << 12).map(drop), None, "nothing is registered any more");
    assert!(matches!(space.register(&host.range(A, 0)), Err(RegisterError::Range(_))));
}

/// Contiguous pages, scattered ones, one beyond the next, in each kind of page table.
#[test]
fn the_runs_of_a_range_are_its_pages() {
    let (host, space) = set_up();
    // A tenth under miri.
    let (many, paired, step) = if cfg!(miri) { (30, 20, 0x4_0000) } else { (300, 200, 0x1000) };
    let scattered = host.memory(A, many << 12);
    let huge = host.map(FAR, 4 << 20, MapSpec::huge(PageShift::M2));
    // Pages that are contiguous in pairs.
    let pairs = A + (1 << 30);
    for page in 0..paired {
        host.map_alias(pairs + page * 0x2000, FAR + page * 0x4000, 0x2000);
    }
    let _regions = [
        space.register(&scattered).unwrap(),
        space.register(&huge).unwrap(),
        space.register(&host.range(pairs, paired << 13)).unwrap(),
        space
            .register_device(UserAddr::new(A + (2 << 30)), 8 << 12, prereg::HostAddr::new(0x9_0000))
            .unwrap(),
    ];
    let mut t = space.translator();
    for (first, pages) in [(A, many), (FAR, 1024), (pairs, paired * 2), (A + (2 << 30), 8)] {
        let whole = t.map_range(UserAddr::new(first), pages << 12).unwrap();
        for (offset, bytes) in
            [(0, pages << 12), (5, 1), (0xfff, 2), (0x1fff, 0x2002), (0x800, (pages - 1) << 12)]
        {
            let part = t.map_range(UserAddr::new(first + offset), bytes).unwrap();
            let runs: Vec<HostRun> = whole.runs_in(UserAddr::new(first + offset), bytes).collect();
            assert_eq!(runs, part.runs().collect::<Vec<_>>());
            let mut at = first + offset;
            for run in &runs {
                // Every page of the run follows the one before; the next run begins elsewhere.
                for inside in (0..run.bytes).step_by(step).chain([run.bytes - 1]) {
                    let expected = if first == A + (2 << 30) {
                        Some(prereg::HostAddr::new(0x9_0000 + (at - first) + inside))
                    } else {
                        host.backs(at + inside)
                    };
                    assert_eq!(run.host.checked_add(inside), expected);
                }
                at += run.bytes;
            }
            assert_eq!(at, first + offset + bytes);
            for pair in runs.windows(2) {
                assert_ne!(
                    pair[0].host.checked_add(pair[0].bytes),
                    Some(pair[1].host),
                    "runs that meet are one"
                );
            }
            t.unmap_range(part);
        }
        for (ua, bytes) in [
            (first - 1, 2),
            (first, (pages << 12) + 1),
            (first + (pages << 12), 1),
            (first, 0),
            (first + 1, u64::MAX),
        ] {
            assert_eq!(whole.runs_in(UserAddr::new(ua), bytes).count(), 0);
        }
        t.unmap_range(whole);
    }
}
