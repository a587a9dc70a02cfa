//! The memory of a session whose client sends many requests and reads few replies.

use prereg_vfio_user::wire::{Command, RegionAccess, RegionInfo};
use prereg_vfio_user::{Action, Mmap, Region, Settings};

use crate::client::{Client, QEMU, body, command};

fn read(id: u16, count: u32) -> Vec<u8> {
    command(
        id,
        Command::REGION_READ,
        &body(|out| RegionAccess { offset: 0, region: 0, count, data: &[] }.write(out)),
    )
}

#[test]
fn unanswered_requests_stop_the_reading_and_then_are_refused() {
    let mut client = Client::with(Settings { held_bytes: 16 << 20, ..Settings::default() }, QEMU);
    let mut tokens = Vec::new();
    let mut stopped_at = None;
    for id in 0..100 {
        if !client.session.wants_bytes() {
            stopped_at.get_or_insert(id);
        }
        client.send(&read(id, 1 << 20)).unwrap();
        match client.session.next_action() {
            Some(Action::ReadRegion { token, .. }) => tokens.push(token),
            Some(Action::Refused { .. }) => assert_eq!(client.frame().error(), 11),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(stopped_at, Some(16), "16 MiB of replies");
    assert_eq!(tokens.len(), 31, "twice as much is the end");
    for token in tokens {
        client.session.reply(token, Ok(&[0; 64]));
        client.frames();
    }
    assert!(client.session.wants_bytes());
    assert!(matches!(client.action(&read(1, 1 << 20), 0), Action::ReadRegion { .. }));
}

#[test]
fn unread_replies_stop_the_reading() {
    let mut client = Client::with(Settings { held_bytes: 1 << 20, ..Settings::default() }, QEMU);
    let data = vec![7; 100_000];
    let mut answered = 0;
    while client.session.wants_bytes() {
        let Action::ReadRegion { token, .. } = client.action(&read(answered, 100_000), 0) else { panic!() };
        client.session.reply(token, Ok(&data));
        answered += 1;
    }
    assert_eq!(answered, 11);
    assert_eq!(client.frames().len(), 11);
    assert!(client.session.wants_bytes());
}

#[test]
fn a_million_refused_messages_hold_no_more_than_their_replies() {
    let mut client = Client::new();
    let bad = command(1, Command::new(500), &[0; 4]).repeat(100);
    for _ in 0..10_000 {
        client.send(&bad).unwrap();
        assert_eq!(client.actions().len(), 100);
        assert_eq!(client.frames().len(), 100);
    }
    assert!(client.session.wants_bytes());
}

#[test]
fn replies_without_descriptors_are_sent_together_and_in_any_parts() {
    let mut client = Client::new();
    let mut bytes = Vec::new();
    for id in 0..1000 {
        bytes.extend(command(id, Command::DEVICE_RESET, &[]));
    }
    client.send(&bytes).unwrap();
    for action in client.actions() {
        let Action::Reset { token } = action else { panic!() };
        client.session.reply(token, Ok(()));
    }
    assert_eq!(client.session.unsent().unwrap().0.len(), 16_000, "one system call");
    let mut stream = Vec::new();
    let mut piece = 1;
    while let Some((bytes, _)) = client.session.unsent() {
        let sent = piece.min(bytes.len());
        stream.extend_from_slice(&bytes[..sent]);
        client.session.sent(sent);
        piece = piece % 97 + 1;
    }
    assert_eq!(stream.len(), 16_000);
    for (id, frame) in stream.chunks(16).enumerate() {
        assert_eq!(frame[..2], (id as u16).to_ne_bytes());
    }
    client.session.sent(10);
    assert!(client.session.unsent().is_none());
}

#[test]
fn descriptors_go_with_the_first_byte_of_their_frame_and_with_no_other() {
    let mut client = Client::new();
    let ask = body(|out| RegionInfo::write_command(0, 32, out));
    for id in 0..3 {
        let bytes = command(id, Command::DEVICE_GET_REGION_INFO, &ask);
        let Action::DescribeRegion { token, .. } = client.action(&bytes, 0) else { panic!() };
        let mmap = Some(Mmap { descriptor: client.pool.fd(u32::from(id)), offset: 0, areas: Vec::new() });
        client.session.reply(token, Ok(Region { bytes: 4096, readable: true, writable: true, mmap }));
        let Action::Reset { token } = client.action(&command(9, Command::DEVICE_RESET, &[]), 0) else {
            panic!()
        };
        client.session.reply(token, Ok(()));
    }
    for id in 0..3 {
        let (bytes, fds) = client.session.unsent().unwrap();
        assert_eq!((bytes.len(), fds.len(), fds[0].number), (48, 1, id), "one frame and its descriptor");
        client.session.sent(0);
        assert_eq!(client.session.unsent().unwrap().1.len(), 1, "nothing was sent");
        client.session.sent(1);
        assert_eq!(client.pool.held(), 2 - id as usize);
        let (bytes, fds) = client.session.unsent().unwrap();
        assert_eq!((bytes.len(), fds.len()), (47, 0));
        client.session.sent(47);
        let (bytes, fds) = client.session.unsent().unwrap();
        assert_eq!((bytes.len(), fds.len()), (16, 0));
        client.session.sent(16);
    }
    assert!(client.session.unsent().is_none());
}
