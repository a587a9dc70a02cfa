//! Concurrent vCPUs: counts are exact and every mapping is of pinned memory.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::{AddressSpace, BusAddr, GuestAddr, PageShift, UserAddr};
use prereg_iommu::{HReturn, HwTable, Hypercalls, Liobn, NotRam, Rules};
use prereg_sim::SimHost;

use crate::guest::*;

fn guest(shift: PageShift) -> (SimHost, Arc<AddressSpace>, Hypercalls) {
    let host = SimHost::new(prereg::Granule::K4);
    let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
    let mut calls = Hypercalls::new(Rules::Kvm, slots());
    let geometry = window(0, shift, 8);
    let hardware = HwTable::new(space.clone(), geometry.split(PageShift::K4).unwrap(), 0).unwrap();
    calls.create(Liobn::new(LIOBN), geometry).unwrap().attach(Arc::new(hardware)).unwrap();
    (host, space, calls)
}

fn live(calls: &Hypercalls) -> u64 {
    calls.tables().flat_map(|table| table.hardware()).map(|table| table.live()).sum()
}

#[test]
fn vcpus_at_the_same_entries_lose_and_invent_no_unit() {
    for shift in [PageShift::K4, PageShift::K64] {
        let (host, space, calls) = guest(shift);
        let ram = space.register(&host.memory(A, RAM)).unwrap();
        std::thread::scope(|scope| {
            for vcpu in 0..4u64 {
                let (space, calls) = (&space, &calls);
                scope.spawn(move || {
                    let mut translator = space.translator();
                    let list = |_: GuestAddr, values: &mut [u64]| {
                        for (value, page) in values.iter_mut().zip(0..) {
                            *value = (G + ((page * 3 + vcpu) % 4) * shift.bytes()) | 3;
                        }
                        Ok(())
                    };
                    let mut state = vcpu + 1;
                    for _ in 0..3000 {
                        state = state
                            .wrapping_mul(6_364_136_223_846_793_005)
                            .wrapping_add(1_442_695_040_888_963_407);
                        let ioba = ((state >> 33) % 8) << shift.get();
                        let tce = (G + ((state >> 40) % 4) * shift.bytes()) | 3;
                        let call = match (state >> 50) % 8 {
                            0..=3 => put(ioba, tce),
                            4 => put(ioba, 0),
                            5 => stuff(0, 0, 8),
                            6 => indirect(0, LIST, 8),
                            _ => get(ioba),
                        };
                        assert_eq!(calls.call(&mut translator, &list, call).code, HReturn::SUCCESS);
                    }
                });
            }
        });
        assert_eq!(ram.state().unwrap().mapped, live(&calls));
        let mut translator = space.translator();
        let no_list = |_: GuestAddr, _: &mut [u64]| Err(NotRam);
        assert_eq!(calls.call(&mut translator, &no_list, stuff(0, 0, 8)).code, HReturn::SUCCESS);
        assert_eq!((live(&calls), ram.state().unwrap().mapped), (0, 0));
        ram.unregister().unwrap();
        drop((calls, translator, space));
        host.assert_clean();
    }
}

#[test]
fn memory_that_comes_and_goes_under_the_calls_is_never_mapped_unpinned() {
    let (host, space, calls) = guest(PageShift::K4);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for vcpu in 0..2u64 {
            let (space, calls, host, done) = (&space, &calls, &host, &done);
            scope.spawn(move || {
                let mut translator = space.translator();
                let no_list = |_: GuestAddr, _: &mut [u64]| Err(NotRam);
                let mut round = vcpu;
                while !done.load(Ordering::Relaxed) {
                    round += 1;
                    let ioba = (round % 8) << 12;
                    let code = calls.fast(&mut translator, &no_list, put(ioba, G | 3)).code;
                    assert!(matches!(code, HReturn::SUCCESS | HReturn::TOO_HARD), "{code}");
                    // The held page stays pinned, whatever the other thread does.
                    let found = calls.lookup(&mut translator, Liobn::new(LIOBN), BusAddr::new(ioba));
                    if let Ok(Some((mapping, _))) = found.map(|found| found.unwrap().host) {
                        assert!(host.pin_count(A) > 0);
                        translator.unmap(mapping);
                    }
                    assert_eq!(calls.call(&mut translator, &no_list, put(ioba, 0)).code, HReturn::SUCCESS);
                }
            });
        }
        let mut refused = 0;
        for _ in 0..300 {
            let mut ram = space.register(&host.memory(A, RAM)).unwrap();
            std::thread::yield_now();
            while let Err(busy) = ram.unregister() {
                refused += 1;
                ram = busy.into_inner();
                std::thread::yield_now();
            }
        }
        done.store(true, Ordering::Relaxed);
        eprintln!("unregister was refused {refused} times in 300 rounds");
    });
    assert_eq!(live(&calls), 0);
    assert!(space.find(UserAddr::new(A), 1).is_none());
    drop((calls, space));
    host.assert_clean();
}
