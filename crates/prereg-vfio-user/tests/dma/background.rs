//! Memory that is pinned after the reply to its DMA_MAP. The simulated host blocks pins until the test lets them continue.

use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::{Arc, Condvar, Mutex};

use prereg::{Access, AddressSpace, Errno, Granule, PinError, UserAddr};
use prereg_linux::GuestMemory;
use prereg_sim::SimHost;
use prereg_vfio_user::server::{DmaError, MapMemoryError, MemoryEvent, MemoryPolicy, MemoryStore};

use crate::fixture::{Client, PAGE, iova, pinned, sealed, unsealed};
use crate::hooked::everywhere;

/// Pages of a piece.
const PIECE: u64 = 4;
const POLICY: MemoryPolicy = MemoryPolicy::BACKGROUND.with_extent(PIECE * PAGE);

/// Lets pins through, one by one or all.
#[derive(Default)]
pub(crate) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    /// Pins begun.
    begun: u64,
    /// Pins up to this number wait.
    held: u64,
    /// Pins from the first number up to the second fail, with this error.
    failing: (u64, u64),
    failure: Option<PinError>,
}

impl Gate {
    /// Waits at the gate. Returns whether the pin may be made.
    fn pass(&self) -> Result<(), PinError> {
        let mut state = self.state.lock().unwrap();
        state.begun += 1;
        let number = state.begun;
        self.changed.notify_all();
        while number <= state.held {
            state = self.changed.wait(state).unwrap();
        }
        let fails = (state.failing.0..state.failing.1).contains(&number);
        state.failure.filter(|_| fails).map_or(Ok(()), Err)
    }

    /// Makes the first pin wait.
    pub(crate) fn hold_first(&self) {
        self.hold_up_to(1);
    }

    /// Lets pins up to this number continue.
    fn hold_up_to(&self, number: u64) {
        self.state.lock().unwrap().held = number;
    }

    pub(crate) fn hold_none(&self) {
        self.state.lock().unwrap().held = 0;
        self.changed.notify_all();
    }

    fn fail(&self, from: u64, to: u64, failure: PinError) {
        let mut state = self.state.lock().unwrap();
        (state.failing, state.failure) = ((from, to), Some(failure));
    }

    /// Waits until this many pins have begun.
    pub(crate) fn wait_begun(&self, pins: u64) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.begun < pins).unwrap());
    }

    pub(crate) fn begun(&self) -> u64 {
        self.state.lock().unwrap().begun
    }
}

pub(crate) fn fixture(policy: MemoryPolicy) -> (SimHost, Arc<Gate>, Arc<MemoryStore>) {
    let (host, gate) = (SimHost::new(Granule::K4), Arc::new(Gate::default()));
    let pass = Arc::clone(&gate);
    let space = AddressSpace::builder(everywhere(&host, move || pass.pass())).build().unwrap();
    let store = MemoryStore::new(space, policy);
    (host, gate, Arc::new(store))
}

/// Memory whose first pages are there.
pub(crate) fn filled(pages: u64, there: u64) -> (GuestMemory, OwnedFd) {
    let (memory, fd) = sealed(pages);
    for page in 0..there {
        memory.write(page * PAGE, &[1]).unwrap();
    }
    (memory, fd)
}

/// A client whose first piece is being pinned: the pin waits at the gate.
struct Held {
    host: SimHost,
    gate: Arc<Gate>,
    store: Arc<MemoryStore>,
    fd: OwnedFd,
    client: Client,
}

fn held(pages: u64) -> Held {
    let (host, gate, store) = fixture(POLICY);
    gate.hold_first();
    let (_memory, fd) = filled(pages, pages);
    let client = Client::new(&store, 1);
    client.map(0, pages, &fd, 0).unwrap();
    gate.wait_begun(1);
    Held { host, gate, store, fd, client }
}

#[test]
fn a_map_is_answered_and_looked_at_while_its_memory_is_being_pinned() {
    let Held { host, gate, store, fd, client, .. } = held(16);
    let state = store.snapshot();
    assert_eq!((pinned(&store), state.pinning_mappings), (0, 1));
    assert_eq!((state.files[0].registered_bytes, state.files[0].promised_bytes), (0, 16 * PAGE));
    gate.hold_none();
    store.wait_for_background();
    let state = store.snapshot();
    assert_eq!((pinned(&store), state.pinning_mappings, state.registrations), (16, 0, 4));
    assert_eq!((state.files[0].registered_bytes, state.files[0].promised_bytes), (16 * PAGE, 0));
    // Pinned memory can be mapped meanwhile.
    client.map(100, 2, &fd, 5).unwrap();
    assert_eq!(store.snapshot().shared, 1);
    drop(client);
    drop(store);
    host.assert_clean();
}

#[test]
fn a_device_overtakes_the_background_and_is_not_held_up_by_it() {
    let Held { host, gate, store, client, .. } = held(16);
    client.dma.write(iova(13), b"soon").unwrap();
    assert_eq!((gate.begun(), pinned(&store)), (2, PIECE), "only the piece that it touched");
    client.dma.write(iova(14), b"once").unwrap();
    assert_eq!(gate.begun(), 2);
    // A thread that needs the piece being pinned waits for that pin.
    std::thread::scope(|scope| {
        let access = scope.spawn(|| client.dma.write(iova(1), b"both"));
        gate.hold_none();
        access.join().unwrap().unwrap();
    });
    store.wait_for_background();
    assert_eq!((gate.begun(), pinned(&store)), (4, 16));
    drop((client, store));
    host.assert_clean();
}

#[test]
fn a_sparse_file_of_a_tebibyte_is_mapped_and_not_filled() {
    let (host, gate, store) = fixture(MemoryPolicy::BACKGROUND);
    let Some(sparse) = unsealed(1) else { return };
    sparse.set_len(1 << 40).unwrap();
    let client = Client::new(&store, 1);
    client.map(0, (1 << 40) / PAGE, &sparse, 0).unwrap();
    store.wait_for_background();
    assert_eq!((gate.begun(), pinned(&store), sparse.metadata().unwrap().blocks()), (0, 0, 0));
    assert_eq!(store.snapshot().files[0].promised_bytes, 1 << 40);
    drop(client);
    // Above the limit it is refused before anything is pinned; each refusal is reported with its reason.
    let (limited_host, gate, limited) = fixture(MemoryPolicy::BACKGROUND.with_total_bytes(1 << 30));
    let client = Client::new(&limited, 5);
    for _ in 0..3 {
        let refused = client.map(0, (1 << 40) / PAGE, &sparse, 0).unwrap_err();
        assert_eq!(refused, MapMemoryError::Limit { bytes: 1 << 40, used: 0, limit: 1 << 30 });
        assert_eq!(refused.errno(), Errno::ENOMEM);
    }
    assert_eq!((gate.begun(), client.space.snapshot().files, limited.snapshot().refused_maps), (0, 0, 3));
    let error = MapMemoryError::Limit { bytes: 1 << 40, used: 0, limit: 1 << 30 };
    let refused = MemoryEvent::MapRefused { iova: iova(0), bytes: 1 << 40, error };
    assert_eq!(client.observer.events(), [refused, refused, refused]);
    drop((store, client, limited));
    host.assert_clean();
    limited_host.assert_clean();
}

#[test]
fn only_blocks_with_pages_are_pinned_before_a_device_attaches() {
    let (_host, _gate, store) = fixture(POLICY);
    let (memory, fd) = sealed(32);
    // A full piece, half of one, and a single page.
    for page in [8, 9, 10, 11, 16, 17, 24] {
        memory.write(page * PAGE, &[1]).unwrap();
    }
    let client = Client::new(&store, 1);
    client.map(0, 32, &fd, 0).unwrap();
    store.wait_for_background();
    assert_eq!(pinned(&store), 2 * PIECE);
    client.dma.write(iova(24), b"now").unwrap();
    assert_eq!(pinned(&store), 3 * PIECE);
    client.dma.write(iova(2), b"new").unwrap();
    assert_eq!(pinned(&store), 4 * PIECE);
}

#[test]
fn unmapping_ends_what_is_under_way_and_does_not_wait_for_it() {
    let Held { host, gate, store, fd, client, .. } = held(64);
    client.unmap(0, 64);
    gate.hold_none();
    store.wait_for_background();
    assert_eq!(gate.begun(), 1, "no further piece");
    // The piece stays registered, as unmapped memory does, and can be mapped again.
    client.map(0, 1, &fd, 0).unwrap();
    assert_eq!((gate.begun(), client.space.snapshot().iova.mappings), (1, 1));
    drop((client, store));
    host.assert_clean();
}

#[test]
fn a_client_that_goes_leaves_nothing_behind_though_it_is_being_pinned_for() {
    let Held { host, gate, store, client, .. } = held(64);
    let observer = Arc::clone(&client.observer);
    drop(client);
    assert_eq!(store.snapshot().files.len(), 0);
    gate.hold_none();
    store.wait_for_background();
    assert_eq!((gate.begun(), pinned(&store)), (1, 0));
    assert_eq!(observer.events(), [], "that is no failure");
    drop(store);
    host.assert_clean();
}

#[test]
fn a_client_that_is_cut_off_sees_nothing_of_a_cancelled_pin() {
    let (host, gate, store) = fixture(MemoryPolicy::BACKGROUND.with_extent(PIECE * PAGE));
    let (memory, fd) = filled(16, 0);
    let client = Client::new(&store, 1);
    client.map(0, 16, &fd, 0).unwrap();
    store.wait_for_background();
    // Like a completion queue: held before the end, written after it.
    let queue = client.hold(0, 1);
    queue.write(0, &[1; 8]).unwrap();
    gate.hold_up_to(2);
    const CANCELLED: PinError =
        PinError::Os { ua: UserAddr::new(0), errno: Errno::EINTR, during: "bringing it into memory" };
    gate.fail(2, 3, CANCELLED);
    std::thread::scope(|scope| {
        let access = scope.spawn(|| client.dma.write(iova(8), &[2]));
        gate.wait_begun(2);
        client.space.cut_off();
        gate.hold_none();
        assert_eq!(access.join().unwrap(), Err(DmaError::Disconnected));
    });
    let gone = Err(DmaError::Disconnected);
    assert_eq!((queue.write(0, &[3; 8]), queue.store_u64(8, 3), queue.store_u32(8, 3)), (gone, gone, gone));
    assert_eq!(queue.load_u32(0), Err(DmaError::Disconnected));
    let mut found = [0; 16];
    memory.read(0, &mut found).unwrap();
    assert_eq!(found, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
    drop((queue, client, store));
    host.assert_clean();
}

#[test]
fn stopping_starts_no_further_block_and_leaves_the_rest_to_first_use() {
    let Held { gate, store, fd, client, .. } = held(64);
    store.stop_background();
    gate.hold_none();
    client.dma.write(iova(40), b"late").unwrap();
    client.map(100, 64, &fd, 0).unwrap();
    store.wait_for_background();
    assert_eq!(gate.begun(), 2);
}

#[test]
fn a_block_that_cannot_be_pinned_fails_alone_and_can_be_pinned_later() {
    let (_host, gate, store) = fixture(POLICY);
    const BAD: PinError = PinError::Fault { ua: UserAddr::new(0), why: "of the test" };
    // The second piece in the background, and the device's first attempts.
    gate.fail(2, 3, BAD);
    let (_memory, fd) = filled(16, 16);
    let client = Client::new(&store, 9);
    client.map(0, 16, &fd, 0).unwrap();
    store.wait_for_background();
    assert_eq!((gate.begun(), pinned(&store)), (4, 12));
    gate.fail(5, 7, BAD);
    for _ in 0..2 {
        let error = client.dma.hold(iova(5), PAGE, Access::Read).map(drop).unwrap_err();
        assert!(matches!(error, DmaError::Memory { errno: Errno::EFAULT, .. }), "{error}");
    }
    client.dma.write(iova(9), b"fine").unwrap();
    let events = client.observer.events();
    assert!(
        events
            .iter()
            .all(|event| matches!(event, MemoryEvent::PinFailed { error } if error.errno() == Errno::EFAULT))
    );
    assert_eq!(events.len(), 3);
    assert_eq!(store.snapshot().failed_pins, 3);
    client.dma.write(iova(5), b"better").unwrap();
    assert_eq!((pinned(&store), client.space.snapshot().iova.accesses), (16, 0));
}

#[test]
fn the_background_ends_at_the_first_block_above_the_limit_and_reports_it() {
    const FULL: PinError = PinError::NoSlot { need: 1, free: 0 };
    const STOPPED: PinError =
        PinError::Os { ua: UserAddr::new(0), errno: Errno::EINTR, during: "of the test" };
    for failure in [PinError::OutOfMemory, FULL, STOPPED] {
        let (host, gate, store) = fixture(POLICY);
        gate.fail(2, 100, failure);
        let (_memory, fd) = filled(64, 64);
        let client = Client::new(&store, 9);
        for at in [0, 100] {
            client.map(at, 64, &fd, 0).unwrap();
            store.wait_for_background();
        }
        assert_eq!((gate.begun(), pinned(&store)), (3, PIECE), "one try for each of the mappings");
        let is_it = |event: &MemoryEvent| matches!(event, MemoryEvent::BackgroundEnded { error } if error.errno() == failure.errno());
        let events = client.observer.events();
        assert!(events.len() == 2 && events.iter().all(is_it), "{events:?}");
        assert_eq!(store.snapshot().failed_pins, 2);
        gate.fail(0, 0, failure);
        client.dma.write(iova(40), b"room again").unwrap();
        assert_eq!(pinned(&store), 2 * PIECE);
        drop((client, store));
        host.assert_clean();
    }
}

#[test]
fn clients_share_the_charge_of_one_file_and_the_room_for_all() {
    let (host, _gate, store) = fixture(POLICY.with_total_bytes(20 * PAGE).with_client_bytes(16 * PAGE));
    let ((_a, shared), (_b, other), (_c, large)) = (filled(12, 12), filled(10, 0), filled(20, 0));
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(0, 12, &shared, 0).unwrap();
    two.map(0, 12, &shared, 0).unwrap();
    store.wait_for_background();
    assert_eq!(pinned(&store), 12);
    // A client's own limit is checked first. Whole pieces are charged, up to the end of the file.
    let refused = two.map(100, 10, &other, 0).unwrap_err();
    assert_eq!(refused, MapMemoryError::Quota { bytes: 10 * PAGE, left: 4 * PAGE });
    two.map(100, 3, &other, 0).unwrap();
    two.map(200, 2, &other, 1).unwrap();
    let three = Client::new(&store, 3);
    let refused = three.map(0, 5, &large, 0).unwrap_err();
    assert_eq!(refused, MapMemoryError::Limit { bytes: 8 * PAGE, used: 16 * PAGE, limit: 20 * PAGE });
    three.map(0, 4, &large, 8).unwrap();
    // Unmapped memory makes room, pinned or not.
    two.unmap(100, 3);
    two.unmap(200, 2);
    three.map(4, 4, &large, 0).unwrap();
    assert!(three.map(8, 1, &large, 4).is_err());
    assert_eq!(one.byte(0), 1);
    drop((one, two));
    three.map(8, 8, &large, 12).unwrap();
    drop((three, store));
    host.assert_clean();
}

#[test]
fn maps_that_come_and_go_faster_than_they_are_pinned_do_not_pile_up() {
    let (_host, gate, store) = fixture(POLICY);
    gate.hold_first();
    let (_memory, fd) = filled(4, 4);
    let client = Client::new(&store, 1);
    client.map(0, 1, &fd, 0).unwrap();
    gate.wait_begun(1);
    // All threads of the store are busy with one piece, which all mappings need.
    for _ in 0..5000 {
        client.map(1, 1, &fd, 1).unwrap();
        client.unmap(1, 1);
    }
    assert!(store.snapshot().pinning_mappings <= 1100, "{}", store.snapshot().pinning_mappings);
    gate.hold_none();
    store.wait_for_background();
    assert_eq!(pinned(&store), 4);
}
