//! Accesses against unmaps on several threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prereg::{Access, Errno};
use prereg_iommu::iova::HostSegment;

use crate::fixture::{Fixture, PAGE, iova, local, ua};

/// A simple pseudo-random generator.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Stops the other threads when dropped, by a panic too, so that a failure does not hang the test.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// I/O pages that the threads contend for.
const SPOTS: u64 = 4;

/// Each spot has a number of the user page behind it; a completed unmap increments the spot's count, and no access that began
/// before may still be under way then.
#[test]
fn no_access_is_inside_when_its_unmap_is_over() {
    let rounds = if cfg!(miri) { 8 } else { 2_000 };
    let fixture = Fixture::new();
    let inside: [AtomicU64; 64] = std::array::from_fn(|_| AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let waited = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (fixture, inside, stop) = (&fixture, &inside, &stop);
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                while !stop.load(Ordering::Relaxed) {
                    match fixture.map.hold(iova(numbers.below(SPOTS)), PAGE, Access::ReadWrite) {
                        Ok(held) => {
                            let Some(HostSegment::Local { ua: at, host, .. }) = held.host_segments().next()
                            else {
                                panic!("nothing behind it")
                            };
                            let page = (at.raw() - ua(0).raw()) / PAGE;
                            inside[page as usize].fetch_add(1, Ordering::SeqCst);
                            assert_eq!(Some(host), fixture.host.backs(at.raw()));
                            std::hint::spin_loop();
                            inside[page as usize].fetch_sub(1, Ordering::SeqCst);
                            drop(held);
                        }
                        Err(error) => {
                            assert!(matches!(error.errno(), Errno::EFAULT | Errno::ENXIO), "{error}");
                            std::thread::yield_now();
                        }
                    }
                }
            });
        }
        let (fixture, inside, stop, waited) = (&fixture, &inside, &stop, &waited);
        scope.spawn(move || {
            let _stops = Stops(stop);
            let mut numbers = Numbers(99);
            for round in 0..rounds {
                let spot = numbers.below(SPOTS);
                // No page is used by two mappings at a time: each spot has its own pages.
                let page = spot * 16 + round % 16;
                fixture.map.map(iova(spot), PAGE, local(page), Access::ReadWrite).unwrap();
                if round % 3 == 0 {
                    std::thread::yield_now();
                }
                let unmapping = fixture.map.unmap(iova(spot), PAGE).unwrap();
                if !unmapping.is_done() {
                    waited.fetch_add(1, Ordering::SeqCst);
                    while !unmapping.is_done() {
                        std::thread::yield_now();
                    }
                }
                assert_eq!(inside[page as usize].load(Ordering::SeqCst), 0);
                assert_eq!(fixture.mapped(), 0, "the unit is given back before anybody is told");
            }
        });
    });
    assert!(waited.load(Ordering::SeqCst) <= fixture.drains.count() && fixture.drains.count() <= rounds);
    assert!(fixture.map.snapshot().closing.is_empty());
    assert_eq!(fixture.map.snapshot().accesses, 0);
}

/// Threads that do everything concurrently leave nothing behind.
#[test]
fn everybody_at_once_leaves_nothing() {
    let rounds = if cfg!(miri) { 15 } else { 5_000 };
    let fixture = Fixture::new();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let fixture = &fixture;
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                let mut holds = Vec::new();
                for _ in 0..rounds {
                    let (at, pages) = (numbers.below(16), 1 + numbers.below(3));
                    match numbers.below(6) {
                        0 | 1 => {
                            let _ = fixture.map(at, pages, numbers.below(60));
                        }
                        2 => {
                            let _ = fixture.map.unmap(iova(at), pages * PAGE);
                        }
                        3 if numbers.below(50) == 0 => {
                            let _ = fixture.map.unmap_all();
                        }
                        3 => {
                            holds.pop();
                        }
                        _ => holds.extend(fixture.map.hold(iova(at), pages * PAGE, Access::Read)),
                    }
                    if holds.len() > 8 {
                        holds.clear();
                    }
                }
            });
        }
    });
    assert!(fixture.map.unmap_all().is_done());
    let state = fixture.map.snapshot();
    assert!(state.closing.is_empty() && state.bytes == 0);
    assert_eq!(fixture.mapped(), 0);
}
