//! The assignment of descriptors to messages; descriptors of no message are closed.

use prereg::{Access, Iova};
use prereg_vfio_user::Action;
use prereg_vfio_user::wire::{Command, MapMemory};

use crate::client::{Client, Fd, body, command};

fn map(id: u16) -> Vec<u8> {
    let map =
        MapMemory { access: Access::Read, offset: 0, iova: Iova::new(u64::from(id) << 12), bytes: 0x1000 };
    command(id, Command::DMA_MAP, &body(|out| map.write(out)))
}

fn memories(client: &mut Client) -> Vec<Option<u32>> {
    let memory = |action: Action<Fd>| match action {
        Action::MapMemory { memory, .. } => memory.map(|fd| fd.number),
        other => panic!("{other:?}"),
    };
    client.actions().into_iter().map(memory).collect()
}

#[test]
fn descriptors_belong_to_the_last_message_they_came_with() {
    let mut client = Client::new();
    // Linux joins messages without descriptors to the one with, and stops there.
    let bytes = [map(1), map(2), map(3)].concat();
    let fd = client.pool.fd(30);
    client.session.receive(&bytes, [fd]).unwrap();
    assert_eq!(memories(&mut client), [None, None, Some(30)]);
}

#[test]
fn descriptors_that_come_with_the_start_of_a_message_wait_for_its_end() {
    for cut in 1..48 {
        let mut client = Client::new();
        let (second, third) = (map(2), map(3));
        let start = [map(1), second[..cut].to_vec()].concat();
        let (first_fd, second_fd) = (client.pool.fd(2), client.pool.fd(3));
        client.session.receive(&start, [first_fd]).unwrap();
        client.session.receive(&second[cut..], []).unwrap();
        client.session.receive(&third, [second_fd]).unwrap();
        assert_eq!(memories(&mut client), [None, Some(2), Some(3)], "cut at {cut}");
    }
}

#[test]
fn descriptors_in_two_parts_of_a_message_belong_to_it() {
    let mut client = Client::new();
    let bytes = map(1);
    for (number, piece) in [(7, &bytes[..20]), (8, &bytes[20..])] {
        let fd = client.pool.fd(number);
        client.session.receive(piece, [fd]).unwrap();
    }
    assert_eq!(memories(&mut client), [Some(7)], "a map takes the first and closes the other");
    assert_eq!(client.pool.held(), 0);
}

#[test]
fn descriptors_beyond_the_limit_are_not_piled_up() {
    let mut client = Client::new();
    let bytes = map(1);
    for byte in &bytes {
        let fds = client.pool.fds(253);
        client.session.receive(&[*byte], fds).unwrap();
        assert!(client.pool.held() <= 16);
    }
    assert_eq!(client.frame().error(), 22);
    assert_eq!(client.pool.held(), 0);
    assert_eq!(client.actions().len(), 1);
    assert!(
        matches!(client.action(&map(2), 1), Action::MapMemory { memory: Some(_), .. }),
        "the next is sound"
    );
}

#[test]
fn a_message_whose_descriptors_were_lost_is_refused_and_no_other() {
    let mut client = Client::new();
    let fds = client.pool.fds(1);
    client.session.receive_truncated(&[map(1), map(2)].concat(), fds).unwrap();
    let fd = client.pool.fd(3);
    client.session.receive(&map(3), [fd]).unwrap();
    let actions = client.actions();
    assert!(matches!(actions[0], Action::MapMemory { memory: None, .. }));
    assert!(matches!(actions[1], Action::Refused { id: 2, .. }));
    assert!(matches!(actions[2], Action::MapMemory { memory: Some(_), .. }));
    assert_eq!(client.frame().error(), 24);
}

#[test]
fn descriptors_with_a_skipped_message_or_a_reply_are_dropped() {
    let mut client = Client::new();
    assert_eq!(client.refusal(&command(1, Command::new(50), &[0; 8]), 3), 95);
    assert_eq!(client.refusal(&command(1, Command::REGION_WRITE, &vec![0; 2 << 20]), 3), 7);
    let mut bytes = command(9, Command::DMA_READ, &[0; 16]);
    bytes[8] = 1;
    let fds = client.pool.fds(3);
    client.session.receive(&bytes, fds).unwrap();
    assert_eq!(client.pool.held(), 0);
}

#[test]
fn a_session_that_ends_keeps_nothing() {
    let mut client = Client::new();
    let mut short = map(1);
    short[4..8].copy_from_slice(&3_u32.to_ne_bytes());
    let fds = client.pool.fds(1);
    client.session.receive(&[short, map(2)].concat(), fds).unwrap_err();
    assert_eq!(client.pool.held(), 0);
    let mut client = Client::new();
    let fds = client.pool.fds(1);
    client.session.receive(&map(1), fds).unwrap();
    assert_eq!(client.pool.held(), 1);
    drop(client.session);
    assert_eq!(client.pool.held(), 0);
}
