//! A file is registered once, as long as a client uses it.

use prereg::Access;
use prereg_vfio_user::server::{DmaError, MapMemoryError, MemoryPolicy};

use crate::fixture::{Client, PAGE, iova, pinned, sealed, store};

#[test]
fn a_thousand_maps_of_two_clients_are_one_pin() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (_memory, fd) = sealed(16);
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    for round in 0..500 {
        for (client, page) in [(&one, round % 16), (&two, (round + 5) % 16)] {
            client.map(round, 1, &fd, page).unwrap();
        }
        if round >= 8 {
            one.unmap(round - 8, 1);
            two.unmap(round - 8, 1);
        }
    }
    let state = store.snapshot();
    assert_eq!((state.registrations, state.space.pins, state.space.pinned_pages), (1, 1, 16));
    assert_eq!((state.shared, state.stale, state.space.charged_pages), (999, 0, 16));
    assert_eq!((state.files.len(), state.files[0].clients, state.files[0].bytes), (1, 2, 16 * PAGE));
    let state = one.space.snapshot();
    assert_eq!((state.maps, state.unmaps, state.files, state.iova.mappings), (500, 492, 1, 8));
}

#[test]
fn what_one_client_writes_the_other_reads_and_the_guest_sees() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (memory, fd) = sealed(8);
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(100, 8, &fd, 0).unwrap();
    two.map(7, 2, &fd, 3).unwrap();
    one.dma.write(iova(103), b"across").unwrap();
    let mut found = [0; 6];
    two.dma.read(iova(7), &mut found).unwrap();
    assert_eq!(&found, b"across");
    memory.read(3 * PAGE, &mut found).unwrap();
    assert_eq!(&found, b"across");
    let pieces = |client: &Client, at| client.hold(at, 1).pieces().next().unwrap();
    assert_eq!(pieces(&one, 103), pieces(&two, 7), "one page, one address");
}

#[test]
fn the_last_client_takes_the_registration_along() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (_memory, fd) = sealed(4);
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(0, 4, &fd, 0).unwrap();
    two.map(0, 1, &fd, 2).unwrap();
    one.unmap(0, 4);
    assert_eq!(pinned(&store), 4, "a guest that maps nothing at the moment keeps its pin");
    one.space.disconnect();
    assert_eq!(pinned(&store), 4);
    drop(two);
    assert_eq!(pinned(&store), 0);
    assert!(store.snapshot().files.is_empty());
    store.space().reap();
    assert!(store.snapshot().space.regions.is_empty());
}

#[test]
fn a_client_that_is_gone_is_drained_and_not_waited_for() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (memory, fd) = sealed(4);
    let (_other_memory, other_fd) = sealed(2);
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(0, 4, &fd, 0).unwrap();
    two.map(0, 2, &other_fd, 0).unwrap();
    let hold = one.hold(1, 1);
    one.space.disconnect();
    assert_eq!(one.dma.hold(iova(0), 1, Access::Read).map(|_| ()), Err(DmaError::Disconnected));
    assert_eq!(one.dma.load_u32(iova(0)), Err(DmaError::Disconnected));
    assert_eq!(one.map(9, 1, &fd, 0), Err(MapMemoryError::Disconnected));
    assert_eq!(pinned(&store), 6, "what is held stays");
    hold.write(0, b"late").unwrap();
    let mut found = [0; 4];
    memory.read(PAGE, &mut found).unwrap();
    assert_eq!(&found, b"late");
    two.dma.write(iova(0), b"fine").unwrap();
    drop(hold);
    assert_eq!(pinned(&store), 2);
    assert_eq!(one.far.rung.load(std::sync::atomic::Ordering::SeqCst), 1);
}

#[test]
fn an_unmap_waits_for_its_own_accesses_only() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (_memory, fd) = sealed(4);
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(0, 4, &fd, 0).unwrap();
    two.map(0, 4, &fd, 0).unwrap();
    let hold = one.hold(0, 4);
    let unmapping = one.space.unmap(iova(0), 4 * PAGE).unwrap();
    assert!(!unmapping.is_done());
    assert!(matches!(one.dma.load_u32(iova(0)), Err(DmaError::Closing { .. })));
    two.unmap(0, 4);
    one.map(0, 1, &fd, 3).unwrap();
    drop(hold);
    assert!(unmapping.is_done());
    assert_eq!(store.snapshot().registrations, 1);
}

#[test]
fn a_file_that_comes_again_after_everybody_left_is_registered_again() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (memory, fd) = sealed(2);
    for round in 1..4u8 {
        let client = Client::new(&store, u64::from(round));
        client.map(0, 2, &fd, 0).unwrap();
        memory.write(PAGE, &[round]).unwrap();
        assert_eq!(client.byte(1), round);
        assert_eq!((pinned(&store), store.snapshot().registrations), (2, u64::from(round)));
    }
    assert_eq!(pinned(&store), 0);
}
