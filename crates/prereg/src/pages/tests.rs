//! The three layouts hold the same pages, and the largest page is the truth about them.

#![expect(clippy::unwrap_used, reason = "a test says by panicking")]

use super::*;
use crate::addr::Granule;
use crate::tables::HeapTables;

fn heap() -> Tables {
    alloc::sync::Arc::new(HeapTables::new())
}

fn range(pages: u64) -> UserRange {
    UserRange::new(UserAddr::new(0x4000_0000), pages << 12, Granule::K4).unwrap()
}

fn table(pages: u64, host: impl Fn(u64) -> u64) -> PageTable {
    let mut list = PageList::new(range(pages), Granule::K4);
    for page in 0..pages {
        list.push(HostAddr::new(host(page)), 1).unwrap();
    }
    list.finish(&heap()).unwrap().unwrap()
}

fn check(table: &PageTable, pages: u64, host: impl Fn(u64) -> u64) {
    for page in 0..pages {
        let ua = UserAddr::new(0x4000_0000 + (page << 12) + 5);
        assert_eq!(table.host(ua).raw(), host(page) + 5, "page {page}");
    }
}

/// Enough pages to leave runs behind; the interpreter gets fewer.
fn large() -> u64 {
    if cfg!(miri) { 200 } else { 5000 }
}

fn sizes() -> Vec<u64> {
    vec![1, 2, 63, 64, 65, 150, large()]
}

#[test]
fn every_layout_gives_back_what_was_pushed() {
    let contiguous = |page: u64| 0x1_0000_0000 + (page << 12);
    let scattered = |page: u64| (page * 7919 % 65536) << 12;
    let high = |page: u64| (1 << 50) + ((page * 7919 % 65536) << 12);
    let runs_of_three = |page: u64| ((page / 3 * 5 + page % 3) << 12) + (1 << 30);
    for pages in sizes() {
        check(&table(pages, contiguous), pages, contiguous);
        check(&table(pages, scattered), pages, scattered);
        check(&table(pages, high), pages, high);
        check(&table(pages, runs_of_three), pages, runs_of_three);
    }
    assert!(matches!(table(large(), contiguous).layout, Layout::Runs { .. }));
    assert!(matches!(table(large(), scattered).layout, Layout::Narrow { .. }));
    assert!(matches!(table(large(), high).layout, Layout::Wide { .. }));
}

#[test]
fn metadata_stays_under_eight_bytes_a_page() {
    let pages = large();
    assert!(table(pages, |page| (page * 7919 % 65536) << 12).metadata_bytes() <= pages * 5);
    assert!(table(pages, |page| (1 << 50) + ((page * 7919 % 65536) << 12)).metadata_bytes() <= pages * 8);
    // A run's own header outweighs the few pages that the interpreter gets.
    if !cfg!(miri) {
        assert!(table(pages, |page| page << 12).metadata_bytes() * 20 <= pages);
    }
}

#[test]
fn the_largest_page_is_the_lowest_bit_of_every_break() {
    if cfg!(miri) {
        return eprintln!(
            "skipped: thousands of pages take the interpreter a minute, and there is no unsafe code here"
        );
    }
    let huge = |page: u64| (page / 512 * 1024 + page % 512) << 12;
    assert_eq!(table(1024, huge).largest_page(), PageShift::M2);
    assert_eq!(table(1024, |page| huge(page) + 0x1000).largest_page(), PageShift::K4);
    // Large first, small after, and the other way round: the small part decides.
    let mixed = |page: u64| if page < 512 { page << 12 } else { (page * 3) << 12 };
    assert_eq!(table(1024, mixed).largest_page(), PageShift::K4);
    let mixed = |page: u64| if page >= 512 { page << 12 } else { (page * 3 + 5000) << 12 };
    assert_eq!(table(1024, mixed).largest_page(), PageShift::K4);
    // The length limits even where memory would allow more.
    assert_eq!(table(512, |page| page << 12).largest_page(), PageShift::M2);
}

#[test]
fn dirty_marks_never_show_in_an_address() {
    for host in [0u64, 1 << 50] {
        let host = move |page: u64| host + ((page * 7919 % 65536) << 12);
        let table = table(200, host);
        table.mark_dirty(UserAddr::new(0x4000_3000));
        table.mark_dirty(UserAddr::new(0x4000_3fff));
        table.mark_dirty(UserAddr::new(0x4000_0000 + (199 << 12)));
        check(&table, 200, host);
        assert_eq!(table.dirty().collect::<Vec<_>>(), [3, 199]);
    }
}

#[test]
fn too_many_and_too_few_pages_are_noticed() {
    let mut list = PageList::new(range(4), Granule::K4);
    list.push(HostAddr::new(0), 3).unwrap();
    assert_eq!(list.push(HostAddr::new(0x9000), 2), Err(PageListError::TooMany { range: range(4) }));
    assert!(list.finish(&heap()).unwrap().is_none());
}

#[test]
fn contiguous_stops_at_breaks_and_at_the_end() {
    let table = table(6, |page| if page < 4 { page << 12 } else { (page + 10) << 12 });
    let at = |page: u64| UserAddr::new(0x4000_0000 + (page << 12));
    assert_eq!(table.contiguous_within(at(0), 6 << 12), 4 << 12);
    assert_eq!(table.contiguous_within(at(3), 3 << 12), 1 << 12);
    assert_eq!(table.contiguous_within(at(4), 2 << 12), 2 << 12);
}

#[test]
fn no_run_goes_past_the_last_page() {
    // The last 32-bit page number and the first; the last host page and the first.
    let narrow = [0xffff_fffe_000u64, 0xffff_ffff_000, 0, 0x1000];
    let wide = [u64::MAX - 0x1fff, u64::MAX - 0xfff, 0, 0x1000];
    for hosts in [narrow, wide] {
        // Enough single pages after these four to make one number a page of them.
        let host = |page: u64| hosts.get(page as usize).copied().unwrap_or((page * 7919 % 1000) << 13);
        for pages in [4, 300] {
            let table = table(pages, host);
            check(&table, pages, host);
            let first = UserAddr::new(0x4000_0000);
            let runs: Vec<(u64, u64)> =
                table.runs_within(first, 4 << 12).map(|(host, bytes)| (host.raw(), bytes)).collect();
            assert_eq!(runs, [(hosts[0], 0x2000), (0, 0x2000)]);
            assert_eq!(table.run_within(first, 4 << 12), (HostAddr::new(hosts[0]), 0x2000));
        }
    }
}

#[test]
fn pages_past_the_end_of_the_host_are_refused() {
    let mut list = PageList::new(range(4), Granule::K4);
    let top = HostAddr::new(u64::MAX - 0xfff);
    let mut sink = list.sink();
    assert_eq!((sink.range(), sink.filled()), (range(4), 0));
    assert_eq!(sink.push(top, 2), Err(PageListError::Wraps { host: top, pages: 2 }));
    sink.push(top, 0).unwrap();
    sink.push(top, 1).unwrap();
    sink.push(HostAddr::new(0), 3).unwrap();
    assert_eq!((sink.filled(), list.filled()), (4, 4));
    let table = list.finish(&heap()).unwrap().unwrap();
    assert_eq!(table.host(UserAddr::new(0x4000_0fff)).raw(), u64::MAX);
    assert_eq!(table.host(UserAddr::new(0x4000_1000)).raw(), 0);
}
