//! Recorded sessions of a real client against the server, complete and cut off.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use prereg_vfio_user::client::{Client, Eventfd};
use prereg_vfio_user::server::{MemoryPolicy, ServerSettings};
use prereg_vfio_user::wire::{Command, Header};

use crate::count::{Quiet, descriptors};
use crate::fixture::{Fixture, Probes, store, until};
use crate::recorded::{Line, log};

/// A frame of the client, with the kind and number of its descriptors.
struct Said {
    bytes: Vec<u8>,
    command: Command,
    descriptors: usize,
}

fn said(name: &str) -> Vec<Said> {
    let log = log(name);
    let lines = log.lines().filter_map(Line::parse).filter(|line| line.from_client && !line.reply);
    lines.map(|line| Said { bytes: line.bytes(), command: line.command, descriptors: line.fds }).collect()
}

/// Guest memory that is never touched: as large as that of any recorded session.
fn memory() -> std::fs::File {
    let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).unwrap();
    file.set_len(8 << 30).unwrap();
    file
}

/// Sends the first `bytes` of a session.
fn say(client: &mut Client, session: &[Said], bytes: usize, memory: &std::fs::File, eventfd: &Eventfd) {
    let mut left = bytes;
    for said in session {
        let part = &said.bytes[..said.bytes.len().min(left)];
        if part.is_empty() {
            return;
        }
        let descriptor = if said.command == Command::DMA_MAP { memory.as_fd() } else { eventfd.as_fd() };
        // The server may disconnect first.
        if client.send_raw(part, &vec![descriptor; said.descriptors]).is_err() {
            return;
        }
        left -= part.len();
    }
}

fn fixture() -> Fixture {
    let mut settings = ServerSettings::default();
    settings.max_clients = 10_000;
    Fixture::over(store(MemoryPolicy::FIRST_USE), Probes::new(), settings)
}

#[test]
fn a_recorded_client_is_answered_message_by_message() {
    let _quiet = Quiet::here();
    for name in ["nvme-plain", "nvme-msix", "nvme-viommu", "reset", "memory-hotplug", "virtio-mem"] {
        let (fixture, session, memory, eventfd) = (fixture(), said(name), memory(), Eventfd::new().unwrap());
        let mut client = Client::over(UnixStream::connect(&fixture.path).unwrap());
        let (mut answered, mut refused) = (0, 0);
        for said in &session {
            say(&mut client, std::slice::from_ref(said), usize::MAX, &memory, &eventfd);
            let header = Header::read(said.bytes.first_chunk().unwrap());
            if header.wants_no_reply() {
                continue;
            }
            let (reply, _) = client.receive_raw().unwrap();
            assert_eq!((reply.id, reply.command), (header.id, header.command));
            answered += 1;
            // The device is not the recorded one: it has other regions.
            let of_regions = [Command::REGION_READ, Command::REGION_WRITE].contains(&header.command);
            assert!(!reply.is_error() || of_regions, "{name}: {reply:?}");
            refused += usize::from(reply.is_error());
        }
        println!("{name}: {answered} answered, {refused} of them refused");
        drop(client);
        fixture.settle();
    }
}

#[test]
fn a_recorded_client_that_leaves_at_any_byte_leaves_nothing() {
    let _quiet = Quiet::here();
    let (fixture, memory, eventfd) = (fixture(), memory(), Eventfd::new().unwrap());
    let mut other = fixture.client();
    other.device_info().unwrap();
    let before = descriptors();
    let mut clients = 1;
    for name in ["nvme-plain", "reset"] {
        let session = said(name);
        let length: usize = session.iter().map(|said| said.bytes.len()).sum();
        // Every byte of the first messages, then samples.
        for bytes in (1..1200).chain((1200..=length).step_by(41)) {
            let mut client = Client::over(UnixStream::connect(&fixture.path).unwrap());
            say(&mut client, &session, bytes, &memory, &eventfd);
            clients += 1;
        }
        other.device_info().unwrap();
    }
    until("all of them are gone", || {
        let state = fixture.snapshot();
        state.clients.len() == 1 && state.accepted == clients
    });
    // The test's references to devices keep a socket open.
    fixture.probes.shared.devices.lock().unwrap().retain(|device| !device.said("gone"));
    until("their descriptors are closed", || descriptors() == before);
    assert!(fixture.snapshot().store.files.is_empty());
    drop(other);
    fixture.settle();
}
