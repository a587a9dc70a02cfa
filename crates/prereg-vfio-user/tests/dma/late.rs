//! Pins that finish after the state around them changed.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use prereg::{AddressSpace, Errno, Granule, PinError};
use prereg_sim::SimHost;
use prereg_vfio_user::server::{MemoryPolicy, MemoryStore};

use crate::background::{filled, fixture};
use crate::fixture::{Client, PAGE, another, pinned, pins, sealed};
use crate::hole::punch;
use crate::hooked::{Hooked, everywhere};

#[test]
fn a_pin_of_pages_that_were_taken_out_meanwhile_is_made_again() {
    let Some(pins) = pins() else { return };
    let (memory, fd) = sealed(4);
    let memory = Arc::new(memory);
    for page in 0..4 {
        memory.write(page * PAGE, &[1]).unwrap();
    }
    let client: Arc<Mutex<Option<Arc<Client>>>> = Arc::default();
    let (device, guest, hole, is_first) =
        (Arc::clone(&client), Arc::clone(&memory), another(&fd), AtomicBool::new(true));
    let pinned_once = move || {
        if is_first.swap(false, Ordering::SeqCst) {
            let client = device.lock().unwrap().clone().unwrap();
            client.unmap(0, 4);
            punch(hole.as_fd(), 0, 4 * PAGE);
            for page in 0..4 {
                guest.write(page * PAGE, &[2]).unwrap();
            }
            client.map(50, 4, &hole, 0).unwrap();
        }
    };
    let space =
        AddressSpace::builder(Hooked { pinned: Box::new(pinned_once), ..Hooked::new(pins) }).build().unwrap();
    let store = Arc::new(MemoryStore::new(space, MemoryPolicy::BACKGROUND.with_extent(4 * PAGE)));
    let made = Arc::new(Client::new(&store, 1));
    *client.lock().unwrap() = Some(Arc::clone(&made));
    made.map(0, 4, &fd, 0).unwrap();
    store.wait_for_background();
    assert_eq!(made.byte(50), 2);
    let state = store.snapshot();
    assert_eq!((state.registrations, state.stale), (2, 1));
    assert_eq!((pinned(&store), state.files[0].stale_extents), (4, 0), "the old pages are released");
    *client.lock().unwrap() = None;
}

#[test]
fn memory_that_is_unmapped_and_mapped_again_while_it_is_pinned_is_charged_once() {
    let (host, gate, store) =
        fixture(MemoryPolicy::BACKGROUND.with_extent(4 * PAGE).with_total_bytes(6 * PAGE));
    gate.hold_first();
    let (_memory, fd) = filled(4, 4);
    let client = Client::new(&store, 1);
    client.map(0, 4, &fd, 0).unwrap();
    gate.wait_begun(1);
    client.unmap(0, 4);
    client.map(0, 4, &fd, 0).unwrap();
    assert_eq!(store.snapshot().files[0].promised_bytes, 4 * PAGE);
    gate.hold_none();
    store.wait_for_background();
    assert_eq!((gate.begun(), pinned(&store)), (1, 4));
    drop((client, store));
    host.assert_clean();
}

#[test]
fn what_a_failed_call_registered_stays_for_those_that_map_it_already() {
    let host = SimHost::new(Granule::K4);
    let (_memory, fd) = sealed(8);
    let other: Arc<Mutex<Option<Client>>> = Arc::default();
    let (device, memory, pins) = (Arc::clone(&other), another(&fd), AtomicU64::new(0));
    // The second piece cannot be pinned, and the first is mapped by another client by then.
    let admits = move || {
        let is_second = pins.fetch_add(1, Ordering::SeqCst) == 1;
        if is_second {
            device.lock().unwrap().as_ref().unwrap().map(0, 4, &memory, 0).unwrap();
        }
        if is_second { Err(PinError::OutOfMemory) } else { Ok(()) }
    };
    let space = AddressSpace::builder(everywhere(&host, admits)).build().unwrap();
    let store = Arc::new(MemoryStore::new(space, MemoryPolicy::EAGER.with_extent(4 * PAGE)));
    *other.lock().unwrap() = Some(Client::new(&store, 2));
    let client = Client::new(&store, 1);
    assert_eq!(client.map(0, 8, &fd, 0).unwrap_err().errno(), Errno::ENOMEM);
    assert_eq!((pinned(&store), store.snapshot().files[0].registered_bytes), (4, 4 * PAGE));
    client.map(0, 8, &fd, 0).unwrap();
    assert_eq!((pinned(&store), store.snapshot().registrations), (8, 2), "the first piece is shared");
    *other.lock().unwrap() = None;
    drop((client, store));
    host.assert_clean();
}
