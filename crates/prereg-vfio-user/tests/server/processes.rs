//! Clients that are processes of their own, and are killed.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use prereg::{Access, Iova};
use prereg_vfio_user::client::{Client, Eventfd};

use crate::bed::{Bed, memory, until};

const SOCKET: &str = "PREREG_TEST_CLIENT_OF";

/// Not a test of its own: what the client's process does, when another test starts it.
#[test]
fn a_client_process() {
    let Some(path) = std::env::var_os(SOCKET) else { return };
    let mut client = Client::connect(path.as_ref()).unwrap();
    let guest = memory(1 << 20);
    client.dma_map(Iova::new(0), 1 << 20, Access::ReadWrite, Some((guest.descriptor().unwrap(), 0))).unwrap();
    let eventfd = Eventfd::new().unwrap();
    client.set_eventfds(2, 0, &[eventfd.as_fd()]).unwrap();
    println!("\nmapped");
    loop {
        std::thread::park();
    }
}

fn start(bed: &Bed) -> Child {
    let test = std::env::current_exe().unwrap();
    let mut child = Command::new(test)
        .args(["--exact", "processes::a_client_process", "--nocapture"])
        .env(SOCKET, &bed.path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "mapped"), "the client does not get there");
    child
}

#[test]
fn a_client_that_is_killed_leaves_no_pin() {
    let bed = Bed::new();
    let mut staying = bed.client();
    let mut child = start(&bed);
    let state = bed.snapshot();
    let theirs = state.clients.iter().find(|client| client.pid == child.id() as i32).unwrap();
    assert_eq!((theirs.dma.iova.mappings, state.store.files.len()), (1, 1));
    // An I/O is in flight, and an unmap never asked for.
    let probe = bed.probes.device(1);
    let hold = probe.bus.dma.hold(Iova::new(0x1000), 0x1000, Access::Write).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the device is told", || probe.said("gone"));
    hold.write(0, b"what was held is still there").unwrap();
    assert_eq!(bed.snapshot().store.space.regions.len(), 1);
    drop(hold);
    until("its memory is given back", || bed.snapshot().store.space.regions.is_empty());
    staying.device_info().unwrap();
    let mut next = start(&bed);
    assert_eq!(bed.snapshot().store.files.len(), 1);
    next.kill().unwrap();
    next.wait().unwrap();
    drop(staying);
    bed.settle();
}
