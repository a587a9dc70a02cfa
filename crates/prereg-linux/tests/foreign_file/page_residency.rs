//! Detection of pinned pages that no longer belong to their file.

use std::os::fd::{AsFd, BorrowedFd};

use prereg::{AddressKind, AddressSpace, Registration};
use prereg_linux::{IoUring, PageResidency, SharedMemory};

use crate::syscalls::punch;
use crate::{PAGE, has_small_pages, sealed, shared, unsealed};

/// Pinned memory. `None`, with the reason printed, where nothing can be pinned.
fn pinned(fd: BorrowedFd<'_>, pages: u64) -> Option<(SharedMemory, AddressSpace, Registration)> {
    if !has_small_pages() {
        return None;
    }
    let pins = IoUring::builder().addresses(AddressKind::SlotOffset).build();
    let pins = pins.map_err(|error| eprintln!("skipped: {error}")).ok()?;
    let memory = shared(&fd).map(0, pages * PAGE).unwrap();
    let space = AddressSpace::builder(pins).build().unwrap();
    let registration = space.register(&memory).unwrap();
    Some((memory, space, registration))
}

#[test]
fn a_hole_is_found_and_stays_found_when_it_is_filled_again() {
    let (guest, fd) = sealed(300);
    let Some((memory, _space, _registration)) = pinned(fd.as_fd(), 300) else { return };
    let presence = PageResidency::open().unwrap();
    let gone = |first: u64, pages: u64| presence.lost_range(&memory, first * PAGE, pages * PAGE).unwrap();
    assert_eq!((gone(0, 300), gone(17, 1), gone(290, 10)), (None, None, None));
    punch(fd.as_fd(), 100 * PAGE, 3 * PAGE);
    punch(fd.as_fd(), 200 * PAGE, PAGE);
    for _ in 0..2 {
        assert_eq!(gone(0, 300), Some((100 * PAGE, 101 * PAGE)));
        assert_eq!(gone(0, 150), Some((100 * PAGE, 3 * PAGE)));
        assert_eq!(gone(101, 1), Some((101 * PAGE, PAGE)));
        assert_eq!((gone(0, 100), gone(103, 97), gone(103, 20)), (None, None, None));
        // The guest and this process access the range, which faults new pages in and must not hide the hole.
        guest.write(100 * PAGE, &[1; 3 * PAGE as usize]).unwrap();
        memory.write(200 * PAGE, &[1]).unwrap();
        memory.read(101 * PAGE, &mut [0; 8]).unwrap();
    }
    assert_eq!(presence.lost_range(&memory, 100 * PAGE + 5, 3).unwrap(), Some((100 * PAGE, PAGE)));
    assert!(presence.lost_range(&memory, 299 * PAGE, 2 * PAGE).is_err());
    assert!(presence.lost_range(&memory, 0, 0).is_err());
}

#[test]
fn a_file_that_was_made_shorter_and_longer_has_lost_its_pages() {
    let Some(file) = unsealed(80) else { return };
    let Some((memory, _space, _registration)) = pinned(file.as_fd(), 80) else { return };
    let presence = PageResidency::open().unwrap();
    assert_eq!(presence.lost_range(&memory, 0, 80 * PAGE), Ok(None));
    file.set_len(30 * PAGE).unwrap();
    file.set_len(80 * PAGE).unwrap();
    assert_eq!(presence.lost_range(&memory, 0, 80 * PAGE), Ok(Some((30 * PAGE, 50 * PAGE))));
    assert_eq!(presence.lost_range(&memory, 0, 30 * PAGE), Ok(None));
}

#[test]
fn what_others_do_without_taking_pages_out_is_not_a_hole() {
    let (guest, fd) = sealed(70);
    let Some((memory, _space, _registration)) = pinned(fd.as_fd(), 70) else { return };
    let presence = PageResidency::open().unwrap();
    for at in 0..70 {
        guest.write(at * PAGE, &[1]).unwrap();
    }
    let more = shared(&fd).map(0, 70 * PAGE).unwrap();
    more.write(0, &[2; 70 * PAGE as usize]).unwrap();
    drop(more);
    assert_eq!(presence.lost_range(&memory, 0, 70 * PAGE), Ok(None));
}
