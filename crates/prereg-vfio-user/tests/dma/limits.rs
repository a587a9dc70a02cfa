//! Limits: too little memory, and clients that request too much.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use prereg::{AddressSpace, AddressSpaceBuilder, Errno, Granule};
use prereg_iommu::iova::IovaMapError;
use prereg_linux::{GuestMemory, MemlockAccount};
use prereg_sim::SimHost;
use prereg_vfio_user::server::{MapMemoryError, MemoryEvent, MemoryPolicy, MemoryStore};

use crate::background::{filled, fixture};
use crate::fixture::{Client, PAGE, another, iova, pinned, pins, sealed, store};
use crate::hole::punch;
use crate::hooked::{Hooked, everywhere};

fn limited(pages: u64, policy: MemoryPolicy) -> Option<Arc<MemoryStore>> {
    let account = MemlockAccount::with_limit(Granule::K4, Some(pages));
    Some(Arc::new(MemoryStore::new(AddressSpaceBuilder::new(pins()?, account).build().unwrap(), policy)))
}

#[test]
fn over_the_limit_nothing_is_half_done() {
    let Some(store) = limited(10, MemoryPolicy::EAGER.with_extent(4 * PAGE)) else { return };
    let (_memory, fd) = sealed(16);
    let client = Client::new(&store, 1);
    client.map(0, 1, &fd, 0).unwrap();
    let error = client.map(1, 12, &fd, 1).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOMEM);
    assert!(error.to_string().contains("limit"), "{error}");
    assert_eq!((pinned(&store), store.space().snapshot().charged_pages), (4, 4));
    assert_eq!(client.space.snapshot().iova.mappings, 1);
    client.map(1, 4, &fd, 1).unwrap();
    assert_eq!(pinned(&store), 8);
}

#[test]
fn memory_that_nothing_maps_makes_room_for_memory_that_is_wanted() {
    let Some(store) = limited(10, MemoryPolicy::EAGER) else { return };
    let ((_a, first), (_b, second)) = (sealed(6), sealed(8));
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(0, 6, &first, 0).unwrap();
    assert_eq!(two.map(0, 8, &second, 0).unwrap_err().errno(), Errno::ENOMEM);
    assert_eq!(two.space.snapshot().files, 0, "a refused file is not kept");
    // Like an unplugged DIMM: its file stays, but is not mapped any more.
    one.unmap(0, 6);
    two.map(0, 8, &second, 0).unwrap();
    assert_eq!(pinned(&store), 8);
    assert_eq!(one.map(0, 6, &first, 0).unwrap_err().errno(), Errno::ENOMEM);
    two.unmap(0, 8);
    one.map(0, 6, &first, 0).unwrap();
    assert_eq!(pinned(&store), 6);
}

#[test]
fn one_client_has_a_bound_of_its_own() {
    let Some(store) = store(MemoryPolicy::EAGER.with_client_bytes(10 * PAGE)) else { return };
    let ((_a, first), (_b, second)) = (sealed(6), sealed(5));
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(0, 1, &first, 0).unwrap();
    let error = one.map(1, 1, &second, 0).unwrap_err();
    assert_eq!(error, MapMemoryError::Quota { bytes: 5 * PAGE, left: 4 * PAGE });
    assert_eq!(error.errno(), Errno::ENOMEM);
    two.map(0, 1, &second, 0).unwrap();
    assert_eq!(pinned(&store), 11);
    // Registered memory costs nothing more in total, but counts for each client that uses it.
    let shared = MapMemoryError::Quota { bytes: 5 * PAGE, left: 4 * PAGE };
    assert_eq!(one.map(1, 1, &second, 0), Err(shared));
    assert_eq!((pinned(&store), one.space.snapshot().files), (11, 1));
    one.unmap(0, 1);
    one.map(1, 1, &second, 0).unwrap();
    assert_eq!(pinned(&store), 5, "what the client had of other files made room");
}

#[test]
fn memory_that_another_client_had_charged_counts_whenever_it_is_mapped() {
    for policy in [MemoryPolicy::BACKGROUND, MemoryPolicy::EAGER, MemoryPolicy::FIRST_USE] {
        let (_host, _gate, store) = fixture(policy.with_extent(2 * PAGE).with_client_bytes(8 * PAGE));
        let ((_a, large), (_b, small)) = (filled(8, 8), filled(2, 2));
        let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
        two.map(0, 8, &large, 0).unwrap();
        // Memory at first use stays as long as an access holds it, and can be released for others after that.
        let held = two.hold(0, 8);
        store.wait_for_background();
        one.map(0, 2, &small, 0).unwrap();
        let own = one.hold(0, 2);
        // Registered, so it needs no charge, but refused for the client's own limit.
        let refused = one.map(10, 2, &large, 0).unwrap_err();
        assert_eq!(refused, MapMemoryError::Quota { bytes: 8 * PAGE, left: 6 * PAGE }, "{policy:?}");
        let state = store.snapshot();
        assert_eq!((state.refused_maps, state.space.pinned_pages), (1, 10));
        drop(own);
        one.unmap(0, 2);
        one.map(10, 2, &large, 0).unwrap();
        assert_eq!(pinned(&store), 8);
        drop(held);
    }
}

#[test]
fn memory_that_was_released_all_over_a_file_is_registered_again_in_few_mappings() {
    const PIECES: u64 = 1000;
    let (host, _gate, store) = fixture(MemoryPolicy::EAGER.with_extent(PAGE).with_total_bytes(PIECES * PAGE));
    let ((_a, fd), (_b, other)) = (sealed(PIECES), sealed(PIECES / 2));
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    for page in 0..PIECES {
        one.map(page, 1, &fd, page).unwrap();
    }
    for _ in 0..3 {
        for page in (0..PIECES).step_by(2) {
            one.unmap(page, 1);
        }
        two.map(0, PIECES / 2, &other, 0).unwrap();
        two.unmap(0, PIECES / 2);
        for page in (0..PIECES).step_by(2) {
            one.map(page, 1, &fd, page).unwrap();
        }
    }
    assert_eq!(pinned(&store), PIECES);
    drop((one, two, store));
    host.assert_clean();
}

#[test]
fn maps_of_the_same_memory_over_and_over_run_into_a_bound_and_are_counted() {
    const PAGES: u64 = 4096;
    let (_host, _gate, store) = fixture(MemoryPolicy::EAGER.with_extent(PAGE));
    let (_memory, fd) = sealed(PAGES);
    let client = Client::new(&store, 1);
    let mut mapped = 0;
    let refused = loop {
        match client.map(mapped * PAGES, PAGES, &fd, 0) {
            Ok(()) => mapped += 1,
            Err(error) => break error,
        }
    };
    let used = mapped * PAGES;
    assert_eq!(mapped, (1 << 18) / PAGES);
    let full = IovaMapError::SegmentLimit { segments: PAGES, used, limit: 1 << 18 };
    assert_eq!((refused, refused.errno()), (MapMemoryError::Map(full), Errno::ENOSPC));
    assert_eq!((store.snapshot().refused_maps, client.space.snapshot().iova.segments), (1, used));
    let events = client.observer.events();
    assert!(matches!(events[..], [MemoryEvent::MapRefused { error, .. }] if error == refused), "{events:?}");
    client.unmap(0, PAGES);
    client.map(0, PAGES, &fd, 0).unwrap();
}

#[test]
fn a_client_may_not_hand_over_any_number_of_files() {
    let Some(store) = store(MemoryPolicy::FIRST_USE) else { return };
    let client = Client::new(&store, 1);
    let files: Vec<_> = (0..140).map(|_| sealed(1)).collect();
    let mut refused = 0;
    for (at, (_, fd)) in (0..).zip(&files) {
        match client.map(at, 1, fd, 0) {
            Ok(()) => {}
            Err(error) => {
                assert_eq!(error.errno(), Errno::ENOSPC, "{error}");
                refused += 1;
            }
        }
    }
    let state = client.space.snapshot();
    assert_eq!((refused, state.files, state.iova.mappings), (140 - 128, 128, 128));
}

#[test]
fn files_that_were_unplugged_do_not_pile_up() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let client = Client::new(&store, 1);
    let (_ram, ram) = sealed(2);
    client.map(1000, 2, &ram, 0).unwrap();
    for at in 0..40 {
        let (_dimm, dimm) = sealed(1);
        client.map(at, 1, &dimm, 0).unwrap();
        client.unmap(at, 1);
    }
    let files = client.space.snapshot().files;
    assert!((2..=6).contains(&files), "{files} files");
    assert_eq!(pinned(&store), 2 + (files - 1));
    assert!(client.dma.load_u32(iova(1000)).is_ok());
}

#[test]
fn a_file_full_of_holes_runs_into_a_bound_and_not_the_process() {
    /// Fragments that a client may have.
    const MOST: u64 = 1024;
    let Some(store) = store(MemoryPolicy::EAGER.with_extent(2 * PAGE)) else { return };
    let memory = GuestMemory::memfd("full of holes", 2 * (MOST + 9) * PAGE).unwrap();
    let fd = another(&memory.descriptor().unwrap());
    let client = Client::new(&store, 1);
    let mut refused = 0;
    for piece in 0..MOST + 9 {
        let page = 2 * piece;
        // The other half of the piece stays mapped until the punched half is registered again.
        client.map(100_000 + page, 2, &fd, page).unwrap();
        punch(fd.as_fd(), page * PAGE, PAGE);
        match client.map(page, 1, &fd, page) {
            Ok(()) => assert_eq!(refused, 0),
            Err(error) => {
                assert_eq!((error, error.errno()), (MapMemoryError::TooScattered, Errno::ENOSPC));
                refused += 1;
            }
        }
        client.unmap(100_000 + page, 2);
    }
    assert_eq!((refused, store.snapshot().refused_maps, pinned(&store)), (9, 9, MOST));
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let own = maps.lines().filter(|line| line.contains("full of holes")).count();
    assert!(own <= 1 + 2 * 2, "{own}: the guest's, and two for each of two bases");
    drop((client, memory));
    assert_eq!(pinned(&store), 0);
}

#[test]
fn unplugged_memory_is_given_up_on_the_second_look() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let client = Client::new(&store, 1);
    let ((_ram, ram), (_dimm, dimm)) = (sealed(8), sealed(4));
    client.map(0, 8, &ram, 0).unwrap();
    client.map(8, 4, &dimm, 0).unwrap();
    client.unmap(8, 4);
    client.space.release_idle();
    assert_eq!(pinned(&store), 12, "a look alone cannot tell it from a moment without a map");
    client.space.release_idle();
    assert_eq!((pinned(&store), store.snapshot().files.len()), (8, 1));
    client.map(8, 4, &dimm, 0).unwrap();
    assert_eq!(pinned(&store), 12, "plugged again, it is registered again");
    for (at, pages) in [(0, 8), (8, 4)] {
        client.unmap(at, pages);
    }
    for _ in 0..3 {
        client.space.release_idle();
    }
    assert_eq!(pinned(&store), 12, "a guest that maps nothing at all is between a reset and its driver");
}

#[test]
fn holes_do_not_make_a_client_exceed_the_limits() {
    let policy = MemoryPolicy::BACKGROUND.with_extent(4 * PAGE);
    for policy in [policy.with_total_bytes(6 * PAGE), policy.with_client_bytes(6 * PAGE)] {
        let Some(store) = store(policy) else { return };
        let (_memory, fd) = sealed(4);
        let client = Client::new(&store, 1);
        for at in [0, 100] {
            client.map(at, 4, &fd, 0).unwrap();
        }
        store.wait_for_background();
        client.dma.write(iova(0), b"pinned").unwrap();
        assert_eq!(pinned(&store), 4);
        punch(fd.as_fd(), 0, 4 * PAGE);
        // The old pages are mapped, and new ones do not fit besides them.
        assert_eq!(client.map(200, 4, &fd, 0).unwrap_err().errno(), Errno::ENOMEM);
        assert!(client.dma.write(iova(100), b"promised").is_err());
        assert_eq!(pinned(&store), 4);
        client.unmap(0, 4);
        client.dma.write(iova(100), b"promised").unwrap();
        client.map(200, 4, &fd, 0).unwrap();
        assert_eq!(pinned(&store), 4);
    }
}

#[test]
fn a_map_that_can_never_fit_costs_no_other_client_its_idle_memory() {
    for policy in
        [MemoryPolicy::EAGER.with_total_bytes(10 * PAGE), MemoryPolicy::EAGER.with_client_bytes(10 * PAGE)]
    {
        let Some(store) = store(policy) else { return };
        let ((_a, idle), (_b, large)) = (sealed(6), sealed(12));
        let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
        one.map(0, 6, &idle, 0).unwrap();
        one.unmap(0, 6);
        assert_eq!(two.map(0, 1, &large, 0).unwrap_err().errno(), Errno::ENOMEM);
        assert_eq!(pinned(&store), 6);
        // The client's own idle memory makes room within its limit.
        let (_c, other) = sealed(8);
        one.map(0, 1, &other, 0).unwrap();
    }
}

#[test]
fn other_clients_map_while_memory_is_unpinned_to_make_room() {
    /// Time after which the test fails if the other client is made to wait.
    const PATIENCE: Duration = Duration::from_secs(10);
    let host = SimHost::new(Granule::K4);
    let (map_other, asked) = mpsc::channel::<()>();
    let (mapped, was_mapped) = mpsc::channel::<()>();
    let at_first_unpin = Mutex::new(Some((map_other, was_mapped)));
    let answers = Arc::new(Mutex::new(Vec::new()));
    let answered = Arc::clone(&answers);
    let unpins = move || {
        let Some((map_other, was_mapped)) = at_first_unpin.lock().unwrap().take() else { return };
        map_other.send(()).unwrap();
        answered.lock().unwrap().push(was_mapped.recv_timeout(PATIENCE));
    };
    let pins = Hooked { unpins: Box::new(unpins), ..everywhere(&host, || Ok(())) };
    let space = AddressSpace::builder(pins).build().unwrap();
    let store = Arc::new(MemoryStore::new(space, MemoryPolicy::EAGER.with_total_bytes(10 * PAGE)));
    let ((_a, idle), (_b, wanted), (_c, small)) = (sealed(6), sealed(8), sealed(1));
    let [one, two, three] = [1, 2, 3].map(|number| Client::new(&store, number));
    one.map(0, 6, &idle, 0).unwrap();
    one.unmap(0, 6);
    let (other, file) = (&three, &small);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            asked.recv_timeout(PATIENCE).unwrap();
            other.map(0, 1, file, 0).unwrap();
            // The receiver is gone if the test has failed already.
            let _ = mapped.send(());
        });
        two.map(0, 8, &wanted, 0).unwrap();
    });
    assert_eq!(*answers.lock().unwrap(), [Ok(())]);
    assert_eq!(pinned(&store), 9);
    drop((one, two, three, store));
    host.assert_clean();
}
