//! Addresses, page sizes, ranges, error numbers and `RundownRef`: boundary values.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use prereg::{
    BusAddr, Busy, Closed, DrainResult, Errno, Granule, GuestAddr, HostAddr, Iova, LeaveResult, PageShift,
    RangeError, RefUnderflow, RundownRef, UserAddr, UserRange,
};

fn range(ua: u64, bytes: u64) -> UserRange {
    UserRange::new(UserAddr::new(ua), bytes, Granule::K4).unwrap()
}

#[test]
fn addresses_check_their_arithmetic() {
    let ua = UserAddr::new(0x5678);
    assert_eq!(ua.checked_add(8), Some(UserAddr::new(0x5680)));
    assert_eq!(ua.checked_sub(0x5678), Some(UserAddr::new(0)));
    assert_eq!(ua.checked_sub(0x5679), None);
    assert_eq!(UserAddr::new(u64::MAX).checked_add(1), None);
    assert_eq!(ua.offset_from(UserAddr::new(0x5000)), Some(0x678));
    assert_eq!(UserAddr::new(0x5000).offset_from(ua), None);
    assert_eq!(ua.align_down(PageShift::K4).raw(), 0x5000);
    assert_eq!(ua.align_down(PageShift::K64).raw(), 0);
    assert!(UserAddr::new(0x1_0000).is_aligned(PageShift::K64));
    assert!(!UserAddr::new(0x1_1000).is_aligned(PageShift::K64));
}

#[test]
fn addresses_are_printed_with_their_kind() {
    assert_eq!(UserAddr::new(0xabc).to_string(), "ua 0xabc");
    assert_eq!(HostAddr::new(0xabc).to_string(), "hpa 0xabc");
    assert_eq!(GuestAddr::new(0xabc).to_string(), "gpa 0xabc");
    assert_eq!(Iova::new(0xabc).to_string(), "iova 0xabc");
    assert_eq!(BusAddr::new(0xabc).to_string(), "ioba 0xabc");
}

#[test]
fn page_sizes_are_powers_of_two() {
    assert_eq!((PageShift::new(0).unwrap().bytes(), PageShift::new(63).unwrap().bytes()), (1, 1 << 63));
    assert_eq!(PageShift::new(64), None);
    assert_eq!((PageShift::K64.get(), PageShift::K64.bytes(), PageShift::K64.mask()), (16, 0x1_0000, 0xffff));
    for (shift, text) in [
        (0, "1 B"),
        (9, "512 B"),
        (10, "1 KiB"),
        (12, "4 KiB"),
        (16, "64 KiB"),
        (19, "512 KiB"),
        (20, "1 MiB"),
        (24, "16 MiB"),
        (29, "512 MiB"),
        (30, "1 GiB"),
        (39, "512 GiB"),
        (40, "2^40 B"),
    ] {
        assert_eq!(PageShift::new(shift).unwrap().to_string(), text);
    }
}

#[test]
fn a_system_page_is_between_4_kib_and_16_mib() {
    let granule = |shift| Granule::new(PageShift::new(shift).unwrap()).map(Granule::bytes);
    assert_eq!([granule(11), granule(25)], [None, None]);
    assert_eq!([granule(12), granule(16), granule(24)], [Some(0x1000), Some(0x1_0000), Some(0x100_0000)]);
    assert_eq!(Granule::K64.shift(), PageShift::K64);
}

#[test]
fn a_range_is_whole_pages_that_do_not_reach_the_end() {
    let new = |ua, bytes| UserRange::new(UserAddr::new(ua), bytes, Granule::K4);
    let ua = UserAddr::new(0x1001);
    assert_eq!(
        new(0x1001, 0x1000),
        Err(RangeError::Misaligned { ua, bytes: 0x1000, granule: PageShift::K4 })
    );
    // Start and length both off by one page bit, so that their difference would look aligned.
    let ua = UserAddr::new(0x1800);
    assert_eq!(new(0x1800, 0x800), Err(RangeError::Misaligned { ua, bytes: 0x800, granule: PageShift::K4 }));
    let ua = UserAddr::new(0x2000);
    assert_eq!(new(0x2000, 0), Err(RangeError::Empty { ua }));
    let ua = UserAddr::new(u64::MAX - 0xfff);
    assert_eq!(new(ua.raw(), 0x1000), Err(RangeError::Wraps { ua, bytes: 0x1000 }));
    let last = new(u64::MAX - 0x1fff, 0x1000).unwrap();
    assert_eq!((last.last().raw(), last.bytes()), (u64::MAX - 0x1000, 0x1000));
    assert_eq!(new(1, 1).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(range(0x1_0000, 0x3_0000).pages(Granule::K4), 48);
    assert_eq!(range(0x1_0000, 0x3_0000).pages(Granule::K64), 3);
    assert_eq!(range(0x1000, 0x2000).to_string(), "ua 0x1000..=0x2fff");
}

#[test]
fn a_range_holds_what_lies_inside_and_meets_what_shares_a_byte() {
    let held = range(0x2000, 0x2000);
    let holds = |ua, bytes| held.holds(UserAddr::new(ua), bytes);
    assert!(holds(0x2000, 1) && holds(0x3fff, 1) && holds(0x2000, 0x2000) && holds(0x3000, 0x1000));
    assert!(!holds(0x1fff, 1) && !holds(0x1fff, 2) && !holds(0x4000, 1));
    assert!(!holds(0x2000, 0x2001) && !holds(0x3fff, 2) && !holds(0x3000, u64::MAX));
    assert!(!holds(0x2000, 0) && !holds(0x3000, 0));
    for (ua, bytes, shares) in [
        (0x1000, 0x1000, false),
        (0x1000, 0x2000, true),
        (0x2000, 0x1000, true),
        (0x3000, 0x1000, true),
        (0x3000, 0x4000, true),
        (0x1000, 0x9000, true),
        (0x4000, 0x1000, false),
    ] {
        assert_eq!(held.intersects(range(ua, bytes)), shares, "{ua:#x}");
        assert_eq!(range(ua, bytes).intersects(held), shares, "{ua:#x}");
    }
}

#[test]
fn error_numbers_keep_what_they_came_with() {
    assert_eq!(Errno::EBUSY.raw(), 16);
    assert_eq!(Errno::from_raw(22), Errno::EINVAL);
    assert_eq!(Errno::from_raw(1234).raw(), 1234);
    assert_eq!((Errno::ENOTTY.name(), Errno::from_raw(1234).name()), (Some("ENOTTY"), None));
    assert_eq!((Errno::ENXIO.to_string(), Errno::from_raw(77).to_string()), ("ENXIO".into(), "E77".into()));
    assert_eq!((Closed.errno().raw(), Busy(1).errno().raw(), RefUnderflow.errno().raw()), (6, 16, 22));
}

#[test]
fn a_rundown_ref_says_whether_it_is_closed() {
    let rundown = RundownRef::new();
    assert!(!rundown.is_closed());
    rundown.enter().unwrap();
    assert!(!rundown.is_closed(), "a unit does not close it");
    assert_eq!(rundown.close_and_drain(), DrainResult::Waiting(1));
    assert!(rundown.is_closed());
    assert!(rundown.reopen());
    assert!(!rundown.is_closed());
    assert_eq!(rundown.leave(), Ok(LeaveResult::Others));
    rundown.try_close().unwrap();
    assert!(rundown.is_closed());
}

#[test]
fn tables_are_locked_when_all_that_is_held_is() {
    let state = |held, locked| {
        let mut state = prereg::TableMemoryState::default();
        (state.held, state.locked) = (held, locked);
        state
    };
    assert!(state(0x2000, 0x2000).is_locked());
    assert!(!state(0x2000, 0x1000).is_locked() && !state(0x2000, 0).is_locked());
}

#[test]
fn an_error_that_main_returns_is_printed_as_its_sentence() {
    let granule = Granule::K4;
    let error = UserRange::new(UserAddr::new(0x1001), 0x1000, granule).unwrap_err();
    assert_eq!(format!("{error:?}"), error.to_string());
    assert_eq!(format!("{:?}", prereg::OutOfMemory), prereg::OutOfMemory.to_string());
    assert_eq!(format!("{:?}", prereg::MapError::Foreign), prereg::MapError::Foreign.to_string());
}
