//! Blocks of table entries: every live entry owns one unit and releases it exactly once.

use prereg::{
    Access, AddressSpace, EntryBlock, Errno, Granule, Holder, HolderKind, HolderTotal, MapError, PageShift,
    UserAddr,
};
use prereg_sim::{MapSpec, SimHost};

const A: u64 = 0x7f00_0000_0000;
const K4: PageShift = PageShift::K4;
const TABLES: Holder = Holder { container: 7, kind: HolderKind::TableEntry };

fn a(page: u64) -> UserAddr {
    UserAddr::new(A + (page << 12))
}

struct Fixture {
    host: SimHost,
    space: AddressSpace,
    block: EntryBlock,
}

impl Fixture {
    fn new() -> Self {
        let host = SimHost::new(Granule::K4);
        let space = super::builder(host.clone()).build().unwrap();
        let block = EntryBlock::new(&space, K4, 64, TABLES).unwrap();
        Self { host, space, block }
    }

    fn mapped(&self) -> u64 {
        self.space.snapshot().regions.iter().map(|region| region.mapped).sum()
    }
}

#[test]
fn set_replace_clear_count_as_many_units_as_entries_live() {
    let w = Fixture::new();
    let registration = w.space.register(&w.host.memory(A, 16 << 12)).unwrap();
    let mut t = w.space.translator_for(TABLES);
    assert_eq!(w.block.set(&mut t, 3, a(5), Access::Read), Ok(None));
    assert_eq!(w.block.set(&mut t, 4, a(5), Access::ReadWrite), Ok(None));
    assert_eq!((w.mapped(), w.block.live()), (2, 2));
    assert_eq!(w.block.set(&mut t, 3, a(6), Access::Write), Ok(Some(Access::Read)));
    assert_eq!((w.mapped(), w.block.live()), (2, 2));
    assert_eq!(w.block.access(3), Some(Access::Write));
    assert_eq!(w.block.clear(&mut t, 3), Ok(Some(Access::Write)));
    assert_eq!(w.block.clear(&mut t, 3), Ok(None));
    assert_eq!(w.block.clear(&mut t, 1000), Ok(None));
    assert_eq!((w.mapped(), w.block.live()), (1, 1));
    assert_eq!(registration.state().unwrap().mappings, [HolderTotal { holder: TABLES, count: 1 }]);
    let registration = registration.unregister().unwrap_err().into_inner();
    assert_eq!(w.block.clear(&mut t, 4), Ok(Some(Access::ReadWrite)));
    registration.unregister().unwrap();
    w.host.assert_clean();
}

#[test]
fn a_refused_set_changes_nothing() {
    let w = Fixture::new();
    let _registration = w.space.register(&w.host.memory(A, 16 << 12)).unwrap();
    let mut t = w.space.translator_for(TABLES);
    w.block.set(&mut t, 0, a(1), Access::Read).unwrap();
    let before = w.block.view(0);
    let odd = UserAddr::new(A + 5);
    assert_eq!(w.block.set(&mut t, 0, odd, Access::Read).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(w.block.set(&mut t, 0, a(16), Access::Read).unwrap_err().errno(), Errno::EFAULT);
    let past = w.block.set(&mut t, 64, a(1), Access::Read).unwrap_err();
    assert_eq!((past, past.errno()), (MapError::NoEntry { index: 64, len: 64 }, Errno::EINVAL));
    assert_eq!(past.to_string(), "there is no entry 64: the block has 64 entries");
    let other = Fixture::new();
    let mut foreign = other.space.translator();
    assert_eq!(w.block.set(&mut foreign, 0, a(1), Access::Read), Err(MapError::Foreign));
    assert_eq!(w.block.clear(&mut foreign, 0), Err(MapError::Foreign));
    assert!(matches!(w.block.hold_mapping(&mut foreign, 0), Err(MapError::Foreign)));
    assert_eq!(w.block.view(0), before);
    assert_eq!(w.mapped(), 1);
}

#[test]
fn a_user_address_that_an_entry_cannot_remember_is_refused() {
    let w = Fixture::new();
    let high = 1u64 << 56;
    let _high = w.space.register(&w.host.memory(high, 1 << 12)).unwrap();
    let _below = w.space.register(&w.host.memory(high - (1 << 12), 1 << 12)).unwrap();
    let mut t = w.space.translator_for(TABLES);
    assert!(t.map(UserAddr::new(high), K4).is_ok(), "a translator has no such limit");
    let refused = w.block.set(&mut t, 0, UserAddr::new(high), Access::Read);
    assert_eq!(refused, Err(MapError::Unregistered { ua: UserAddr::new(high), shift: K4 }));
    let last = UserAddr::new(high - (1 << 12));
    w.block.set(&mut t, 0, last, Access::Read).unwrap();
    assert_eq!(w.block.view(0).unwrap().ua, last);
}

#[test]
fn an_entry_set_by_another_holder_is_counted_with_the_block() {
    let w = Fixture::new();
    let registration = w.space.register(&w.host.memory(A, 16 << 12)).unwrap();
    let other = Holder { container: 8, kind: HolderKind::InFlight };
    let (mut t, mut own) = (w.space.translator_for(other), w.space.translator_for(TABLES));
    w.block.set(&mut t, 0, a(1), Access::Read).unwrap();
    w.block.set(&mut t, 1, a(2), Access::Read).unwrap();
    let held = |count| vec![HolderTotal { holder: TABLES, count }];
    assert_eq!(registration.state().unwrap().mappings, held(2));
    w.block.clear(&mut own, 0).unwrap();
    assert_eq!(registration.state().unwrap().mappings, held(1));
    w.block.set(&mut t, 1, a(3), Access::Read).unwrap();
    assert_eq!(registration.state().unwrap().mappings, held(1));
    w.block.clear(&mut t, 1).unwrap();
    assert_eq!(registration.state().unwrap().mappings, []);
    registration.unregister().unwrap();
}

#[test]
fn an_entry_holds_the_pinned_address() {
    let w = Fixture::new();
    let _registration = w.space.register(&w.host.memory(A, 16 << 12)).unwrap();
    let mut t = w.space.translator_for(TABLES);
    w.block.set(&mut t, 9, a(3), Access::ReadWrite).unwrap();
    let view = w.block.view(9).unwrap();
    assert_eq!((view.ua, view.access), (a(3), Access::ReadWrite));
    assert_eq!((w.block.view(8), w.block.view(64)), (None, None));
    let (mapping, access) = w.block.hold_mapping(&mut t, 9).unwrap().unwrap();
    assert_eq!((Some(mapping.hpa()), access), (w.host.backs(a(3).raw()), Access::ReadWrite));
    w.block.clear(&mut t, 9).unwrap();
    assert_eq!(w.mapped(), 1, "the device's own use outlives the entry");
    drop(mapping);
    assert_eq!(w.mapped(), 0);
    assert!(w.block.hold_mapping(&mut t, 9).unwrap().is_none());
}

#[test]
fn dropping_a_block_gives_every_unit_back() {
    let w = Fixture::new();
    let registration = w.space.register(&w.host.memory(A, 64 << 12)).unwrap();
    let mut t = w.space.translator_for(TABLES);
    for i in 0..64 {
        w.block.set(&mut t, i as usize, a(i), Access::ReadWrite).unwrap();
    }
    assert_eq!(registration.state().unwrap().mappings, [HolderTotal { holder: TABLES, count: 64 }]);
    let Fixture { host, space, block } = w;
    drop(registration);
    drop(space);
    assert_eq!(host.pinned_pages(), 64, "mapped by another table");
    drop(t);
    drop(block);
    host.assert_clean();
}

#[test]
fn what_a_device_could_write_is_dirty_when_its_entry_goes() {
    let w = Fixture::new();
    let registration = w.space.register(&w.host.memory(A, 16 << 12)).unwrap();
    let mut t = w.space.translator_for(TABLES);
    for (index, page, access) in
        [(0, 2, Access::Read), (1, 4, Access::Write), (2, 6, Access::ReadWrite), (3, 8, Access::ReadWrite)]
    {
        w.block.set(&mut t, index, a(page), access).unwrap();
    }
    w.block.clear(&mut t, 0).unwrap();
    w.block.clear(&mut t, 1).unwrap();
    w.block.set(&mut t, 2, a(0), Access::Read).unwrap();
    drop(w.block);
    registration.unregister().unwrap();
    assert_eq!(w.host.written_pages(), [a(4), a(6), a(8)]);
}

#[test]
fn large_entries_mark_and_count_as_one() {
    let w = Fixture::new();
    let memory = w.host.map(A, 4 << 20, MapSpec::huge(PageShift::M2));
    let registration = w.space.register(&memory).unwrap();
    let block = EntryBlock::new(&w.space, PageShift::M2, 2, TABLES).unwrap();
    let mut t = w.space.translator_for(TABLES);
    block.set(&mut t, 0, UserAddr::new(A + (2 << 20)), Access::Write).unwrap();
    assert_eq!(w.mapped(), 1);
    block.clear(&mut t, 0).unwrap();
    registration.unregister().unwrap();
    assert_eq!(w.host.written_pages().len(), 512);
    assert_eq!(w.host.written_pages()[0], UserAddr::new(A + (2 << 20)));
}

#[test]
fn threads_that_fight_over_the_same_entries_keep_the_books() {
    let w = Fixture::new();
    let _registration = w.space.register(&w.host.memory(A, 16 << 12)).unwrap();
    let rounds = if cfg!(miri) { 40 } else { 100_000 };
    std::thread::scope(|scope| {
        for thread in 0..4u64 {
            let w = &w;
            scope.spawn(move || {
                let mut t = w.space.translator_for(TABLES);
                let mut random = thread + 1;
                for _ in 0..rounds {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let index = (random >> 40) as usize % 4;
                    let result = match random >> 60 {
                        0..=7 => {
                            w.block.set(&mut t, index, a((random >> 50) % 16), Access::ReadWrite).map(|_| ())
                        }
                        8..=13 => w.block.clear(&mut t, index).map(|_| ()),
                        14 => w.block.hold_mapping(&mut t, index).map(|taken| {
                            if let Some((mapping, _)) = taken {
                                assert_eq!(Some(mapping.hpa()), w.host.backs(mapping.ua().raw()));
                            }
                        }),
                        _ => {
                            if let Some(view) = w.block.view(index) {
                                assert_eq!(view.access, Access::ReadWrite);
                                assert!(view.ua >= a(0) && view.ua < a(16));
                            }
                            Ok(())
                        }
                    };
                    assert!(matches!(result, Ok(()) | Err(MapError::Contended)), "{result:?}");
                }
            });
        }
    });
    assert_eq!(w.mapped(), w.block.live());
    let Fixture { host, space, block } = w;
    drop(block);
    drop(space);
    host.assert_clean();
}
