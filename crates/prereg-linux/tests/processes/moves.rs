//! Pages that move and pages that must not: compaction, `fork`, and the results of an audit.

use std::collections::HashMap;
use std::os::fd::AsFd;

use prereg::{AddressSpace, HostAddr, Registration, UserAddr, UserRange};
use prereg_linux::{GuestMemory, IoUring, PageBacking, Pagemap, audit_range};

use crate::raw::{self, Area, Sleeper};
use crate::{Outcome, Test, need_root};

pub(crate) const TESTS: &[Test] = &[
    ("compaction_moves_no_registered_page", compaction),
    ("fork_and_a_write_move_no_registered_page", fork),
    ("audit_finds_a_punched_hole", punched_hole),
    ("audit_finds_dropped_pages", dropped),
    ("audit_finds_a_mapping_over_the_old_one", replaced),
    ("audit_finds_unmapped_pages", unmapped),
    ("audit_is_content_with_pages_that_come_back_the_same", came_back),
];

const PAGE: usize = 4096;

fn frames_of(map: &Pagemap, memory: &GuestMemory) -> Vec<Option<HostAddr>> {
    (0..memory.bytes() / PAGE as u64)
        .map(|page| match map.page(memory.ua().checked_add(page * PAGE as u64).unwrap()).unwrap() {
            PageBacking::Frames(host) => Some(host),
            _ => None,
        })
        .collect()
}

fn moved(before: &[Option<HostAddr>], after: &[Option<HostAddr>]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before != after).count()
}

fn compaction() -> Outcome {
    need_root()?;
    let compact = "/proc/sys/vm/compact_memory";
    if !std::path::Path::new(compact).exists() {
        return Err("this kernel has no way to request compaction".to_owned());
    }
    let map = Pagemap::open().unwrap();
    let space = AddressSpace::builder(IoUring::new().unwrap()).build().unwrap();
    // Whether pages move depends on where they lie. So there are several rounds with new memory, until compaction has
    // moved enough unpinned pages.
    let mut kept = Vec::new();
    let mut moved_without = 0;
    for _ in 0..8 {
        // Pages of three mappings alternate, and one mapping is dropped, which leaves free pages everywhere to compact
        // into.
        let (pinned, control, filler) =
            (Area::anonymous(64 << 20), Area::anonymous(64 << 20), Area::anonymous(64 << 20));
        for offset in (0..64 << 20).step_by(PAGE) {
            for area in [&pinned, &filler, &control] {
                area.memory().write(offset as u64, &[1]).unwrap();
            }
        }
        let registration = space.register(&pinned.memory()).unwrap();
        let expected = expected_of(&registration);
        drop(filler);
        let (before, control_before) =
            (frames_of(&map, &pinned.memory()), frames_of(&map, &control.memory()));
        std::fs::write(compact, "1").unwrap();
        let (after, control_after) = (frames_of(&map, &pinned.memory()), frames_of(&map, &control.memory()));
        assert_eq!(moved(&before, &after), 0);
        assert_eq!(audit_of(&map, &registration, &expected), []);
        registration.unregister().unwrap();
        moved_without += moved(&control_before, &control_after);
        kept.push((pinned, control));
        if moved_without >= 100 {
            break;
        }
    }
    println!("      compaction moved {moved_without} pages without a pin, none with one");
    if moved_without == 0 { Err("compaction moved no page at all".to_owned()) } else { Ok(()) }
}

fn fork() -> Outcome {
    need_root()?;
    let map = Pagemap::open().unwrap();
    let (pinned, control) = (Area::anonymous(8 << 20), Area::anonymous(8 << 20));
    pinned.touch(1);
    control.touch(1);
    let space = AddressSpace::builder(IoUring::new().unwrap()).build().unwrap();
    let registration = space.register(&pinned.memory()).unwrap();
    let (before, control_before) = (frames_of(&map, &pinned.memory()), frames_of(&map, &control.memory()));
    let child = Sleeper::fork();
    pinned.touch(2);
    control.touch(2);
    let (after, control_after) = (frames_of(&map, &pinned.memory()), frames_of(&map, &control.memory()));
    drop(child);
    assert!(
        moved(&control_before, &control_after) > 0,
        "a fork and a write must move pages that are not pinned"
    );
    assert_eq!(moved(&before, &after), 0);
    registration.unregister().unwrap();
    Ok(())
}

fn expected_of(registration: &Registration) -> HashMap<u64, HostAddr> {
    let mut expected = HashMap::new();
    registration.visit_runs(|ua, host, bytes| {
        for offset in (0..bytes).step_by(PAGE) {
            expected.insert(ua.raw() + offset, host.checked_add(offset).unwrap());
        }
    });
    expected
}

/// The pages that an audit finds changed, as page offsets, and whether each is still mapped.
fn audit_of(
    map: &Pagemap,
    registration: &Registration,
    expected: &HashMap<u64, HostAddr>,
) -> Vec<(u64, bool)> {
    let range = UserRange::new(registration.ua(), registration.bytes(), map.granule()).unwrap();
    let audit = audit_range(map, range, |ua: UserAddr| expected.get(&ua.raw()).copied()).unwrap();
    assert_eq!((audit.checked, audit.unreadable, audit.skipped), (registration.pages(), 0, 0));
    let offset = |ua: UserAddr| ua.offset_from(registration.ua()).unwrap() / PAGE as u64;
    audit
        .changed
        .iter()
        .map(|page| {
            assert_eq!(Some(&page.was), expected.get(&page.ua.raw()));
            (offset(page.ua), page.now.is_some())
        })
        .collect()
}

/// Registers `memory`, audits it clean, applies `change` and returns the result of another audit.
fn changed_by(memory: &GuestMemory, change: impl FnOnce()) -> Vec<(u64, bool)> {
    let map = Pagemap::open().unwrap();
    let space = AddressSpace::builder(IoUring::new().unwrap()).build().unwrap();
    let registration = space.register(memory).unwrap();
    let expected = expected_of(&registration);
    assert_eq!(audit_of(&map, &registration, &expected), []);
    change();
    let found = audit_of(&map, &registration, &expected);
    registration.unregister().unwrap();
    found
}

const PAGES: usize = 1000;

fn punched_hole() -> Outcome {
    need_root()?;
    let memory = GuestMemory::memfd("punched", (PAGES * PAGE) as u64).unwrap();
    let found = changed_by(&memory, || {
        raw::punch_hole(memory.descriptor().unwrap(), 100 * PAGE as i64, 3 * PAGE as i64);
    });
    assert_eq!(found, [(100, true), (101, true), (102, true)]);
    Ok(())
}

fn dropped() -> Outcome {
    need_root()?;
    let area = Area::anonymous(PAGES * PAGE);
    let found = changed_by(&area.memory(), || area.advise(7 * PAGE, 2 * PAGE, libc::MADV_DONTNEED));
    assert_eq!(found, [(7, true), (8, true)]);
    Ok(())
}

fn replaced() -> Outcome {
    need_root()?;
    let area = Area::anonymous(PAGES * PAGE);
    let found = changed_by(&area.memory(), || area.replace(999 * PAGE, PAGE));
    assert_eq!(found, [(999, true)]);
    Ok(())
}

fn unmapped() -> Outcome {
    need_root()?;
    let area = Area::anonymous(PAGES * PAGE);
    let found = changed_by(&area.memory(), || {
        area.unmap(5 * PAGE, PAGE);
        area.advise(6 * PAGE, PAGE, libc::MADV_DONTNEED);
    });
    assert_eq!(found, [(5, false), (6, true)]);
    Ok(())
}

fn came_back() -> Outcome {
    need_root()?;
    let file = raw::memfd((PAGES * PAGE) as u64);
    let area = Area::shared(file.as_fd(), PAGES * PAGE);
    let found = changed_by(&area.memory(), || area.advise(0, PAGES * PAGE, libc::MADV_DONTNEED));
    assert_eq!(found, [], "the file keeps its pages, so they are the same when mapped again");
    Ok(())
}
