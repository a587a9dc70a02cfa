//! Hostile clients: their requests are refused or end them, and no other client is affected.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use prereg::{Access, Iova};
use prereg_vfio_user::client::{Client, ClientError, Eventfd, Posted};
use prereg_vfio_user::server::ServerSettings;
use prereg_vfio_user::wire::{Command, Header, MapMemory, RegionWrite, RegionWrites};

use crate::fixture::{Fixture, HOOK, Probes, memory, until};

/// The errno of a refused frame; the stream must continue.
fn refused(client: &mut Client, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> i32 {
    client.send_raw(bytes, descriptors).unwrap();
    let (header, reply) = client.receive_raw().unwrap();
    assert!(header.is_error() && reply.body.is_empty());
    let errno = header.errno().unwrap().raw();
    client.device_info().unwrap();
    errno
}

fn frame(header: Header, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    header.frame(&mut bytes, |out| out.extend_from_slice(body));
    bytes
}

fn map_body() -> Vec<u8> {
    let mut body = Vec::new();
    let (access, iova) = (Access::ReadWrite, Iova::new(0));
    MapMemory { access, offset: 0, iova, bytes: 0x1000 }.write(&mut body);
    body
}

#[test]
fn frames_that_are_wrong_in_themselves_are_refused_and_the_stream_goes_on() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for number in [0, 11, 12, 14, 16, 17, 18, 19, 0xffff] {
        let command = Header::command(9, Command::new(number));
        assert_eq!(refused(&mut client, &frame(command, &[0; 40]), &[]), 95, "command {number}");
    }
    for number in 1..=16 {
        for length in [0, 1, 7, 15, 19, 31, 33, 63, 4096] {
            let command = Command::new(number);
            // A reset is valid whatever follows it.
            if command == Command::DEVICE_RESET {
                continue;
            }
            let errno = refused(&mut client, &frame(Header::command(1, command), &vec![0; length]), &[]);
            assert!([22, 95].contains(&errno), "{command} with {length} bytes: {errno}");
        }
    }
    for flags in [2, 3, 0xf] {
        let mut header = Header::command(1, Command::DEVICE_RESET);
        header.flags = flags;
        assert_eq!(refused(&mut client, &frame(header, &[]), &[]), 22, "flags {flags:#x}");
    }
    let long = frame(Header::command(1, Command::REGION_WRITE), &vec![0; 3 << 20]);
    client.set_timeout(Duration::from_secs(60));
    assert_eq!(refused(&mut client, &long, &[]), 7);
    drop(client);
    fixture.settle();
}

#[test]
fn many_writes_in_a_message_end_with_their_client() {
    const WRITES: usize = 40_000;
    for stops in [false, true] {
        let fixture = Fixture::new();
        let mut client = fixture.client();
        let begun = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&begun);
        fixture.probes.hook(move |_, _, _| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        });
        let write = RegionWrite::new(HOOK, 0, &[1]).unwrap();
        let mut body = Vec::new();
        RegionWrites::new(vec![write; WRITES]).write(&mut body);
        let message = frame(Header::command(1, Command::REGION_WRITE_MULTI).without_reply(), &body);
        client.send_raw(&message, &[]).unwrap();
        until("the first is written", || begun.load(Ordering::Relaxed) > 0);
        if stops {
            drop(fixture);
        } else {
            drop(client);
            fixture.settle();
        }
        assert!(begun.load(Ordering::Relaxed) < WRITES);
    }
}

#[test]
fn a_lost_stream_ends_its_client_and_says_why_nothing_to_the_others() {
    let fixture = Fixture::new();
    let mut other = fixture.client();
    for size in [0, 1, 15, (64 << 20) + 1, u32::MAX] {
        let mut client = fixture.client();
        let mut bytes = Vec::new();
        let mut header = Header::command(5, Command::DEVICE_RESET);
        header.size = size;
        header.write(&mut bytes);
        client.send_raw(&bytes, &[]).unwrap();
        assert_eq!(client.receive_raw().unwrap_err(), ClientError::Closed, "size {size}");
        other.device_info().unwrap();
    }
    until("they are gone", || fixture.snapshot().disconnects.get("protocol") == Some(&5));
    assert_eq!(fixture.snapshot().clients.len(), 1);
}

#[test]
fn a_client_that_does_not_read_its_replies_is_not_read_any_more() {
    let mut settings = ServerSettings::default();
    settings.session.held_bytes = 64 << 10;
    let fixture = Fixture::with(Probes::new(), settings);
    let (mut greedy, mut other) = (fixture.client(), fixture.client());
    greedy.set_timeout(Duration::from_millis(300));
    let mut reads = Vec::new();
    for _ in 0..100_000 {
        match greedy.post(Command::REGION_READ, &[], |out| {
            use prereg_vfio_user::wire::RegionAccess;
            RegionAccess { offset: 0, region: 0, count: 4096, data: &[] }.write(out);
        }) {
            Ok(posted) => reads.push(posted),
            Err(error) => {
                assert_eq!(error, ClientError::TimedOut);
                break;
            }
        }
    }
    assert!(reads.len() < 100_000, "the server took everything");
    other.device_info().unwrap();
    // The client may complete the message.
    greedy.set_timeout(Duration::from_secs(60));
    let all: Vec<Posted> = reads;
    for posted in all {
        greedy.wait(posted).unwrap();
    }
    drop(greedy);
    drop(other);
    fixture.settle();
}

#[test]
fn a_stall_in_the_middle_of_a_message_is_only_the_clients_own() {
    let fixture = Fixture::new();
    let mut stalling: Vec<Client> = (0..8).map(|_| fixture.client()).collect();
    let guest = memory(1 << 20);
    let map = frame(Header::command(0, Command::DMA_MAP), &map_body());
    for (cut, client) in (1..).zip(&mut stalling) {
        client.send_raw(&map[..cut * 5], &[guest.descriptor().unwrap()]).unwrap();
    }
    let mut other = fixture.client();
    let started = Instant::now();
    for _ in 0..100 {
        other.device_info().unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(30), "nobody waits for somebody else's patience");
    drop((stalling, other));
    fixture.settle();
    assert_eq!(fixture.snapshot().disconnects["left-mid-message"], 8);
}

#[test]
fn a_client_that_asks_before_it_introduces_itself_gets_no_device() {
    let fixture = Fixture::new();
    let mut client = Client::over(std::os::unix::net::UnixStream::connect(&fixture.path).unwrap());
    let guest = memory(1 << 20);
    for number in 2..=16 {
        client.send_raw(&frame(Header::command(1, Command::new(number)), &[0; 64]), &[]).unwrap();
        assert!(client.receive_raw().unwrap().0.is_error());
    }
    let map = frame(Header::command(0, Command::DMA_MAP), &map_body());
    client.send_raw(&map, &[guest.descriptor().unwrap()]).unwrap();
    assert!(client.receive_raw().unwrap().0.is_error());
    assert_eq!(fixture.probes.count(), 0);
    assert_eq!(client.version(7, 0, "{}").unwrap_err().errno().raw(), 22);
    assert_eq!(client.receive_raw().unwrap_err(), ClientError::Closed, "another major version is the end");
}

#[test]
fn an_eventfd_that_the_client_fills_up_holds_up_no_more_than_the_client() {
    use std::io::Write;
    // It blocks when it is full, unlike ours: a pipe would do too, but is refused.
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let eventfd = Eventfd::new().unwrap();
    client.set_eventfds(2, 0, &[eventfd.as_fd()]).unwrap();
    let mut file = std::fs::File::from(eventfd.as_fd().try_clone_to_owned().unwrap());
    file.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    let interrupts = fixture.probes.device(0).bus.interrupts.clone();
    for _ in 0..10 {
        interrupts.trigger(prereg_vfio_user::server::IrqKind::Msix, 0);
    }
    assert!(eventfd.take() >= u64::MAX - 1);
    drop(client);
    fixture.settle();
}
