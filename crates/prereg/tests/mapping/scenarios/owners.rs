//! Scenarios 55 to 60: readers with old snapshots, owners that are dropped, many owners at once.

use std::sync::Barrier;

use prereg::{Errno, Holder, HolderKind};

use super::fixture::scenarios;

scenarios! {
    fn scenario_55_a_lagging_reader_is_safe_and_refused(w) {
        let reg = w.reg_a();
        // Keeps a snapshot that names A, like a reader inside a read section.
        let mut t = w.space.translator();
        t.check(w.at(0), w.shift()).unwrap();
        reg.unregister().unwrap();
        assert_eq!(w.host.pinned_pages(), 0);
        assert_eq!(w.space.snapshot().unreclaimed, 1, "the header stays for the reader");
        assert!(t.map(w.at(0), w.shift()).is_err());
        drop(t);
        w.reg_a().unregister().unwrap();
        assert_eq!(w.space.snapshot().unreclaimed, 0);
        w.teardown();
    }

    fn scenario_56_the_owner_goes_idle_and_everything_is_released(w) {
        let reg = w.reg_a();
        let t = w.space.translator();
        let host = w.host.clone();
        drop(w);
        host.assert_clean();
        drop((reg, t));
        host.assert_clean();
    }

    fn scenario_57_the_owner_goes_mapped_and_the_last_unmap_releases(w) {
        let reg = w.reg_a();
        let mut t = w.space.translator();
        let (one, two) = (t.map(w.at(0), w.shift()).unwrap(), t.map(w.at(1), w.shift()).unwrap());
        let (host, shift, ua) = (w.host.clone(), w.shift(), w.at(2));
        drop(w);
        assert_eq!(host.pinned_pages(), 16);
        assert_eq!(t.map(ua, shift).unwrap_err().errno(), Errno::ENXIO);
        drop(one);
        assert_eq!(host.pinned_pages(), 16);
        drop((reg, t));
        drop(two);
        host.assert_clean();
    }

    fn scenario_58_preregistered_follows_the_list(w) {
        assert!(!w.space.is_preregistered());
        let reg = w.reg_a();
        assert!(w.space.is_preregistered());
        reg.unregister().unwrap();
        assert!(!w.space.is_preregistered());
        w.teardown();
    }

    fn scenario_59_the_owner_pays_whoever_lets_go(w) {
        let other = super::fixture::Fixture::new(w.granule);
        let reg = w.reg_a();
        let _theirs = other.reg_a();
        std::thread::scope(|scope| {
            scope.spawn(|| reg.unregister().unwrap());
        });
        assert_eq!(w.charged(), 0);
        assert_eq!(other.charged(), 16);
        other.teardown();
        w.teardown();
    }

    fn scenario_60_many_register_one_range_and_share_one_region(w) {
        let threads = if cfg!(miri) { 3 } else { 8 };
        for _ in 0..if cfg!(miri) { 2 } else { 50 } {
            let barrier = Barrier::new(threads);
            let registrations: Vec<_> = std::thread::scope(|scope| {
                let register = |container: usize| {
                    let (barrier, w) = (&barrier, &w);
                    scope.spawn(move || {
                        barrier.wait();
                        let holder = Holder { container: container as u64, kind: HolderKind::Other };
                        w.space.register_for(&w.mem(0, 16), holder).unwrap()
                    })
                };
                let handles: Vec<_> = (0..threads).map(register).collect();
                handles.into_iter().map(|handle| handle.join().unwrap()).collect()
            });
            let state = registrations[0].state().unwrap();
            assert_eq!(state.used, threads as u64);
            assert_eq!(state.registrations.len(), threads);
            assert_eq!(w.charged(), 16);
            assert_eq!(w.host.pin_count(w.at(0).raw()), 1);
            drop(registrations);
            w.host.assert_clean();
        }
        w.teardown();
    }
}
