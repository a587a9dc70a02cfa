//! Scenarios 42 to 54: memory that cannot be pinned, memory that is replaced, dirty marks, device memory.

use prereg::{Errno, HostAddr, PageShift, PinError, RegisterError, UserAddr};
use prereg_sim::{MapSpec, Protection};

use super::fixture::{A, Fixture, scenarios};

/// Asserts that registering A fails at page `at` and leaves nothing behind.
fn faults(w: &Fixture, at: u64) {
    let error = w.space.register(&w.host.range(A, 16 * w.p)).unwrap_err();
    let RegisterError::Pin { error: pin, .. } = error else { panic!("{error}") };
    assert!(matches!(pin, PinError::Fault { ua, .. } if ua == w.at(at)), "{pin}");
    assert_eq!(error.errno(), Errno::EFAULT);
    assert_eq!((w.charged(), w.host.pinned_pages()), (0, 0));
    assert!(!w.space.is_preregistered());
}

scenarios! {
    fn scenario_42_a_hole_is_efault(w) {
        w.mem(0, 16);
        w.host.unmap(w.at(5).raw(), w.p);
        faults(&w, 5);
        w.teardown();
    }

    fn scenario_43_a_hole_at_the_start_is_efault(w) {
        w.mem(1, 15);
        faults(&w, 0);
        w.teardown();
    }

    fn scenario_44_read_only_memory_is_efault(w) {
        w.host.map(A, 16 * w.p, MapSpec::protected(Protection::ReadOnly));
        faults(&w, 0);
        w.teardown();
    }

    fn scenario_45_device_memory_cannot_be_pinned(w) {
        w.mem(0, 16);
        w.host.map(w.at(9).raw(), w.p, MapSpec::unpinnable());
        faults(&w, 9);
        w.teardown();
    }

    fn scenario_46_a_fault_far_in_releases_what_came_before(w) {
        w.host.limit_pages(None);
        w.mem(0, 4096);
        w.host.unmap(w.at(4000).raw(), w.p);
        let error = w.space.register(&w.host.range(A, 4096 * w.p)).unwrap_err();
        assert_eq!(error.errno(), Errno::EFAULT);
        assert_eq!((w.charged(), w.host.pinned_pages()), (0, 0));
        w.teardown();
    }

    fn scenario_47_unmapped_memory_stays_pinned(w) {
        let reg = w.reg_a();
        let token = w.host.backs(w.at(2).raw()).unwrap();
        w.host.unmap(A, 16 * w.p);
        let mut t = w.space.translator();
        assert_eq!(t.map(w.at(2), w.shift()).unwrap().hpa(), token);
        assert_eq!(w.host.pinned_pages(), 16);
        reg.unregister().unwrap();
        w.teardown();
    }

    fn scenario_48_new_memory_at_the_old_address_is_not_noticed(w) {
        let reg = w.reg_a();
        let token = w.host.backs(w.at(2).raw()).unwrap();
        w.host.unmap(A, 16 * w.p);
        let again = w.reg_a();
        assert_eq!(w.counters(&again), (2, 1));
        let mut t = w.space.translator();
        let seen = t.map(w.at(2), w.shift()).unwrap();
        assert_eq!(seen.hpa(), token);
        assert_ne!(w.host.backs(w.at(2).raw()), Some(token));
        drop((seen, reg, again));
        w.teardown();
    }

    fn scenario_49_a_fork_leaves_pinned_pages_to_the_parent(w) {
        let _reg = w.reg_a();
        w.reg_b().unregister().unwrap();
        let (a, b) = (w.host.backs(A), w.host.backs(w.at(16).raw()));
        w.host.write_after_fork(A, 32 * w.p);
        assert_eq!(w.host.backs(A), a);
        assert_ne!(w.host.backs(w.at(16).raw()), b);
        let mut t = w.space.translator();
        assert_eq!(Some(t.map(w.at(0), w.shift()).unwrap().hpa()), a);
        w.teardown();
    }

    fn scenario_50_a_dirty_page_is_reported_once_at_release(w) {
        let reg = w.reg_a();
        let mut t = w.space.translator();
        t.mark_dirty(w.at(3));
        let token = t.map(w.at(3), w.shift()).unwrap();
        assert_eq!(token.hpa().raw() & w.shift().mask(), 0);
        drop(token);
        reg.unregister().unwrap();
        assert_eq!(w.host.written_pages(), [w.at(3)]);
        w.reg_a().unregister().unwrap();
        assert!(w.host.written_pages().is_empty());
        w.teardown();
    }

    fn scenario_51_dirty_marks_elsewhere_are_ignored(w) {
        let _device = w.space.register_device(w.at(64), 16 * w.p, HostAddr::new(1 << 40)).unwrap();
        let reg = w.reg_a();
        let mut t = w.space.translator();
        t.mark_dirty(w.at(32));
        t.mark_dirty(w.at(64));
        t.mark_dirty(UserAddr::new(u64::MAX));
        reg.unregister().unwrap();
        assert!(w.host.written_pages().is_empty());
        w.teardown();
    }

    fn scenario_52_device_memory_is_base_plus_offset(w) {
        let base = 1 << 40;
        let device = w.space.register_device(w.at(0), 16 * w.p, HostAddr::new(base)).unwrap();
        assert!(device.state().unwrap().device);
        let mut t = w.space.translator();
        let ua = UserAddr::new(w.at(9).raw() + 77);
        assert_eq!(t.map(ua, w.shift()).unwrap().hpa().raw(), base + 9 * w.p + 77);
        assert_eq!((w.charged(), w.host.pinned_pages(), w.host.pin_calls()), (0, 0, 0));
        device.unregister().unwrap();
        // The page of a device region is limited by its user address too (B13).
        let odd = w.space.register_device(w.at(1), 16 * w.p, HostAddr::new(base)).unwrap();
        assert_eq!(odd.largest_page(), w.shift());
        w.teardown();
    }

    fn scenario_53_device_regions_overlap_by_user_address_only(w) {
        let _ram = w.reg_a();
        let base = HostAddr::new(1 << 40);
        assert_eq!(w.space.register_device(w.at(8), 16 * w.p, base).unwrap_err().errno(), Errno::EINVAL);
        let _one = w.space.register_device(w.at(16), 16 * w.p, base).unwrap();
        let _two = w.space.register_device(w.at(32), 16 * w.p, base).unwrap();
        w.teardown();
    }

    fn scenario_54_is_devmem_tells_how_much_is_covered(w) {
        let base = 1u64 << 40;
        let _device = w.space.register_device(w.at(0), 16 * w.p, HostAddr::new(base)).unwrap();
        let last = HostAddr::new(base + 15 * w.p);
        let size = PageShift::new(w.shift().get() + 1).unwrap().bytes();
        assert_eq!(w.space.device_at(last, size), Some(w.p));
        assert_eq!(w.space.device_at(HostAddr::new(base), size), Some(size));
        assert_eq!(w.space.device_at(HostAddr::new(base + 16 * w.p), size), None);
        let _ram = w.space.register(&w.mem(16, 16)).unwrap();
        assert_eq!(w.space.device_at(w.host.backs(w.at(16).raw()).unwrap(), size), None);
        w.teardown();
    }
}
