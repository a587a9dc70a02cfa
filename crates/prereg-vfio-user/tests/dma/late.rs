//! Pins that finish after the world around them changed.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use prereg::AddressSpace;
use prereg_vfio_user::server::{MemoryPolicy, MemoryStore};

use crate::hole::punch;
use crate::hooked::Hooked;
use crate::world::{Client, PAGE, another, pinned, pins, sealed};

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
    let space = AddressSpace::builder(Hooked { pins, pinned: Box::new(pinned_once) }).build().unwrap();
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
