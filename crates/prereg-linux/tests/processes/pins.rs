//! Pinning and releasing, checked by the kernel's own counters.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use prereg::{
    AddressKind, AddressSpace, DirtyPages, Errno, PageList, PageShift, Pin, PinError, PinId, UserAddr,
    UserRange,
};
use prereg_linux::{
    GuestMemory, HugeSize, IoUring, KernelCount, MemoryError, Mlock, PageBacking, Pagemap, Prefault,
    SlotAddress, prefault,
};

use crate::raw::{self, Area};
use crate::{Outcome, Test, need_pins, need_root};

pub(crate) const TESTS: &[Test] = &[
    ("the_kernel_counts_a_region_while_it_is_registered", counted),
    ("a_mapped_region_stays_pinned_and_mapped_until_the_mapping_goes", contract),
    ("frames_of_a_registration_are_those_of_the_page_map", frames),
    ("every_kind_of_memory_can_be_registered", kinds),
    ("a_region_over_the_limit_of_a_slot_takes_several", several_slots),
    ("a_wrong_belief_about_the_limit_is_corrected_once", wrong_belief),
    ("many_pieces_are_pinned_and_released_in_batches", many_pieces),
    ("slot_addresses_name_slot_and_offset", slot_addresses),
    ("another_ring_is_made_when_one_is_full", several_rings),
    ("pages_are_free_when_unpin_returns", released_when_it_says_so),
    ("a_pin_that_is_not_held_is_ignored_and_counted", stray),
    ("threads_can_pin_and_release_at_the_same_time", threads),
    ("the_memory_of_a_ring_is_kept_from_children", ring_memory),
    ("memory_is_brought_in_before_the_pin_with_progress", progress),
    ("a_cancelled_pin_leaves_nothing", cancelled),
    ("mlock_locks_and_unlocks", mlock),
];

pub(crate) fn pinned() -> u64 {
    KernelCount::now().unwrap().pinned
}

pub(crate) fn range_of(memory: &GuestMemory, pin: &impl Pin) -> UserRange {
    UserRange::new(memory.ua(), memory.bytes(), pin.granule()).unwrap()
}

/// Pins without the core: the range, and the result of the back end.
pub(crate) fn pin(backend: &impl Pin, memory: &GuestMemory) -> Result<(UserRange, PinId), PinError> {
    let range = range_of(memory, backend);
    let mut pages = PageList::new(range, backend.granule());
    let id = backend.pin(range, &mut pages.sink())?;
    assert_eq!(pages.filled(), range.pages(backend.granule()));
    Ok((range, id))
}

fn unpin(backend: &impl Pin, (range, id): (UserRange, PinId)) {
    backend.unpin(id, range, DirtyPages::none());
}

fn assert_empty(uring: &IoUring) {
    let state = uring.state();
    assert_eq!(state.slots_used, 0, "{state:?}");
    assert_eq!((state.pinned_bytes, state.stuck_slots, state.overdue_seconds), (0, 0, 0), "{state:?}");
}

const SIZE: u64 = 4 << 20;

fn counted() -> Outcome {
    need_pins(SIZE)?;
    let before = pinned();
    let uring = Arc::new(IoUring::new().unwrap());
    let with_ring = pinned();
    let space = AddressSpace::builder(Arc::clone(&uring)).build().unwrap();
    let memory = GuestMemory::memfd("counted", SIZE).unwrap();
    let first = space.register(&memory).unwrap();
    assert_eq!(pinned(), with_ring + SIZE);
    let second = space.register(&memory).unwrap();
    assert_eq!(pinned(), with_ring + SIZE, "shared, not pinned again");
    assert_eq!(uring.account().charged() * uring.granule().bytes(), SIZE);
    assert_eq!(uring.state().pin_calls, 1);
    first.unregister().unwrap();
    assert_eq!(pinned(), with_ring + SIZE);
    second.unregister().unwrap();
    assert_eq!(pinned(), with_ring);
    assert_eq!((uring.account().charged(), uring.account().unmatched_uncharges()), (0, 0));
    assert_empty(&uring);
    drop((space, uring));
    assert!(pinned() <= with_ring && before <= with_ring);
    Ok(())
}

fn contract() -> Outcome {
    need_pins(SIZE)?;
    let uring = Arc::new(IoUring::new().unwrap());
    let space = AddressSpace::builder(Arc::clone(&uring)).build().unwrap();
    let empty = pinned();
    let memory = GuestMemory::memfd("contract", SIZE).unwrap();
    let registration = space.register(&memory).unwrap();
    let mut translator = space.translator();
    let mapping = translator.map(registration.ua(), PageShift::K4).unwrap();
    let registration = registration.unregister().unwrap_err().into_inner();
    assert_eq!(pinned(), empty + SIZE, "refused, and nothing changed");
    drop(registration);
    drop(memory);
    assert_eq!(pinned(), empty + SIZE, "deferred: the mapping still holds the region");
    drop(mapping);
    space.reap();
    assert_eq!(pinned(), empty);
    assert_empty(&uring);
    Ok(())
}

fn frames() -> Outcome {
    need_root()?;
    let uring = IoUring::new().unwrap();
    assert_eq!(uring.address_kind(), AddressKind::Physical);
    assert!(uring.address_note().contains("physical"));
    let space = AddressSpace::builder(uring).build().unwrap();
    let map = Pagemap::open().unwrap();
    for pages in [1u64, 3, 64, 65, 20_000] {
        let memory = GuestMemory::memfd("frames", pages * map.granule().bytes()).unwrap();
        let registration = space.register(&memory).unwrap();
        let mut seen = 0;
        registration.visit_runs(|ua, host, bytes| {
            for offset in (0..bytes).step_by(4096) {
                let ua = UserAddr::new(ua.raw() + offset);
                assert_eq!(map.page(ua).unwrap(), PageBacking::Frames(host.checked_add(offset).unwrap()));
                seen += 4096;
            }
        });
        assert_eq!(seen, memory.bytes());
        registration.unregister().unwrap();
    }
    Ok(())
}

fn kinds() -> Outcome {
    need_pins(SIZE)?;
    let space = AddressSpace::builder(IoUring::new().unwrap()).build().unwrap();
    let huge = GuestMemory::memfd_hugetlb("huge", 2 << 20, HugeSize::M2);
    if let Err(error @ MemoryError::NoHugePages { .. }) = &huge {
        eprintln!("skipped: hugetlb memory: {error}");
    }
    let foreign = Area::anonymous(1 << 20);
    let memories = [
        Some(GuestMemory::anonymous(1 << 20).unwrap()),
        Some(GuestMemory::anonymous_thp(4 << 20).unwrap()),
        Some(GuestMemory::memfd("kind", 1 << 20).unwrap()),
        Some(foreign.memory()),
        huge.ok(),
    ];
    for memory in memories.into_iter().flatten() {
        let registration = space.register(&memory).unwrap_or_else(|error| panic!("{memory:?}: {error}"));
        assert_eq!(registration.bytes(), memory.bytes());
        if let prereg_linux::MemoryKind::Hugetlb(size) = memory.kind() {
            assert!(registration.largest_page() >= size.shift());
        }
        registration.unregister().unwrap();
    }
    Ok(())
}

/// Pages are pinned many times over, so that gigabytes take megabytes.
const FILE: usize = 64 << 20;

fn several_slots() -> Outcome {
    need_root()?;
    let file = raw::memfd(FILE as u64);
    let area = Area::repeated(file.as_fd(), FILE, 40, 8192);
    let uring = IoUring::new().unwrap();
    let empty = pinned();
    let held = pin(&uring, &area.memory()).unwrap();
    let expected = (area.bytes as u64).div_ceil(uring.slot_limit());
    assert_eq!(u64::from(uring.state().slots_used), expected);
    assert_eq!(pinned(), empty + area.bytes as u64);
    unpin(&uring, held);
    assert_eq!(pinned(), empty);
    assert_empty(&uring);
    Ok(())
}

fn wrong_belief() -> Outcome {
    need_root()?;
    let honest = IoUring::new().unwrap().slot_limit();
    if honest != 1 << 30 {
        return Err(format!("this kernel allows {honest} bytes a slot, so nothing can be refused"));
    }
    let file = raw::memfd(FILE as u64);
    let area = Area::repeated(file.as_fd(), FILE, 16, 4096);
    let uring = IoUring::builder().slot_limit(8 << 30).build().unwrap();
    assert_eq!(uring.slot_limit(), 8 << 30);
    let held = pin(&uring, &area.memory()).unwrap();
    assert_eq!(uring.slot_limit(), 1 << 30);
    assert_eq!(uring.state().slots_used, 2);
    unpin(&uring, held);
    // A hole does not lower the assumed limit.
    let uring = IoUring::builder().slot_limit(8 << 30).build().unwrap();
    area.unmap(4096, 4096);
    let error = pin(&uring, &area.memory()).unwrap_err();
    assert!(matches!(error, PinError::Fault { ua, .. } if ua.raw() == area.at(4096) as u64), "{error}");
    assert_eq!(uring.slot_limit(), 8 << 30);
    assert_empty(&uring);
    Ok(())
}

fn many_pieces() -> Outcome {
    need_pins(SIZE)?;
    let page = 4096;
    for pages in [1u64, 63, 64, 65, 128, 129, 1000] {
        let uring = IoUring::builder().slot_limit(page).build().unwrap();
        let empty = pinned();
        let memory = GuestMemory::anonymous(pages * page).unwrap();
        let held = pin(&uring, &memory).unwrap();
        assert_eq!(u64::from(uring.state().slots_used), pages);
        assert_eq!(pinned(), empty + pages * page);
        unpin(&uring, held);
        assert_eq!(pinned(), empty);
        assert_empty(&uring);
    }
    Ok(())
}

fn slot_addresses() -> Outcome {
    need_pins(SIZE)?;
    let uring = IoUring::builder().slot_limit(1 << 20).addresses(AddressKind::SlotOffset).build().unwrap();
    assert_eq!(uring.address_kind(), AddressKind::SlotOffset);
    assert!(uring.address_note().contains("slot"));
    let space = AddressSpace::builder(uring).build().unwrap();
    let other = GuestMemory::anonymous(1 << 16).unwrap();
    let first = space.register(&other).unwrap();
    let memory = GuestMemory::anonymous(SIZE).unwrap();
    let registration = space.register(&memory).unwrap();
    let mut translator = space.translator();
    for offset in (0..SIZE).step_by(4096) {
        let mapping = translator.map(memory.ua().checked_add(offset).unwrap(), PageShift::K4).unwrap();
        let address = SlotAddress::of(mapping.hpa()).unwrap();
        assert_eq!(address, SlotAddress { slot: 1 + (offset >> 20) as u32, offset: offset & 0xf_ffff });
    }
    let mapping = translator.map(other.ua(), PageShift::K4).unwrap();
    assert_eq!(SlotAddress::of(mapping.hpa()), Some(SlotAddress { slot: 0, offset: 0 }));
    drop(mapping);
    registration.unregister().unwrap();
    first.unregister().unwrap();
    assert_eq!(SlotAddress::of(prereg::HostAddr::new(0xfff_ffff_f000 & ((1 << 40) - 1))), None);
    Ok(())
}

fn several_rings() -> Outcome {
    need_pins(80 << 20)?;
    let page = 4096;
    let uring = IoUring::builder().slot_limit(page).build().unwrap();
    let too_many = GuestMemory::anonymous(16385 * page).unwrap();
    let error = pin(&uring, &too_many).unwrap_err();
    assert_eq!(error, PinError::NoSlot { need: 16385, free: 16384 });
    assert_eq!(error.errno(), Errno::ENOSPC);
    drop(too_many);
    let memory = GuestMemory::anonymous(9000 * page).unwrap();
    let other = GuestMemory::anonymous(9000 * page).unwrap();
    let (held, held_too) = (pin(&uring, &memory).unwrap(), pin(&uring, &other).unwrap());
    let state = uring.state();
    assert_eq!((state.rings, state.slots_used), (2, 18_000));
    unpin(&uring, held);
    unpin(&uring, held_too);
    assert_empty(&uring);
    Ok(())
}

fn released_when_it_says_so() -> Outcome {
    need_pins(SIZE)?;
    let space = AddressSpace::builder(IoUring::new().unwrap()).build().unwrap();
    for _ in 0..20 {
        let memory = GuestMemory::memfd("sealed", SIZE).unwrap();
        let file = memory.descriptor().unwrap().try_clone_to_owned().unwrap();
        let registration = space.register(&memory).unwrap();
        drop(memory);
        let error = raw::seal_writes(file.as_fd()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBUSY), "still pinned and mapped");
        registration.unregister().unwrap();
        raw::seal_writes(file.as_fd()).expect("nothing is pinned or mapped any more");
    }
    Ok(())
}

fn stray() -> Outcome {
    need_pins(SIZE)?;
    let uring = IoUring::new().unwrap();
    let memory = GuestMemory::anonymous(1 << 16).unwrap();
    let (range, id) = pin(&uring, &memory).unwrap();
    for made_up in [0, u64::MAX, id.raw() ^ 1, id.raw() ^ 1 << 24, id.raw() ^ 1 << 39] {
        uring.unpin(PinId::new(made_up), range, DirtyPages::none());
    }
    assert_eq!((uring.state().stray_unpins, uring.state().slots_used), (5, 1));
    unpin(&uring, (range, id));
    unpin(&uring, (range, id));
    assert_eq!(uring.state().stray_unpins, 6);
    assert_empty(&uring);
    Ok(())
}

fn threads() -> Outcome {
    need_pins(4 << 20)?;
    let uring = IoUring::new().unwrap();
    let empty = pinned();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let uring = &uring;
            scope.spawn(move || {
                let memories: Vec<_> =
                    (1..5).map(|pages| GuestMemory::anonymous((pages + thread) * 4096).unwrap()).collect();
                for round in 0..200 {
                    let held: Vec<_> = memories.iter().map(|memory| pin(uring, memory).unwrap()).collect();
                    let order: Box<dyn Iterator<Item = _>> = if round % 2 == 0 {
                        Box::new(held.into_iter())
                    } else {
                        Box::new(held.into_iter().rev())
                    };
                    order.for_each(|held| unpin(uring, held));
                }
            });
        }
    });
    assert_eq!(uring.state().unpin_calls, 4 * 4 * 200);
    assert_eq!(pinned(), empty);
    assert_empty(&uring);
    Ok(())
}

fn ring_memory() -> Outcome {
    need_pins(0)?;
    let uring = IoUring::new().unwrap();
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut in_ring = false;
    let mut seen = 0;
    for line in text.lines() {
        if line.contains("anon_inode:[io_uring]") {
            in_ring = true;
        } else if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| in_ring) {
            assert!(flags.split_ascii_whitespace().any(|flag| flag == "dc"), "a child would see it: {flags}");
            in_ring = false;
            seen += 1;
        }
    }
    assert!(seen > 0, "no mapping of a ring found");
    drop(uring);
    Ok(())
}

fn progress() -> Outcome {
    need_pins(64 << 20)?;
    let done = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&done);
    let uring = IoUring::builder()
        .prefault_threads(2)
        .progress(move |done, total| {
            assert_eq!(total, 64 << 20);
            seen.fetch_max(done, Ordering::Relaxed);
        })
        .build()
        .unwrap();
    let memory = GuestMemory::anonymous(64 << 20).unwrap();
    let held = pin(&uring, &memory).unwrap();
    assert_eq!(done.swap(0, Ordering::Relaxed), 64 << 20);
    unpin(&uring, held);
    // Resident memory is not prefaulted again.
    prefault(&memory, Prefault::default()).unwrap();
    let held = pin(&uring, &memory).unwrap();
    assert_eq!(done.load(Ordering::Relaxed), 0);
    unpin(&uring, held);
    Ok(())
}

fn cancelled() -> Outcome {
    need_pins(64 << 20)?;
    let cancel = Arc::new(AtomicBool::new(true));
    let uring = IoUring::builder().prefault_threads(2).cancel(Arc::clone(&cancel)).build().unwrap();
    let empty = pinned();
    let memory = GuestMemory::anonymous(64 << 20).unwrap();
    let error = pin(&uring, &memory).unwrap_err();
    assert_eq!(error.errno(), Errno::EINTR, "{error}");
    assert_eq!(pinned(), empty);
    assert_empty(&uring);
    cancel.store(false, Ordering::Relaxed);
    unpin(&uring, pin(&uring, &memory).unwrap());
    Ok(())
}

fn mlock() -> Outcome {
    need_pins(SIZE)?;
    let locked = || KernelCount::now().unwrap().locked;
    let before = locked();
    let space = AddressSpace::builder(Mlock::new().unwrap()).build().unwrap();
    assert!(Mlock::WARNING.contains("not a pin"));
    // Whatever this user may see in the page map: locked pages move.
    assert_eq!(space.address_kind(), AddressKind::Invented);
    let memory = GuestMemory::anonymous(SIZE).unwrap();
    let registration = space.register(&memory).unwrap();
    assert_eq!(locked(), before + SIZE);
    registration.unregister().unwrap();
    assert_eq!(locked(), before);
    // A range with a read-only page is refused, and nothing stays locked.
    let area = Area::anonymous(16 * 4096);
    area.protect(3 * 4096, 4096, libc::PROT_READ);
    let error = pin(&Mlock::new().unwrap(), &area.memory()).unwrap_err();
    assert!(matches!(error, PinError::Fault { ua, .. } if ua.raw() == area.at(3 * 4096) as u64), "{error}");
    assert_eq!(locked(), before);
    Ok(())
}
