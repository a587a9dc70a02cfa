//! Accesses against unmaps on several threads.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prereg::{Access, Errno};
use prereg_iommu::iova::Piece;

use crate::world::{PAGE, World, iova, local, ua};

/// A generator of numbers that need not be good.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

/// Stops the other threads when its own ends, by a panic too: a failure must not become a test without end.
struct Stops<'a>(&'a AtomicBool);

impl Drop for Stops<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// I/O pages that are fought over.
const SPOTS: u64 = 4;

/// Each spot has a number of the user page behind it; an unmap that is over bumps the spot's count of ends, and no access that
/// began before may still be inside then.
#[test]
fn no_access_is_inside_when_its_unmap_is_over() {
    let rounds = if cfg!(miri) { 8 } else { 5_000 };
    let world = World::new();
    let inside: [AtomicU64; 64] = std::array::from_fn(|_| AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let waited = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 0..2 {
            let (world, inside, stop) = (&world, &inside, &stop);
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                while !stop.load(Ordering::Relaxed) {
                    match world.map.hold(iova(numbers.below(SPOTS)), PAGE, Access::ReadWrite) {
                        Ok(held) => {
                            let Some(Piece::Local { ua: at, host, .. }) = held.pieces().next() else {
                                panic!("nothing behind it")
                            };
                            let page = (at.raw() - ua(0).raw()) / PAGE;
                            inside[page as usize].fetch_add(1, Ordering::SeqCst);
                            assert_eq!(Some(host), world.host.backs(at.raw()));
                            std::hint::spin_loop();
                            inside[page as usize].fetch_sub(1, Ordering::SeqCst);
                            drop(held);
                        }
                        Err(error) => {
                            assert!(matches!(error.errno(), Errno::EFAULT | Errno::ENXIO), "{error}");
                        }
                    }
                }
            });
        }
        let (world, inside, stop, waited) = (&world, &inside, &stop, &waited);
        scope.spawn(move || {
            let _stops = Stops(stop);
            let mut numbers = Numbers(99);
            for round in 0..rounds {
                let spot = numbers.below(SPOTS);
                // No page is used by two mappings at a time: the pages of a spot are its own.
                let page = spot * 16 + round % 16;
                world.map.map(iova(spot), PAGE, local(page), Access::ReadWrite).unwrap();
                if round % 3 == 0 {
                    std::thread::yield_now();
                }
                let unmapping = world.map.unmap(iova(spot), PAGE).unwrap();
                if !unmapping.is_done() {
                    waited.fetch_add(1, Ordering::SeqCst);
                    while !unmapping.is_done() {
                        std::thread::yield_now();
                    }
                }
                assert_eq!(inside[page as usize].load(Ordering::SeqCst), 0);
                assert_eq!(world.mapped(), 0, "the unit is given back before anybody is told");
            }
        });
    });
    assert!(waited.load(Ordering::SeqCst) <= world.bell.rung() && world.bell.rung() <= rounds);
    assert!(world.map.snapshot().closing.is_empty());
    assert_eq!(world.map.snapshot().accesses, 0);
}

/// Threads that all do everything leave nothing behind.
#[test]
fn everybody_at_once_leaves_nothing() {
    let rounds = if cfg!(miri) { 15 } else { 5_000 };
    let world = World::new();
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let world = &world;
            scope.spawn(move || {
                let mut numbers = Numbers(seed);
                let mut holds = Vec::new();
                for _ in 0..rounds {
                    let (at, pages) = (numbers.below(16), 1 + numbers.below(3));
                    match numbers.below(6) {
                        0 | 1 => {
                            let _ = world.map(at, pages, numbers.below(60));
                        }
                        2 => {
                            let _ = world.map.unmap(iova(at), pages * PAGE);
                        }
                        3 if numbers.below(50) == 0 => {
                            let _ = world.map.unmap_all();
                        }
                        3 => {
                            holds.pop();
                        }
                        _ => holds.extend(world.map.hold(iova(at), pages * PAGE, Access::Read)),
                    }
                    if holds.len() > 8 {
                        holds.clear();
                    }
                }
            });
        }
    });
    assert!(world.map.unmap_all().is_done());
    let state = world.map.snapshot();
    assert!(state.closing.is_empty() && state.bytes == 0);
    assert_eq!(world.mapped(), 0);
}
