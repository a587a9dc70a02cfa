//! I/O rings on memory that the pin back end registered: direct transfers without a pin of their own, which end with
//! the region.
//!
//! The kernel counts pinned memory per process, so the tests run one at a time.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(unsafe_code, reason = "promises the ring that the tests keep their memory mapped")]

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prereg::{AddressKind, AddressSpace, Errno, HostAddr, Registration, UserAddr};
use prereg_linux::{
    AlignedBuffer, Completed, GuestMemory, IoMemory, IoPath, IoRing, IoSegment, IoSegments, IoUring, IoWait,
    KernelCount, PlainReason, SlotAddress, Transfer,
};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

const PAGE: u64 = 4096;

struct Host {
    pins: Arc<IoUring>,
    space: AddressSpace,
    file: Arc<File>,
}

/// `None`, with the reason printed, where no ring can be made or slots cannot be cloned.
fn host() -> Option<Host> {
    host_with(IoUring::builder().addresses(AddressKind::SlotOffset))
}

fn host_with(builder: prereg_linux::IoUringBuilder) -> Option<Host> {
    let pins = match builder.build() {
        Ok(pins) => Arc::new(pins),
        Err(error) => {
            eprintln!("skipped: {error}");
            return None;
        }
    };
    if let Err(reason) = pins.fixed_io_support() {
        eprintln!("skipped: {reason}");
        return None;
    }
    let space = AddressSpace::builder(Arc::clone(&pins)).build().unwrap();
    Some(Host { pins, space, file: Arc::new(tempfile::tempfile().unwrap()) })
}

impl Host {
    fn ring(&self) -> IoRing<u64> {
        IoRing::new(32, Arc::clone(&self.file), Some(&self.pins)).unwrap()
    }
}

fn slot_at(registration: &Registration, offset: u64) -> SlotAddress {
    let wanted = registration.ua().raw() + offset;
    let mut found = None;
    registration.visit_runs(|ua, host, pages| {
        if (ua.raw()..ua.raw() + pages * PAGE).contains(&wanted) {
            found = SlotAddress::of(HostAddr::new(host.raw() + wanted - ua.raw()));
        }
    });
    found.unwrap()
}

fn pieces(registration: &Registration, parts: &[(u64, u64)]) -> IoSegments {
    let mut pieces = None;
    for &(offset, bytes) in parts {
        let ua = UserAddr::new(registration.ua().raw() + offset);
        let piece = IoSegment { ua, plain: ua, bytes };
        match &mut pieces {
            None => pieces = Some(IoSegments::new(Some(slot_at(registration, offset)), piece)),
            Some(pieces) => assert!(pieces.push(piece)),
        }
    }
    pieces.unwrap()
}

fn transfer(ring: &mut IoRing<u64>, transfer: Transfer, pieces: IoSegments, token: u64) -> IoPath {
    // SAFETY: the tests wait for the completion while their `GuestMemory` lives.
    unsafe { ring.transfer(transfer, pieces, token) }.unwrap()
}

fn one(ring: &mut IoRing<u64>) -> Completed<u64> {
    loop {
        if let Some(completed) = ring.next_completed() {
            return completed;
        }
        ring.enter(IoWait::One).unwrap();
    }
}

fn pinned() -> u64 {
    KernelCount::now().unwrap().pinned
}

/// The kernel destroys a ring a little after its last descriptor is closed.
fn pinned_settles_at(expected: u64) -> bool {
    (0..400).any(|_| {
        std::thread::sleep(Duration::from_millis(5));
        pinned() == expected
    })
}

fn eventfd() -> Arc<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: made above, without another owner.
    Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[test]
fn data_go_straight_between_file_and_registered_memory() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let ram = GuestMemory::memfd("guest", 64 * PAGE).unwrap();
    let registration = host.space.register(&ram).unwrap();
    let before = pinned();
    let mut ring = host.ring();
    assert_eq!(ring.fixed(), Ok(()));
    assert_eq!(pinned(), before, "a copy of a slot costs no pin");
    ram.write(5 * PAGE, b"from the guest").unwrap();
    let way = transfer(&mut ring, Transfer::Write(1024), pieces(&registration, &[(5 * PAGE, 512)]), 7);
    assert_eq!(way, IoPath::Fixed);
    let completed = one(&mut ring);
    assert_eq!((completed.token, completed.result, completed.io_path), (7, Ok(512), Some(IoPath::Fixed)));
    let mut back = [0; 14];
    host.file.read_exact_at(&mut back, 1024).unwrap();
    assert_eq!(&back, b"from the guest");
    transfer(&mut ring, Transfer::Read(1024), pieces(&registration, &[(9 * PAGE + 100, 14)]), 8);
    assert_eq!(one(&mut ring).result, Ok(14));
    let mut seen = [0; 14];
    ram.read(9 * PAGE + 100, &mut seen).unwrap();
    assert_eq!(&seen, b"from the guest");
    assert_eq!(pinned(), before);
}

#[test]
fn several_pieces_of_one_slot_are_one_transfer() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let ram = GuestMemory::memfd("guest", 16 * PAGE).unwrap();
    let registration = host.space.register(&ram).unwrap();
    let mut ring = host.ring();
    host.file.write_all_at(&[b"aaa".as_slice(), b"bb", b"cccc"].concat(), 0).unwrap();
    let parts = pieces(&registration, &[(3 * PAGE, 3), (10, 2), (PAGE, 4)]);
    let way = transfer(&mut ring, Transfer::Read(0), parts, 1);
    assert_eq!(way, if ring.vectored() { IoPath::Fixed } else { IoPath::Plain });
    assert_eq!(one(&mut ring).result, Ok(9));
    for (at, expected) in [(3 * PAGE, &b"aaa"[..]), (10, b"bb"), (PAGE, b"cccc")] {
        let mut seen = vec![0; expected.len()];
        ram.read(at, &mut seen).unwrap();
        assert_eq!(seen, expected);
    }
}

#[test]
fn regions_come_and_go_in_rings_that_are_there() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let before = pinned();
    let mut rings: Vec<_> = (0..3).map(|_| host.ring()).collect();
    let ram = GuestMemory::memfd("guest", 8 * PAGE).unwrap();
    let registration = host.space.register(&ram).unwrap();
    for ring in &mut rings {
        assert_eq!(ring.slots(), (1, 0));
        let way = transfer(ring, Transfer::Write(0), pieces(&registration, &[(0, PAGE)]), 0);
        assert_eq!((way, one(ring).result), (IoPath::Fixed, Ok(PAGE as u32)));
    }
    let stale = pieces(&registration, &[(0, PAGE)]);
    registration.unregister().unwrap();
    assert_eq!(pinned(), before, "no copy keeps the pages");
    for ring in &mut rings {
        assert_eq!(ring.slots(), (0, 0));
        assert_eq!(transfer(ring, Transfer::Read(0), stale.clone(), 0), IoPath::Plain);
        assert_eq!(one(ring).result, Ok(PAGE as u32), "the memory is still mapped, so the plain way is open");
    }
}

#[test]
fn an_unregister_does_not_wait_for_rings_that_sleep_or_are_busy_elsewhere() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let before = pinned();
    let ram = GuestMemory::memfd("guest", 4 * PAGE).unwrap();
    let registration = host.space.register(&ram).unwrap();
    let kick = eventfd();
    let awake = Arc::new(AtomicBool::new(false));
    let sleeper = std::thread::spawn({
        let (mut ring, kick, awake) = (host.ring(), Arc::clone(&kick), Arc::clone(&awake));
        move || {
            ring.set_kick(kick);
            while !ring.take_kick() {
                ring.enter(IoWait::One).unwrap();
                assert!(ring.next_completed().is_none());
            }
            awake.store(true, Ordering::SeqCst);
        }
    });
    while host.pins.state().io_rings == 0 {
        std::thread::yield_now();
    }
    registration.unregister().unwrap();
    assert_eq!(pinned(), before);
    assert!(!awake.load(Ordering::SeqCst), "the unregister did not wake it");
    File::from(kick.try_clone().unwrap()).write_all(&1u64.to_ne_bytes()).unwrap();
    sleeper.join().unwrap();
}

#[test]
fn a_thousand_regions_leave_no_slot_behind() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let before = pinned();
    let mut ring = host.ring();
    let ram = GuestMemory::memfd("guest", 16 * PAGE).unwrap();
    for round in 0..1000u64 {
        let registration = host.space.register(&ram).unwrap();
        let way = transfer(&mut ring, Transfer::Write(0), pieces(&registration, &[(0, 512)]), round);
        assert_eq!((way, one(&mut ring).token), (IoPath::Fixed, round));
        assert_eq!(ring.slots(), (1, 0));
        registration.unregister().unwrap();
    }
    assert_eq!(ring.slots(), (0, 0));
    assert_eq!((host.pins.state().slots_used, host.pins.state().stuck_slots), (0, 0));
    assert_eq!(pinned(), before);
}

#[test]
fn rings_that_come_and_go_leave_nothing_behind() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let ram = GuestMemory::memfd("guest", 16 * PAGE).unwrap();
    let before = pinned();
    let registration = host.space.register(&ram).unwrap();
    for _ in 0..50 {
        let mut ring = host.ring();
        transfer(&mut ring, Transfer::Write(0), pieces(&registration, &[(0, 512)]), 0);
        drop(ring);
        assert_eq!(host.pins.state().io_rings, 0);
    }
    let ring = host.ring();
    drop(ring);
    registration.unregister().unwrap();
    assert_eq!(pinned(), before, "a ring that went holds nothing, though the kernel ends it later");
}

#[test]
fn regions_of_many_slots_and_of_several_pin_rings_are_found() {
    let _turn = turn();
    const SLOTS: u64 = 16384;
    let Some(host) = host_with(IoUring::builder().addresses(AddressKind::SlotOffset).slot_limit(PAGE)) else {
        return;
    };
    let mut ring = host.ring();
    let small = GuestMemory::memfd("small", 5 * PAGE).unwrap();
    let few = host.space.register(&small).unwrap();
    let large = GuestMemory::memfd("large", SLOTS * PAGE).unwrap();
    let many = match host.space.register(&large) {
        Ok(many) => many,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    assert_eq!(host.pins.state().rings, 2);
    assert_eq!(slot_at(&many, 0).slot, SLOTS as u32);
    // 16389 slots do not fit a table of 16384: the second region is missing and reached by plain transfers.
    assert_eq!(ring.slots(), (5, SLOTS));
    let way = transfer(&mut ring, Transfer::Write(0), pieces(&many, &[(7 * PAGE, PAGE)]), 0);
    assert_eq!((way, one(&mut ring).result), (IoPath::Plain, Ok(PAGE as u32)));
    few.unregister().unwrap();
    assert_eq!(ring.slots(), (0, SLOTS));
    // A ring that attaches now has room for it, in slots with other numbers than the pin ring's.
    let mut later = host.ring();
    assert_eq!(later.slots(), (SLOTS as u32, 0));
    large.write(7 * PAGE, b"seven").unwrap();
    let way = transfer(&mut later, Transfer::Write(0), pieces(&many, &[(7 * PAGE, 5)]), 0);
    assert_eq!((way, one(&mut later).result), (IoPath::Fixed, Ok(5)));
    let mut back = [0; 5];
    host.file.read_exact_at(&mut back, 0).unwrap();
    assert_eq!(&back, b"seven");
    many.unregister().unwrap();
    assert_eq!((ring.slots(), later.slots()), ((0, 0), (0, 0)));
}

#[test]
fn without_slots_the_same_transfers_go_the_plain_way_and_say_why() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let ram = GuestMemory::memfd("guest", PAGE).unwrap();
    let registration = host.space.register(&ram).unwrap();
    let mut ring: IoRing<u64> = IoRing::new(8, Arc::clone(&host.file), None).unwrap();
    assert_eq!(ring.fixed(), Err(PlainReason::NoBackend));
    let way = transfer(&mut ring, Transfer::WriteDurable(0), pieces(&registration, &[(0, 512)]), 0);
    assert_eq!((way, one(&mut ring).result), (IoPath::Plain, Ok(512)));
    drop(registration);
    if let Ok(physical) = IoUring::builder().addresses(AddressKind::Physical).build() {
        let ring: IoRing<u64> = IoRing::new(8, Arc::clone(&host.file), Some(&Arc::new(physical))).unwrap();
        assert_eq!(ring.fixed(), Err(PlainReason::NoSlotAddresses));
    } else {
        eprintln!("skipped in part: physical addresses are hidden from this user");
    }
}

#[test]
fn what_the_kernel_refuses_comes_back_with_everything_that_was_given() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let ram = GuestMemory::memfd("guest", 2 * PAGE).unwrap();
    let registration = host.space.register(&ram).unwrap();
    let mut ring = host.ring();
    let slot = slot_at(&registration, 0);
    let beside = UserAddr::new(registration.ua().raw() + 2 * PAGE);
    let wrong = IoSegments::new(Some(slot), IoSegment { ua: beside, plain: beside, bytes: 512 });
    assert_eq!(transfer(&mut ring, Transfer::Read(0), wrong.clone(), 3), IoPath::Fixed);
    let completed = one(&mut ring);
    assert_eq!((completed.token, completed.result), (3, Err(Errno::EFAULT)), "an address outside its slot");
    assert!(matches!(completed.memory, IoMemory::Guest(pieces) if pieces == wrong));
    let nothing = IoSegments::new(None, IoSegment { ua: beside, plain: beside, bytes: 0 });
    // SAFETY: the transfer is refused.
    let (_, token) = unsafe { ring.transfer(Transfer::Read(0), nothing, 4) }.unwrap_err();
    assert_eq!((token, ring.in_flight()), (4, 0));
}

#[test]
fn buffers_come_back_with_what_was_read() {
    let _turn = turn();
    let Some(host) = host() else { return };
    host.file.write_all_at(b"0123456789", 0).unwrap();
    let mut ring = host.ring();
    let buffer = AlignedBuffer::zeroed(8).unwrap();
    assert_eq!(buffer.as_slice().as_ptr().addr() % 4096, 0);
    ring.transfer_buffer(Transfer::Read(2), buffer, 3, 1).unwrap();
    let completed = one(&mut ring);
    assert_eq!(completed.result, Ok(5));
    assert!(matches!(completed.memory, IoMemory::Buffer(buffer) if buffer.as_slice() == b"\0\0\x0023456"));
    let empty = AlignedBuffer::zeroed(8).unwrap();
    assert!(ring.transfer_buffer(Transfer::Read(0), empty, 8, 2).is_err());
    ring.sync_data(5).unwrap();
    assert_eq!((one(&mut ring).token, ring.in_flight()), (5, 0));
}

#[test]
fn a_full_ring_gives_back_what_it_cannot_take() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let mut ring: IoRing<u64> = IoRing::new(2, Arc::clone(&host.file), None).unwrap();
    assert_eq!(ring.sq_space(), 2);
    ring.sync_data(1).unwrap();
    ring.sync_data(2).unwrap();
    assert_eq!(ring.sync_data(3), Err(3));
    assert!(ring.transfer_buffer(Transfer::Read(0), AlignedBuffer::zeroed(1).unwrap(), 0, 4).is_err());
    ring.enter(IoWait::No).unwrap();
    ring.allocate(0, 0, PAGE, 5).unwrap();
    let mut tokens: Vec<_> = (0..3).map(|_| one(&mut ring).token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, [1, 2, 5]);
}

#[test]
fn the_kick_wakes_and_is_taken_once() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let mut ring = host.ring();
    let kick = eventfd();
    ring.set_kick(Arc::clone(&kick));
    ring.enter(IoWait::For(Duration::from_millis(1))).unwrap();
    assert!(ring.next_completed().is_none() && !ring.take_kick());
    let mut bell = File::from(kick.try_clone().unwrap());
    bell.write_all(&3u64.to_ne_bytes()).unwrap();
    ring.enter(IoWait::One).unwrap();
    assert!(ring.next_completed().is_none());
    assert!(ring.take_kick() && !ring.take_kick());
    ring.enter(IoWait::For(Duration::from_millis(1))).unwrap();
    assert!(ring.next_completed().is_none() && !ring.take_kick(), "the count was taken");
}

#[test]
fn dropping_a_ring_waits_for_what_it_began() {
    let _turn = turn();
    let Some(host) = host() else { return };
    let before = pinned();
    let ram = GuestMemory::memfd("guest", 64 * PAGE).unwrap();
    let registration = host.space.register(&ram).unwrap();
    let token = Arc::new(());
    let mut ring: IoRing<Arc<()>> = IoRing::new(32, Arc::clone(&host.file), Some(&host.pins)).unwrap();
    for at in 0..32 {
        let part = pieces(&registration, &[(at * PAGE, PAGE)]);
        // SAFETY: the memory outlives the ring, which waits in its drop.
        unsafe { ring.transfer(Transfer::WriteDurable(at * PAGE), part, Arc::clone(&token)) }.unwrap();
    }
    ring.enter(IoWait::No).unwrap();
    drop(ring);
    assert_eq!(Arc::strong_count(&token), 1, "every token came back or was dropped");
    assert_eq!(host.file.metadata().unwrap().len(), 32 * PAGE);
    registration.unregister().unwrap();
    assert!(pinned_settles_at(before));
}

/// Panics on drop if the flag is set.
struct Bomb(bool);

impl Drop for Bomb {
    fn drop(&mut self) {
        assert!(!self.0, "a token that panics when it is dropped");
    }
}

/// A read without data yet, and a token that panics: the kernel must be done with the buffer before it is freed.
#[test]
fn a_token_that_panics_frees_no_buffer_that_the_kernel_may_still_write() {
    const BYTES: usize = 1 << 14;
    let _turn = turn();
    let Some(host) = host() else { return };
    let (mut reader, mut writer) = UnixStream::pair().unwrap();
    let file = Arc::new(File::from(OwnedFd::from(reader.try_clone().unwrap())));
    let mut ring: IoRing<Bomb> = IoRing::new(4, file, Some(&host.pins)).unwrap();
    // A socket has no `fallocate`: it completes at once, so its token is dropped first.
    ring.allocate(0, 0, PAGE, Bomb(true)).map_err(drop).unwrap();
    let buffer = AlignedBuffer::zeroed(BYTES).unwrap();
    ring.transfer_buffer(Transfer::Read(0), buffer, 0, Bomb(false)).map_err(drop).unwrap();
    ring.enter(IoWait::No).unwrap();
    let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(ring)));
    assert!(panicked.is_err(), "the token's panic comes out");

    // Allocations of the buffer's size, likely to reuse its memory.
    let mine: Vec<_> = (0..64).map(|_| AlignedBuffer::zeroed(BYTES).unwrap()).collect();
    writer.write_all(&[0xee; 512]).unwrap();
    reader.set_nonblocking(true).unwrap();
    let mut back = [0; 512];
    let left = reader.read(&mut back);
    let clean = mine.iter().all(|buffer| buffer.as_slice().iter().all(|byte| *byte == 0));
    assert!(clean, "the kernel wrote into memory that was freed");
    assert_eq!(left.unwrap(), 512, "nothing reads any more");
}
