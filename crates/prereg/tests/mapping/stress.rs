//! Random registers, unregisters, drains, maps, ranges and table entries on several threads; at the end nothing is
//! left.
//!
//! Runs for a fixed number of rounds; `PREREG_STRESS_ROUNDS` sets another number (a million take a few minutes).

use prereg::{Access, EntryBlock, Granule, Holder, HolderKind, MapError, PageShift, UserAddr};
use prereg_sim::{MapSpec, SimHost};

const A: u64 = 0x7f00_0000_0000;
const K4: PageShift = PageShift::K4;
/// Pages of each registered range: small, large, and one that the index of the others does not cover.
const RANGES: [(u64, u64); 6] = [(0, 16), (16, 16), (64, 64), (1024, 512), (4096, 1), (1 << 30, 8)];

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }
}

fn rounds() -> u64 {
    let asked = std::env::var("PREREG_STRESS_ROUNDS").ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(if cfg!(miri) { 60 } else { 30_000 })
}

#[test]
fn whatever_threads_do_at_random_the_books_balance() {
    let host = SimHost::new(Granule::K4);
    for (first, pages) in RANGES {
        let ua = A + (first << 12);
        // One range is contiguous on the host, the others are not.
        if pages == 512 {
            host.map(ua, pages << 12, MapSpec::huge(PageShift::M2))
        } else {
            host.memory(ua, pages << 12)
        };
    }
    let space = super::builder(host.clone()).build().unwrap();
    let holder = |container| Holder { container, kind: HolderKind::TableEntry };
    let block = EntryBlock::new(&space, K4, 64, holder(99)).unwrap();
    let (mapped, refused) = (std::sync::atomic::AtomicU64::new(0), std::sync::atomic::AtomicU64::new(0));
    // One range stays registered, so that a map can always succeed.
    let (first, pages) = RANGES[2];
    let standing = space.register(&host.range(A + (first << 12), pages << 12)).unwrap();
    std::thread::scope(|scope| {
        // Two threads that register and unregister.
        for seed in 0..2u64 {
            let (host, space, refused) = (&host, &space, &refused);
            scope.spawn(move || {
                let mut random = Random(seed + 1);
                let mut kept = Vec::new();
                for _ in 0..rounds() {
                    if kept.len() < 4 {
                        let (first, pages) = RANGES[random.below(6) as usize];
                        kept.push(space.register(&host.range(A + (first << 12), pages << 12)).unwrap());
                        continue;
                    }
                    let registration = kept.swap_remove(random.below(4) as usize);
                    match random.below(4) {
                        0 => drop(registration),
                        1 => drop(registration.drain()),
                        _ => {
                            if let Err(busy) = registration.unregister() {
                                refused.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                                kept.push(busy.into_inner());
                            }
                        }
                    }
                }
            });
        }
        // Three threads that map, one of them with the block's holder; translators are created and dropped.
        for thread in 0..3u64 {
            let (host, space, block, mapped) = (&host, &space, &block, &mapped);
            scope.spawn(move || {
                let mut random = Random(thread + 100);
                let mut t = space.translator_for(holder(97 + thread));
                let mut kept = Vec::new();
                for round in 0..rounds() {
                    let (first, pages) = RANGES[random.below(6) as usize];
                    let page = first + random.below(pages);
                    let ua = UserAddr::new(A + (page << 12));
                    match random.below(8) {
                        0..=2 => match t.map(ua, K4) {
                            Ok(mapping) => {
                                assert_eq!(Some(mapping.hpa()), host.backs(ua.raw()));
                                assert!(host.pin_count(ua.raw()) >= 1, "mapped and not pinned");
                                mapped.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                                kept.push(mapping);
                            }
                            Err(MapError::Unregistered { .. } | MapError::Closing { .. }) => {}
                            Err(error) => panic!("{error}"),
                        },
                        3 => {
                            if let Ok(range) = t.map_range(ua, (1 + random.below(pages)) << 12) {
                                let total: u64 = range.runs().map(|run| run.bytes).sum();
                                assert_eq!(total, range.bytes());
                                assert_eq!(range.runs().next().map(|run| run.host), host.backs(ua.raw()));
                                t.unmap_range(range);
                            }
                        }
                        4 => {
                            let _ = block.set(&mut t, random.below(64) as usize, ua, Access::ReadWrite);
                        }
                        5 => {
                            let _ = block.clear(&mut t, random.below(64) as usize);
                        }
                        _ => {
                            if !kept.is_empty() {
                                let mapping = kept.swap_remove(random.below(kept.len() as u64) as usize);
                                if random.below(2) == 0 { t.unmap(mapping) } else { drop(mapping) }
                            }
                        }
                    }
                    if kept.len() > 20 {
                        kept.clear();
                    }
                    if round % 1000 == 999 {
                        t = space.translator_for(holder(97 + thread));
                    }
                }
            });
        }
    });
    eprintln!("mapped {mapped:?}, refused {refused:?}");
    assert!(mapped.into_inner() > 0);
    drop(block);
    drop(standing);
    space.reap();
    assert_eq!(space.snapshot().regions, []);
    host.assert_clean();
    // A new registration of everything succeeds.
    for (first, pages) in RANGES {
        let registration = space.register(&host.range(A + (first << 12), pages << 12)).unwrap();
        assert_eq!(registration.state().unwrap().mapped, 0);
        registration.unregister().unwrap();
    }
}
