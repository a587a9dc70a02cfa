//! Scenarios 38 to 41: the locked-memory account.

use prereg::{ChargeError, Errno, RegisterError};

use super::fixture::{A, scenarios};

scenarios! {
    fn scenario_38_equality_with_the_limit_is_allowed(w) {
        w.host.limit_pages(16);
        let reg = w.reg_a();
        reg.unregister().unwrap();
        let error = w.space.register(&w.mem(0, 17)).unwrap_err();
        let RegisterError::Charge { error: over, .. } = error else { panic!("{error}") };
        assert_eq!(over, ChargeError::OverLimit { need: 17, charged: 0, limit: 16 });
        assert_eq!(error.errno(), Errno::ENOMEM);
        assert_eq!(w.charged(), 0);
        w.teardown();
    }

    fn scenario_39_privilege_passes_the_limit_and_still_counts(w) {
        w.host.limit_pages(16);
        w.host.privileged(true);
        let _reg = w.space.register(&w.mem(0, 64)).unwrap();
        assert_eq!(w.charged(), 64);
        w.host.privileged(false);
        assert_eq!(w.space.register(&w.mem(64, 1)).unwrap_err().errno(), Errno::ENOMEM);
        w.teardown();
    }

    fn scenario_40_other_locks_share_the_limit(w) {
        w.host.limit_pages(16);
        w.host.lock_pages(10).unwrap();
        assert_eq!(w.space.register(&w.mem(0, 8)).unwrap_err().errno(), Errno::ENOMEM);
        w.host.unlock_pages(10);
        let _reg = w.space.register(&w.mem(0, 8)).unwrap();
        w.teardown();
    }

    fn scenario_41_aliases_are_charged_and_pinned_twice(w) {
        let _reg = w.reg_a();
        let alias = w.host.map_alias(A + 1024 * w.p, A, 16 * w.p);
        let _other = w.space.register(&alias).unwrap();
        assert_eq!(w.charged(), 32);
        for page in 0..16 {
            assert_eq!(w.host.pin_count(w.at(page).raw()), 2);
        }
        w.teardown();
    }
}
