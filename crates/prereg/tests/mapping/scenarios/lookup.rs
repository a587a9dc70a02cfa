//! Scenarios 14 to 37: shapes, lookup, translation, page sizes, bad ranges.

use prereg::{Errno, MapError, PageShift, RegisterError, UserAddr};
use prereg_sim::MapSpec;

use super::fixture::{A, Fixture, scenarios};

/// Asserts that registering `pages` pages from page `first` on is refused for overlap and changes nothing.
fn overlaps(w: &Fixture, first: u64, pages: u64) {
    let before = w.space.snapshot();
    let error = w.space.register(&w.mem(first, pages)).unwrap_err();
    assert!(matches!(error, RegisterError::Overlap { .. }), "{error}");
    assert_eq!(error.errno(), Errno::EINVAL);
    assert_eq!(w.space.snapshot(), before);
    assert_eq!(w.charged(), 16);
    for page in 0..16 {
        assert_eq!(w.host.pin_count(w.at(page).raw()), 1);
    }
}

fn page(shift: u32) -> PageShift {
    PageShift::new(shift).unwrap()
}

scenarios! {
    fn scenario_14_new_refuses_what_get_or_new_shares(w) {
        let reg = w.reg_a();
        let error = w.space.register_new(&w.mem(0, 16)).unwrap_err();
        assert!(matches!(error, RegisterError::Exists { .. }));
        assert_eq!(error.errno(), Errno::EINVAL);
        let again = w.reg_a();
        assert_eq!(w.counters(&again), (2, 1));
        drop((reg, again));
        w.teardown();
    }

    fn scenario_15_half_overlap_is_refused(w) {
        let _reg = w.reg_a();
        overlaps(&w, 8, 16);
        w.teardown();
    }

    fn scenario_16_a_part_is_refused(w) {
        let _reg = w.reg_a();
        overlaps(&w, 4, 4);
        w.teardown();
    }

    fn scenario_17_a_superset_is_refused_before_the_limit_is_looked_at(w) {
        let _reg = w.space.register(&w.mem(8, 16)).unwrap();
        let error = w.space.register(&w.mem(0, 64)).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL);
        assert_eq!(w.charged(), 16);
        w.teardown();
    }

    fn scenario_18_touching_regions_are_two(w) {
        let (_a, _b) = (w.reg_a(), w.reg_b());
        assert_eq!(w.charged(), 32);
        assert_eq!(w.space.snapshot().regions.len(), 2);
        w.teardown();
    }

    fn scenario_19_same_start_other_length_is_refused(w) {
        let _reg = w.reg_a();
        overlaps(&w, 0, 8);
        w.teardown();
    }

    fn scenario_20_neighbours_are_not_stitched(w) {
        let (_a, _b) = (w.reg_a(), w.reg_b());
        assert!(w.space.find(w.at(15), 2 * w.p).is_none());
        w.teardown();
    }

    fn scenario_21_lookup_at_the_edges(w) {
        let _reg = w.reg_a();
        let found = |ua: UserAddr, bytes| w.space.find(ua, bytes).is_some();
        assert!(found(w.at(0), 16 * w.p));
        assert!(!found(w.at(0), 16 * w.p + 1));
        assert!(!found(UserAddr::new(A - 1), 1));
        assert!(found(UserAddr::new(A + 16 * w.p - 1), 1));
        w.teardown();
    }

    fn scenario_22_a_lookup_that_wraps_finds_nothing(w) {
        let _reg = w.reg_a();
        assert!(w.space.find(UserAddr::new(0u64.wrapping_sub(w.p)), 2 * w.p).is_none());
        assert!(w.space.find(w.at(15), u64::MAX - A).is_none());
        assert!(w.space.find(w.at(15), u64::MAX).is_none());
        w.teardown();
    }

    fn scenario_23_zero_bytes_lie_nowhere(w) {
        let _reg = w.reg_a();
        assert!(w.space.find(w.at(16), 0).is_none());
        assert!(w.space.find(w.at(3), 0).is_none());
        w.teardown();
    }

    fn scenario_24_translation_keeps_the_offset(w) {
        let _reg = w.reg_a();
        let mut t = w.space.translator();
        let ua = UserAddr::new(w.at(3).raw() + 5);
        let mapping = t.map(ua, w.shift()).unwrap();
        assert_eq!(Some(mapping.hpa()), w.host.backs(ua.raw()));
        drop(mapping);
        w.teardown();
    }

    fn scenario_25_translation_outside_is_efault(w) {
        let _reg = w.reg_a();
        let mut t = w.space.translator();
        for ua in [w.at(16), UserAddr::new(A - 1)] {
            let error = t.map(ua, w.shift()).unwrap_err();
            assert_eq!(error, MapError::Unregistered { ua, shift: w.shift() });
            assert_eq!(error.errno(), Errno::EFAULT);
            assert_eq!(t.check(ua, w.shift()), Err(error));
        }
        w.teardown();
    }

    fn scenario_26_alignment_of_the_start_limits_the_page(w) {
        let reg = w.space.register(&w.mem(1, 15)).unwrap();
        assert_eq!(reg.largest_page(), w.shift());
        w.teardown();
    }

    fn scenario_27_base_pages_do_not_make_a_large_page(w) {
        let _reg = w.reg_a();
        let mut t = w.space.translator();
        let larger = page(w.shift().get() + 1);
        let error = t.map(w.at(0), larger).unwrap_err();
        assert_eq!(error, MapError::TooLarge { ua: w.at(0), shift: larger, largest: w.shift() });
        assert_eq!(error.errno(), Errno::EFAULT);
        w.teardown();
    }

    fn scenario_28_hugetlb_memory_maps_with_its_page(w) {
        w.host.limit_pages(None);
        let memory = w.host.map(A, 4 << 20, MapSpec::huge(PageShift::M2));
        let reg = w.space.register(&memory).unwrap();
        assert_eq!(reg.largest_page(), PageShift::M2);
        let mut t = w.space.translator();
        let mapping = t.map(UserAddr::new(A + (2 << 20)), PageShift::M2).unwrap();
        assert_eq!(mapping.hpa().raw() % (2 << 20), 0);
        assert_eq!(t.map(UserAddr::new(A), page(22)).unwrap_err().errno(), Errno::EFAULT);
        drop(mapping);
        w.teardown();
    }

    fn scenario_29_hugetlb_first_then_base_pages(w) {
        w.host.limit_pages(None);
        w.host.map(A, 2 << 20, MapSpec::huge(PageShift::M2));
        let reg = w.space.register(&w.host.memory(A, 4 << 20)).unwrap();
        assert_eq!(reg.largest_page(), w.shift());
        let mut t = w.space.translator();
        for ua in [A, A + (2 << 20)] {
            assert_eq!(t.map(UserAddr::new(ua), PageShift::M2).unwrap_err().errno(), Errno::EFAULT);
        }
        // Parts can be queried.
        assert_eq!(reg.largest_page_in(UserAddr::new(A), 2 << 20), Some(PageShift::M2));
        assert_eq!(reg.largest_page_in(UserAddr::new(A + (2 << 20)), 2 << 20), Some(w.shift()));
        w.teardown();
    }

    fn scenario_30_base_pages_first_then_hugetlb(w) {
        w.host.limit_pages(None);
        w.host.map(A + (2 << 20), 2 << 20, MapSpec::huge(PageShift::M2));
        let reg = w.space.register(&w.host.memory(A, 4 << 20)).unwrap();
        assert_eq!(reg.largest_page(), w.shift());
        w.teardown();
    }

    fn scenario_31_contiguous_memory_counts_whatever_made_it_so(w) {
        // Linux counts transparent huge pages as base pages, because they can be split later. Here they are
        // pinned before their addresses are read, so contiguous pages stay contiguous (contract clause 9).
        w.host.limit_pages(None);
        let reg = w.space.register(&w.host.map(A, 4 << 20, MapSpec::huge(PageShift::M2))).unwrap();
        assert_eq!(reg.largest_page(), PageShift::M2);
        w.teardown();
    }

    fn scenario_32_the_length_limits_the_page(w) {
        w.host.limit_pages(None);
        w.host.map(A, 1 << 30, MapSpec::huge(PageShift::G1));
        let reg = w.space.register(&w.host.range(A, 2 << 20)).unwrap();
        assert_eq!(reg.largest_page(), PageShift::M2);
        w.teardown();
    }

    fn scenario_33_pages_below_the_system_page_share_it(w) {
        let reg = w.reg_a();
        let mut t = w.space.translator();
        let small = page(w.shift().get() - 2);
        let mut mappings = Vec::new();
        for i in 0..4 {
            let ua = UserAddr::new(w.at(7).raw() + i * small.bytes());
            let mapping = t.map(ua, small).unwrap();
            assert_eq!(Some(mapping.hpa()), w.host.backs(ua.raw()));
            mappings.push(mapping);
        }
        assert_eq!(w.counters(&reg), (1, 5));
        drop(mappings);
        assert_eq!(w.counters(&reg), (1, 1));
        w.teardown();
    }

    fn scenario_34_zero_pages_are_einval(w) {
        let error = w.space.register(&w.host.range(A, 0)).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL);
        assert_eq!(w.charged(), 0);
        w.teardown();
    }

    fn scenario_35_misaligned_ranges_are_einval(w) {
        w.mem(0, 32);
        for (ua, bytes) in [(A + 1, 16 * w.p), (A, 16 * w.p - 1), (A + w.p / 2, 16 * w.p)] {
            let error = w.space.register(&w.host.range(ua, bytes)).unwrap_err();
            assert!(matches!(error, RegisterError::Range(_)), "{error}");
            assert_eq!(error.errno(), Errno::EINVAL);
        }
        assert_eq!(w.charged(), 0);
        assert_eq!(w.space.snapshot().pins, 0);
        w.teardown();
    }

    fn scenario_36_ranges_that_reach_the_top_are_einval(w) {
        let top = 0u64.wrapping_sub(8 * w.p);
        for pages in [16, 8] {
            let error = w.space.register(&w.host.range(top, pages * w.p)).unwrap_err();
            assert_eq!(error.errno(), Errno::EINVAL);
        }
        w.teardown();
    }

    fn scenario_37_too_many_pages_are_enomem(w) {
        let huge = w.host.range(w.p, 0u64.wrapping_sub(2 * w.p));
        let error = w.space.register(&huge).unwrap_err();
        assert!(matches!(error, RegisterError::Charge { .. }), "{error}");
        assert_eq!(error.errno(), Errno::ENOMEM);
        assert_eq!(w.host.pinned_pages(), 0);
        w.teardown();
    }

}
