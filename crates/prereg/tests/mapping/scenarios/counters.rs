//! Scenarios 1 to 13: the two counters.

use std::sync::mpsc::sync_channel;

use prereg::{Errno, MapError, RefUnderflow, Refusal, RundownRef};

use super::fixture::scenarios;

scenarios! {
    fn scenario_01_register_pins_and_charges_once(w) {
        let reg = w.reg_a();
        assert_eq!(w.counters(&reg), (1, 1));
        assert_eq!(w.charged(), 16);
        for page in 0..16 {
            assert_eq!(w.host.pin_count(w.at(page).raw()), 1);
        }
        reg.unregister().unwrap();
        w.teardown();
    }

    fn scenario_02_same_range_again_is_shared(w) {
        let reg = w.reg_a();
        let again = w.get_a();
        assert_eq!(w.counters(&reg), (2, 1));
        assert_eq!(w.counters(&again), (2, 1));
        assert_eq!(w.charged(), 16);
        assert_eq!(w.host.pin_count(w.at(0).raw()), 1);
        drop((reg, again));
        w.teardown();
    }

    fn scenario_03_the_last_put_unpins(w) {
        let (reg, again) = (w.reg_a(), w.get_a());
        again.unregister().unwrap();
        assert_eq!(w.counters(&reg), (1, 1));
        assert_eq!(w.charged(), 16);
        reg.unregister().unwrap();
        assert_eq!(w.charged(), 0);
        assert_eq!(w.host.pinned_pages(), 0);
        assert!(w.space.find(w.at(0), 1).is_none());
        w.teardown();
    }

    fn scenario_04_a_registration_cannot_be_put_twice(w) {
        // `unregister` consumes the handle; it can only be stale if its address space was dropped before.
        let reg = w.reg_a();
        let host = w.host.clone();
        w.teardown();
        let error = reg.unregister().unwrap_err();
        assert_eq!(error.errno(), Errno::ENOENT);
        assert_eq!(error.refusal(), &Refusal::Gone);
        drop(error);
        host.assert_clean();
    }

    fn scenario_05_put_while_mapped_is_busy_and_changes_nothing(w) {
        let reg = w.reg_a();
        let mut t = w.space.translator();
        let mapping = t.map(w.at(3), w.shift()).unwrap();
        let error = reg.unregister().unwrap_err();
        assert_eq!((error.errno(), error.mapped()), (Errno::EBUSY, 1));
        let reg = error.into_inner();
        assert_eq!(w.counters(&reg), (1, 2));
        assert_eq!(w.charged(), 16);
        drop(t.map(w.at(4), w.shift()).unwrap());
        drop(mapping);
        reg.unregister().unwrap();
        w.teardown();
    }

    fn scenario_06_busy_does_not_start_dying(w) {
        let reg = w.reg_a();
        let mut t = w.space.translator();
        let first = t.map(w.at(0), w.shift()).unwrap();
        let reg = reg.unregister().unwrap_err().into_inner();
        let second = t.map(w.at(0), w.shift()).unwrap();
        assert_eq!(w.counters(&reg), (1, 3));
        drop((first, second));
        reg.unregister().unwrap();
        w.teardown();
    }

    fn scenario_07_retry_after_the_unmap_succeeds(w) {
        let reg = w.reg_a();
        let mut t = w.space.translator();
        let mapping = t.map(w.at(0), w.shift()).unwrap();
        let reg = reg.unregister().unwrap_err().into_inner();
        t.unmap(mapping);
        assert_eq!(w.counters(&reg), (1, 1));
        reg.unregister().unwrap();
        assert_eq!(w.charged(), 0);
        w.teardown();
    }

    fn scenario_08_a_put_that_is_not_the_last_ignores_mappings(w) {
        let (reg, again) = (w.reg_a(), w.get_a());
        let mut t = w.space.translator();
        let mapping = t.map(w.at(0), w.shift()).unwrap();
        again.unregister().unwrap();
        assert_eq!(w.counters(&reg), (1, 2));
        drop(mapping);
        drop(reg);
        w.teardown();
    }

    fn scenario_09_put_put_busy_dec_put(w) {
        let (reg, again) = (w.reg_a(), w.get_a());
        let mut t = w.space.translator();
        let mapping = t.map(w.at(0), w.shift()).unwrap();
        again.unregister().unwrap();
        let error = reg.unregister().unwrap_err();
        assert_eq!(error.errno(), Errno::EBUSY);
        let reg = error.into_inner();
        assert_eq!(w.counters(&reg), (1, 2));
        drop(mapping);
        assert_eq!(w.counters(&reg), (1, 1));
        reg.unregister().unwrap();
        assert_eq!(w.charged(), 0);
        w.teardown();
    }

    fn scenario_10_inc_on_a_dead_region_is_enxio(w) {
        // No handle keeps a released region, so the region is closed while it is mapped: for ever, and not yet released.
        let reg = w.reg_a();
        let mut t = w.space.translator();
        let held = t.map(w.at(0), w.shift()).unwrap();
        let draining = reg.drain();
        for _ in 0..2 {
            let error = t.map(w.at(0), w.shift()).unwrap_err();
            assert_eq!(error, MapError::Closing { ua: w.at(0) });
            assert_eq!(error.errno(), Errno::ENXIO);
            assert_eq!(t.check(w.at(0), w.shift()), Err(error));
        }
        drop(held);
        assert!(draining.is_done());
        // Released: the lookup finds nothing.
        assert_eq!(t.map(w.at(0), w.shift()).unwrap_err(), MapError::Unregistered { ua: w.at(0), shift: w.shift() });
        w.teardown();
    }

    fn scenario_11_a_dec_too_many_is_reported_and_stays_at_one(w) {
        // A mapping cannot be released twice, because it is moved. The counter refuses and reports it.
        let rundown = RundownRef::new();
        assert_eq!(rundown.leave(), Err(RefUnderflow));
        assert_eq!(rundown.count(), 0);
        assert_eq!(rundown.try_close(), Ok(()));
        w.teardown();
    }

    fn scenario_12_a_dec_on_a_dead_region_is_refused(w) {
        let rundown = RundownRef::new();
        rundown.try_close().unwrap();
        assert_eq!(rundown.leave(), Err(RefUnderflow));
        assert!(rundown.enter().is_err(), "a dead region must not come back to life");
        w.teardown();
    }

    fn scenario_13_map_racing_the_last_put_has_two_outcomes(w) {
        let rounds = if cfg!(miri) { 30 } else { 5_000 };
        let memory = w.mem(0, 16);
        let (mut map_won, mut put_won) = (0, 0);
        let (start, started) = sync_channel::<()>(0);
        let (give, result) = sync_channel(1);
        let (space, ua, shift) = (&w.space, w.at(5), w.shift());
        std::thread::scope(|scope| {
            // Moved, so that a failure in the other thread ends this one.
            let start = start;
            scope.spawn(move || {
                let mut t = space.translator();
                for round in 0.. {
                    if started.recv().is_err() {
                        return;
                    }
                    t.refresh();
                    if started.recv().is_err() {
                        return;
                    }
                    // Closing takes longer than mapping, so that without a delay mapping wins every time.
                    for _ in 0..round * 7 % if cfg!(miri) { 8 } else { 4096 } {
                        std::hint::spin_loop();
                    }
                    give.send(t.map(ua, shift)).unwrap();
                }
            });
            for _ in 0..rounds {
                let reg = space.register(&memory).unwrap();
                // First for the snapshot that has the region, then for the race.
                start.send(()).unwrap();
                start.send(()).unwrap();
                let put = reg.unregister();
                match (result.recv().unwrap(), put) {
                    (Ok(mapping), Err(error)) => {
                        map_won += 1;
                        assert_eq!(error.errno(), Errno::EBUSY);
                        assert_eq!(w.host.pin_count(ua.raw()), 1);
                        drop(mapping);
                        error.into_inner().unregister().unwrap();
                    }
                    (Err(error), Ok(())) => {
                        put_won += 1;
                        // It found the closed ref, or the lookup found no region.
                        assert!(
                            matches!(error, MapError::Closing { .. } | MapError::Unregistered { .. }),
                            "{error}"
                        );
                    }
                    (Ok(mapping), Ok(())) => panic!("mapped {mapping:?} and unregistered"),
                    (Err(map), Err(put)) => panic!("neither won: {map}, {put}"),
                }
            }
        });
        eprintln!("map won {map_won} times, put {put_won} times");
        w.teardown();
    }
}
