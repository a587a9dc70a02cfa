//! The counted hot path with the real fence: readers execute none of their own, the last unregister interrupts them
//! all.
//!
//! The models prove the protocol with fences on both sides. That `membarrier` replaces the readers' fence is the
//! kernel's promise, which this test exercises. The back end records pins in plain flags without any ordering, so that
//! only the protocol keeps a reader from seeing a page unpinned under its mapping.

use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prereg::{
    AddressKind, AddressSpace, Charge, ChargeError, DirtyPages, Granule, HostAddr, MapError, Memory,
    PageShift, PageSink, Pin, PinError, PinId, UserAddr, UserRange,
};
use prereg_linux::Membarrier;

const REGIONS: u64 = 8;
const PAGES: u64 = 16;
const BASE: u64 = 0x7000_0000_0000;
const K4: PageShift = PageShift::K4;

/// Pins nothing and records which region is pinned.
#[derive(Clone, Default)]
struct Notes {
    pinned: Arc<[AtomicBool; REGIONS as usize]>,
}

impl Notes {
    fn of(&self, ua: u64) -> &AtomicBool {
        &self.pinned[((ua - BASE) / (PAGES * 2 * 4096)) as usize]
    }
}

// SAFETY: the addresses are invented, and no device exists.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for Notes {
    fn name(&self) -> &'static str {
        "notes"
    }
    fn granule(&self) -> Granule {
        Granule::K4
    }
    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }
    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        for page in 0..PAGES {
            pages.push(HostAddr::new((range.first().raw() << 1) + (page << 13)), 1)?;
        }
        self.of(range.first().raw()).store(true, Ordering::Relaxed);
        Ok(PinId::new(0))
    }
    fn unpin(&self, _pin: PinId, range: UserRange, _dirty: DirtyPages<'_>) {
        self.of(range.first().raw()).store(false, Ordering::Relaxed);
    }
}

impl Charge for Notes {
    fn charge(&self, _pages: u64) -> Result<(), ChargeError> {
        Ok(())
    }
    fn uncharge(&self, _pages: u64) {}
}

/// Addresses without memory.
struct Range(u64);

// SAFETY: there is no memory at the addresses, and the back end above accesses none.
#[expect(unsafe_code, reason = "the promise is kept by there being no memory")]
unsafe impl Memory for Range {
    fn ua(&self) -> UserAddr {
        UserAddr::new(BASE + self.0 * PAGES * 2 * 4096)
    }
    fn bytes(&self) -> u64 {
        PAGES * 4096
    }
    fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }
}

#[test]
fn nothing_is_unpinned_under_a_mapping() {
    let Some(fence) = Membarrier::shared() else {
        return eprintln!("skipped: this kernel has no membarrier, or a filter hides it");
    };
    let rounds: u64 =
        std::env::var("PREREG_STRESS_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20_000);
    let notes = Notes::default();
    let space = AddressSpace::builder(notes.clone()).barrier(fence).build().unwrap();
    let stop = AtomicBool::new(false);
    let (mapped, refused, released) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for seed in 0..2u64 {
            let (space, notes, stop, mapped) = (&space, &notes, &stop, &mapped);
            scope.spawn(move || {
                let mut t = space.translator();
                let mut random = seed + 1;
                let mut done = 0;
                while !stop.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    let region = (random >> 33) % REGIONS;
                    let ua = Range(region).ua().raw() + ((random >> 50) % PAGES) * 4096;
                    match t.map(UserAddr::new(ua), K4) {
                        Ok(mapping) => {
                            assert!(notes.of(ua).load(Ordering::Relaxed), "mapped, and not pinned");
                            assert_eq!(mapping.hpa().raw() >> 13 << 1, {
                                let first = Range(region).ua().raw();
                                ((first << 1) + ((ua - first) << 1)) >> 13 << 1
                            });
                            assert!(notes.of(ua).load(Ordering::Relaxed), "unpinned under a mapping");
                            t.unmap(mapping);
                            done += 1;
                        }
                        Err(MapError::Unregistered { .. } | MapError::Closing { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
                mapped.fetch_add(done, Ordering::Relaxed);
            });
        }
        for round in 0..rounds {
            let mut left = space.register(&Range(round % REGIONS)).ok();
            // Another region stays, so that readers always find one.
            let other = space.register(&Range((round + 3) % REGIONS)).ok();
            while let Some(registration) = left.take() {
                match registration.unregister() {
                    Ok(()) => {
                        released.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(busy) => {
                        refused.fetch_add(1, Ordering::Relaxed);
                        left = Some(busy.into_inner());
                    }
                }
            }
            drop(other);
        }
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!("mapped {mapped:?}, refused {refused:?}, released {released:?}");
    assert!(released.into_inner() > 0 && mapped.into_inner() > 0);
    space.reap();
    assert_eq!(space.snapshot().regions, []);
    assert!(notes.pinned.iter().all(|pinned| !pinned.load(Ordering::Relaxed)));
}
