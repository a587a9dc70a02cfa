//! Recorded sessions of a real client against the server that performs, whole and cut off.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use prereg_vfio_user::client::{Client, Eventfd};
use prereg_vfio_user::server::{MemoryPolicy, ServerSettings};
use prereg_vfio_user::wire::{Command, Header};

use crate::bed::{Bed, Probes, store, until};
use crate::count::{Quiet, descriptors};
use crate::recorded::{Line, log};

/// What a client said: a frame, and whether memory or eventfds came along, and how many.
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

/// Memory of a guest that is never touched: as large as any of the recorded ones.
fn memory() -> std::fs::File {
    let file = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).unwrap();
    file.set_len(8 << 30).unwrap();
    file
}

/// Says the first `bytes` of a session.
fn say(client: &mut Client, session: &[Said], bytes: usize, memory: &std::fs::File, eventfd: &Eventfd) {
    let mut left = bytes;
    for said in session {
        let part = &said.bytes[..said.bytes.len().min(left)];
        if part.is_empty() {
            return;
        }
        let descriptor = if said.command == Command::DMA_MAP { memory.as_fd() } else { eventfd.as_fd() };
        // A server that is let go of may hang up first.
        if client.send_raw(part, &vec![descriptor; said.descriptors]).is_err() {
            return;
        }
        left -= part.len();
    }
}

fn bed() -> Bed {
    let mut settings = ServerSettings::default();
    settings.max_clients = 10_000;
    Bed::over(store(MemoryPolicy::FIRST_USE), Probes::new(), settings)
}

#[test]
fn a_recorded_client_is_answered_message_by_message() {
    let _quiet = Quiet::here();
    for name in ["nvme-plain", "nvme-msix", "nvme-viommu", "reset", "memory-hotplug", "virtio-mem"] {
        let (bed, session, memory, eventfd) = (bed(), said(name), memory(), Eventfd::new().unwrap());
        let mut client = Client::over(UnixStream::connect(&bed.path).unwrap());
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
            // The probe is not the device that was recorded: it has other regions.
            let of_regions = [Command::REGION_READ, Command::REGION_WRITE].contains(&header.command);
            assert!(!reply.is_error() || of_regions, "{name}: {reply:?}");
            refused += usize::from(reply.is_error());
        }
        println!("{name}: {answered} answered, {refused} of them refused");
        drop(client);
        bed.settle();
    }
}

#[test]
fn a_recorded_client_that_leaves_at_any_byte_leaves_nothing() {
    let _quiet = Quiet::here();
    let (bed, memory, eventfd) = (bed(), memory(), Eventfd::new().unwrap());
    let mut other = bed.client();
    other.device_info().unwrap();
    let before = descriptors();
    let mut clients = 1;
    for name in ["nvme-plain", "reset"] {
        let session = said(name);
        let length: usize = session.iter().map(|said| said.bytes.len()).sum();
        // Every byte of the first messages, and then here and there.
        for bytes in (1..1200).chain((1200..=length).step_by(41)) {
            let mut client = Client::over(UnixStream::connect(&bed.path).unwrap());
            say(&mut client, &session, bytes, &memory, &eventfd);
            clients += 1;
        }
        other.device_info().unwrap();
    }
    until("all of them are gone", || {
        let state = bed.snapshot();
        state.clients.len() == 1 && state.accepted == clients
    });
    // What the test keeps of their devices keeps a socket open.
    bed.probes.shared.devices.lock().unwrap().retain(|device| !device.said("gone"));
    until("their descriptors are closed", || descriptors() == before);
    assert!(bed.snapshot().store.files.is_empty());
    drop(other);
    bed.settle();
}
