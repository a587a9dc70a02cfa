//! Clients that are processes and are killed.

use std::io::{BufRead, BufReader};
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};

use prereg::{Access, Iova};
use prereg_vfio_user::client::{Client, Eventfd};

use crate::fixture::{Fixture, memory, until};

const SOCKET: &str = "PREREG_TEST_CLIENT_OF";

/// Not a test of its own: the client process of another test.
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

fn start(fixture: &Fixture) -> Child {
    let test = std::env::current_exe().unwrap();
    let mut child = Command::new(test)
        .args(["--exact", "processes::a_client_process", "--nocapture"])
        .env(SOCKET, &fixture.path)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line == "mapped"), "the client does not get there");
    child
}

#[test]
fn a_client_that_is_killed_leaves_no_pin() {
    let fixture = Fixture::new();
    let mut staying = fixture.client();
    let mut child = start(&fixture);
    let state = fixture.snapshot();
    let theirs = state.clients.iter().find(|client| client.pid == child.id() as i32).unwrap();
    assert_eq!((theirs.dma.iova.mappings, state.store.files.len()), (1, 1));
    // An I/O is in flight, and no unmap was sent.
    let probe = fixture.probes.device(1);
    let hold = probe.bus.dma.hold(Iova::new(0x1000), 0x1000, Access::Write).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    until("the device is told", || probe.said("gone"));
    hold.write(0, b"what was held is still there").unwrap();
    assert_eq!(fixture.snapshot().store.space.regions.len(), 1);
    drop(hold);
    until("its memory is given back", || fixture.snapshot().store.space.regions.is_empty());
    staying.device_info().unwrap();
    let mut next = start(&fixture);
    assert_eq!(fixture.snapshot().store.files.len(), 1);
    next.kill().unwrap();
    next.wait().unwrap();
    drop(staying);
    fixture.settle();
}
