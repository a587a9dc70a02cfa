//! The three layouts hold the same pages, and the largest page is the truth about them.

#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use super::*;
use crate::addr::Granule;
use crate::table_memory::HeapTables;

fn heap() -> SharedTableMemory {
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

/// Whether two bytes that follow one another in user memory follow one another on the host.
fn continues(host: &impl Fn(u64) -> u64, granule: Granule, page: u64) -> bool {
    host(page).wrapping_add(granule.bytes()) == host(page + 1)
}

/// The largest page by its definition: every aligned block of that size lies inside the range, is contiguous, and is
/// aligned on the host.
fn largest_by_definition(range: UserRange, granule: Granule, host: &impl Fn(u64) -> u64) -> u32 {
    let pages = range.pages(granule);
    let fits = |shift: u32| {
        let block = 1u64 << shift;
        if (range.first().raw() | range.bytes()) & (block - 1) != 0 {
            return false;
        }
        let in_block = block / granule.bytes();
        (0..pages).all(|page| {
            let starts = page % in_block == 0;
            (!starts || host(page) & (block - 1) == 0)
                && (page % in_block == in_block - 1 || continues(host, granule, page))
        })
    };
    (granule.shift().get()..63).take_while(|&shift| fits(shift)).last().unwrap_or(granule.shift().get())
}

/// A table of `pages` pages of `granule` from `ua` on, pushed a run at a time.
fn table_of_runs(ua: u64, granule: Granule, pages: u64, host: &impl Fn(u64) -> u64) -> PageTable {
    let range = UserRange::new(UserAddr::new(ua), pages * granule.bytes(), granule).unwrap();
    let mut list = PageList::new(range, granule);
    let mut page = 0;
    while page < pages {
        let end = (page..pages).find(|&page| !continues(host, granule, page)).map_or(pages, |last| last + 1);
        let end = end.min(pages);
        assert_eq!(list.filled(), page);
        // The bits below a page are dropped.
        list.push(HostAddr::new(host(page) + 7), end - page).unwrap();
        page = end;
    }
    assert_eq!(list.filled(), pages);
    list.finish(&heap()).unwrap().unwrap()
}

/// Compares every query of a table with `host`, which returns the address of each page.
fn agrees(ua: u64, granule: Granule, pages: u64, host: impl Fn(u64) -> u64) -> PageTable {
    let table = table_of_runs(ua, granule, pages, &host);
    let range = UserRange::new(UserAddr::new(ua), pages * granule.bytes(), granule).unwrap();
    let shift = granule.shift().get();
    let at = |offset: u64| UserAddr::new(ua + offset);
    let truth = |offset: u64| host(offset >> shift) + (offset & granule.shift().mask());
    // The number of contiguous bytes from `offset` on, up to `bytes`.
    let contiguous = |offset: u64, bytes: u64| {
        let mut page = offset >> shift;
        while page + 1 < pages && continues(&host, granule, page) {
            page += 1;
        }
        bytes.min(((page + 1) << shift) - offset)
    };
    assert_eq!(table.largest_page().get(), largest_by_definition(range, granule, &host));
    assert_eq!(table.granule(), granule.shift());
    let size = pages << shift;
    for page in 0..pages {
        for inside in [0, 1, granule.bytes() - 1] {
            let offset = (page << shift) + inside;
            assert_eq!(table.host(at(offset)).raw(), truth(offset), "at {offset:#x}");
            for bytes in [1, 2, granule.bytes(), 3 * granule.bytes() + 5, size - offset] {
                if bytes > size - offset {
                    continue;
                }
                let (first, count) = table.run_within(at(offset), bytes);
                assert_eq!(
                    (first.raw(), count),
                    (truth(offset), contiguous(offset, bytes)),
                    "{bytes:#x} at {offset:#x}"
                );
                assert_eq!(table.contiguous_within(at(offset), bytes), count);
            }
        }
    }
    for (from, bytes) in
        [(0, size), (1, size - 1), (granule.bytes() + 3, size / 2), (size - 1, 1), (size / 3, 0)]
    {
        if from + bytes > size {
            continue;
        }
        let mut offset = from;
        for (first, count) in table.runs_within(at(from), bytes) {
            assert_eq!(first.raw(), truth(offset), "run at {offset:#x}");
            assert_eq!(count, contiguous(offset, from + bytes - offset), "run at {offset:#x}");
            offset += count;
        }
        assert_eq!(offset, from + bytes, "the runs cover the range");
    }
    table
}

#[test]
fn every_layout_agrees_with_a_plain_list_of_its_pages() {
    let some = if cfg!(miri) { 40 } else { 200 };
    let hard = [
        // Runs of one, two and three pages.
        |page: u64| ((page / 3 * 5 + page % 3) << 12) + (1 << 30),
        |page: u64| (page / 2 * 3 + page % 2 + 77) << 12,
        |page: u64| (page * 7919 % 65536) << 12,
        // Neighbours that descend.
        |page: u64| (100_000 - page) << 12,
    ];
    for host in hard {
        assert!(matches!(agrees(0x4000_1000, Granule::K4, some, host).layout, Layout::Narrow { .. }));
        let high = |page: u64| (1 << 50) + host(page);
        assert!(matches!(agrees(0x4000_1000, Granule::K4, some, high).layout, Layout::Wide { .. }));
        let large = |page: u64| host(page) << 4;
        assert!(matches!(agrees(0x4001_0000, Granule::K64, some, large).layout, Layout::Narrow { .. }));
    }
    let straight = agrees(0x4000_3000, Granule::K4, some, |page| 0x8_7654_3000 + (page << 12));
    assert!(straight.is_runs());
    assert!(!agrees(0x4000_3000, Granule::K4, some, |page| page << 13).is_runs());
}

#[test]
fn runs_that_meet_at_multiples_of_2_mib_stay_runs_and_others_do_not() {
    if cfg!(miri) {
        return eprintln!(
            "skipped: thousands of pages take the interpreter minutes, and nothing here is unsafe"
        );
    }
    // Breaks every 512 pages; the range begins one, or 511, pages before the first.
    for (ua, before) in [(0x4000_0000 - 0x1000, 1), (0x4000_1000, 511), (0x4000_0000, 512)] {
        let host = move |page: u64| {
            ((page + 512 - before) / 512 * 0x60_0000) + (((page + 512 - before) % 512) << 12)
        };
        let table = agrees(ua, Granule::K4, 1100, host);
        assert!(table.is_runs(), "{ua:#x}");
        assert_eq!(table.entry_alignment(), 21);
        // Breaks one page off the multiples of 2 MiB give page numbers.
        let table = table_of_runs(ua + 0x1000, Granule::K4, 1100, &host);
        assert!(!table.is_runs(), "{ua:#x}");
        assert_eq!(table.entry_alignment(), 63);
    }
    assert_eq!(table_of_runs(0x4000_0000, Granule::K4, 512, &|page| page << 12).entry_alignment(), 63);
}

#[test]
fn the_largest_page_agrees_with_its_definition_in_short_ranges() {
    // Arithmetic only, so the interpreter gets one of each.
    let some = |all: &'static [u64]| if cfg!(miri) { &all[..1] } else { all };
    for &pages in some(&[6, 1, 2, 3, 4, 8, 16, 24]) {
        for &first in some(&[0x10_2000, 0x10_0000, 0x10_1000, 0x10_4000, 0x11_0000]) {
            for &host in some(&[0x4000, 0, 0x1000, 0x2000, 0x8000, 0x1_0000, 0x4_0000]) {
                agrees(first, Granule::K4, pages, |page| host + (page << 12));
                agrees(first, Granule::K4, pages, |page| host + ((page + page / 4 * 4) << 12));
                agrees(first, Granule::K4, pages, |page| host + ((page + page / 2) << 12));
            }
        }
    }
}

#[test]
fn device_memory_is_one_run_at_its_address() {
    let range = |ua: u64, bytes: u64| UserRange::new(UserAddr::new(ua), bytes, Granule::K4).unwrap();
    let largest = |ua: u64, bytes: u64, host: u64| {
        PageTable::device(range(ua, bytes), HostAddr::new(host), Granule::K4).largest_page().get()
    };
    assert_eq!(largest(1 << 21, 1 << 21, 1 << 21), 21);
    assert_eq!(largest(1 << 16, 1 << 21, 1 << 24), 16);
    assert_eq!(largest(1 << 24, 1 << 13, 1 << 24), 13);
    assert_eq!(largest(1 << 24, 1 << 21, 0x9000), 12);
    assert_eq!(largest(0, 1 << 21, 0), 21);
    // Not even a page on the host's side.
    let table = PageTable::device(range(0x1_0000, 0x4000), HostAddr::new(0xf000_0800), Granule::K4);
    assert_eq!(table.largest_page().get(), 11);
    let ua = UserAddr::new(0x1_1003);
    assert_eq!(table.host(ua).raw(), 0xf000_1803);
    assert_eq!(table.run_within(ua, 0x1234), (HostAddr::new(0xf000_1803), 0x1234));
    assert_eq!(table.runs_within(ua, 0x1234).collect::<Vec<_>>(), [(HostAddr::new(0xf000_1803), 0x1234)]);
    assert_eq!(table.entry_pages(UserAddr::new(0x1_0000), 12), None);
    table.mark_dirty(ua);
    assert_eq!(table.dirty().count(), 0);
    assert_eq!((table.metadata_bytes(), table.is_runs(), table.entry_alignment()), (0, true, 63));
    let aligned = PageTable::device(range(0x1_0000, 0x4000), HostAddr::new(0xf000_1000), Granule::K4);
    assert_eq!(aligned.entry_pages(UserAddr::new(0x1_1000), 12), Some(EntryPages::Run(0xf000_2000)));
}

#[test]
fn a_entry_over_runs_says_where_it_begins_unless_a_run_ends_inside() {
    if cfg!(miri) {
        return eprintln!(
            "skipped: thousands of pages take the interpreter minutes, and nothing here is unsafe"
        );
    }
    let host = |page: u64| (page / 512 * 0x60_0000) + ((page % 512) << 12);
    let runs = table_of_runs(0x4000_0000, Granule::K4, 1536, &host);
    let entry = |ua: u64, shift| runs.entry_pages(UserAddr::new(ua), shift);
    assert_eq!(entry(0x4000_0000, 21), Some(EntryPages::Run(0)));
    assert_eq!(entry(0x4020_0000, 21), Some(EntryPages::Run(0x60_0000)));
    assert_eq!(entry(0x4020_3000, 12), Some(EntryPages::Run(0x60_3000)));
    assert_eq!(entry(0x4020_0000, 22), None, "two runs");
    assert_eq!(entry(0x401f_f000, 12), Some(EntryPages::Run(0x1f_f000)), "the last page before a break");
    assert_eq!(entry(0x4040_0000, 21), Some(EntryPages::Run(0xc0_0000)), "the last run");
    // An entry of one page is contiguous with page numbers, too.
    let table = table(64, |page| (page * 7919 % 65536) << 12);
    assert_eq!(table.entry_pages(UserAddr::new(0x4000_2000), 12), Some(EntryPages::Run((2 * 7919) << 12)));
    assert!(matches!(table.entry_pages(UserAddr::new(0x4000_2000), 13), Some(EntryPages::Narrow(_))));
}

#[test]
fn a_list_keeps_runs_while_they_take_less_room_than_page_numbers() {
    let pushed = |pages: u64, runs: u64, in_run: u64| {
        let mut list = PageList::new(range(pages), Granule::K4);
        for run in 0..runs {
            list.push(HostAddr::new(run * 0x100_0000), in_run).unwrap();
        }
        (list.runs.len() as u64, list.frames.len() as u64)
    };
    // A short list may have 64 runs at any length.
    assert_eq!(pushed(100, 64, 1), (64, 0));
    assert_eq!(pushed(100, 65, 1), (0, 65));
    // A long one may have one for every 16 pages.
    let (pages, most) = if cfg!(miri) { (16 * 70, 70) } else { (16 * 200, 200) };
    assert_eq!(pushed(pages, most, 1), (most, 0));
    assert_eq!(pushed(pages, most + 1, 1), (0, most + 1));
    assert_eq!(pushed(pages, most + 1, 2), (0, 2 * (most + 1)));
}

#[test]
fn pushing_nothing_changes_nothing() {
    let mut list = PageList::new(range(4), Granule::K4);
    list.push(HostAddr::new(0x5000), 0).unwrap();
    assert_eq!((list.filled(), list.runs.len()), (0, 0));
    list.push(HostAddr::new(0x5000), 2).unwrap();
    list.push(HostAddr::new(0x9000), 0).unwrap();
    list.push(HostAddr::new(0x7000), 2).unwrap();
    assert_eq!(list.push(HostAddr::new(0x9000), 1), Err(PageListError::TooMany { range: range(4) }));
    assert_eq!(list.push(HostAddr::new(0x9000), u64::MAX), Err(PageListError::TooMany { range: range(4) }));
    assert_eq!(list.runs, [Run { index: 0, host: 0x5000 }]);
    check(&list.finish(&heap()).unwrap().unwrap(), 4, |page| 0x5000 + (page << 12));
}

#[test]
fn a_mark_of_contiguous_memory_stands_for_eight_pages() {
    let table = table(150, |page| page << 12);
    assert_eq!(table.dirty().count(), 0);
    table.mark_dirty(UserAddr::new(0x4000_0000 + (9 << 12)));
    assert_eq!(table.dirty().collect::<Vec<_>>(), (8..16).collect::<Vec<_>>());
    // The last unit has six pages only.
    table.mark_dirty(UserAddr::new(0x4000_0000 + (149 << 12)));
    assert_eq!(table.dirty().collect::<Vec<_>>(), (8..16).chain(144..150).collect::<Vec<_>>());
    assert_eq!(DirtyPages::none().count(), 0);
}

#[test]
fn a_table_says_how_many_bytes_it_takes() {
    let run = size_of::<Run>() as u64;
    // 150 pages: marks of 19 units of eight pages fit one word, marks of pages take three.
    assert_eq!(table(150, |page| page << 12).metadata_bytes(), run + 8);
    assert_eq!(table(150, |page| page << 13).metadata_bytes(), 150 * 4 + 3 * 8);
    assert_eq!(table(150, |page| (1 << 50) + (page << 13)).metadata_bytes(), 150 * 8);
    assert_eq!(table(64, |page| page << 13).metadata_bytes(), 64 * 4 + 8);
    assert_eq!(table(65, |page| page << 13).metadata_bytes(), 65 * 4 + 2 * 8);
}

#[test]
fn no_run_goes_past_the_last_page() {
    // The last 32-bit page number and the first; the last host page and the first.
    let narrow = [0x0fff_ffff_e000_u64, 0x0fff_ffff_f000, 0, 0x1000];
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
