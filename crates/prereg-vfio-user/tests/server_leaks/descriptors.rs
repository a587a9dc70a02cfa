//! Unexpected descriptors.

use std::os::fd::{AsFd, BorrowedFd};

use prereg::{Access, Iova};
use prereg_vfio_user::client::{Client, Eventfd};
use prereg_vfio_user::wire::{Command, Header, MapMemory, UnmapMemory};

use crate::count::{Quiet, descriptors};
use crate::fixture::{Fixture, memory};

/// The errno of a refused frame; the stream must continue.
fn refused(client: &mut Client, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> i32 {
    client.send_raw(bytes, descriptors).unwrap();
    let (header, reply) = client.receive_raw().unwrap();
    assert!(header.is_error() && reply.body.is_empty());
    let errno = header.errno().unwrap().raw();
    client.device_info().unwrap();
    errno
}

/// Performs a frame with descriptors that it does not need.
fn taken(client: &mut Client, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
    client.send_raw(bytes, descriptors).unwrap();
    let (header, _) = client.receive_raw().unwrap();
    assert!(!header.is_error(), "{header:?}");
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
fn descriptors_where_none_belong_and_too_many_are_closed() {
    let _quiet = Quiet::here();
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let guest = memory(1 << 20);
    let eventfd = Eventfd::new().unwrap();
    let ram = guest.descriptor().unwrap();
    let map = frame(Header::command(3, Command::DMA_MAP), &map_body());
    let mut body = Vec::new();
    UnmapMemory::All.write(&mut body);
    let unmap = frame(Header::command(3, Command::DMA_UNMAP), &body);
    // The memory itself stays registered for a while.
    taken(&mut client, &map, &[ram]);
    taken(&mut client, &unmap, &[]);
    let before = descriptors();
    for count in [17, 40, 250] {
        assert_eq!(refused(&mut client, &map, &vec![ram; count]), 22, "{count} descriptors");
    }
    for count in [2, 16] {
        // The first is the memory.
        taken(&mut client, &map, &vec![ram; count]);
        taken(&mut client, &unmap, &vec![ram; count]);
    }
    let reset = frame(Header::command(3, Command::DEVICE_RESET), &[]);
    for count in [1, 16, 250] {
        taken(&mut client, &reset, &vec![eventfd.as_fd(); count]);
        taken(&mut client, &unmap, &vec![eventfd.as_fd(); count]);
    }
    // Descriptors of an unexpected reply.
    let reply = frame(Header::reply(3, Command::DMA_READ), &[0; 16]);
    client.send_raw(&reply, &[ram; 5]).unwrap();
    // One byte at a time, each with a descriptor, is too many as well.
    for byte in &map {
        client.send_raw(std::slice::from_ref(byte), &[ram]).unwrap();
    }
    assert_eq!(client.receive_raw().unwrap().0.errno().unwrap().raw(), 22);
    client.device_info().unwrap();
    assert_eq!(descriptors(), before, "all of them were closed");
}
