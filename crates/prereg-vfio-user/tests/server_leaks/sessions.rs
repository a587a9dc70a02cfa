//! A client's session, cut off at every byte: everything that was mapped, set and opened is released.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use prereg::{Access, Iova};
use prereg_vfio_user::client::{Client, Eventfd};
use prereg_vfio_user::server::ServerSettings;
use prereg_vfio_user::wire::{
    Command, DeviceInfo, Header, IrqAction, IrqInfo, IrqSelection, MapMemory, RegionAccess, RegionInfo,
    SetIrqs, UnmapMemory, Version,
};

use crate::count::{Quiet, descriptors};
use crate::fixture::{Fixture, Probes, memory, until};

/// A message of the client and its descriptor, if any.
struct Message {
    bytes: Vec<u8>,
    descriptor: Option<OwnedFd>,
}

fn message(command: Command, descriptor: Option<BorrowedFd<'_>>, body: impl FnOnce(&mut Vec<u8>)) -> Message {
    let mut bytes = Vec::new();
    Header::command(command.number(), command).frame(&mut bytes, body);
    let descriptor = descriptor.map(|descriptor| descriptor.try_clone_to_owned().unwrap());
    Message { bytes, descriptor }
}

/// Every request of a client, as in the recorded sessions: from VERSION to reset.
fn session() -> Vec<Message> {
    let guest = memory(1 << 20);
    let eventfd = Eventfd::new().unwrap();
    let (ram, told) = (guest.descriptor().unwrap(), eventfd.as_fd());
    let map =
        |at: u64, bytes, offset| MapMemory { access: Access::ReadWrite, offset, iova: Iova::new(at), bytes };
    let access = |data| RegionAccess { offset: 0x14, region: 0, count: 4, data };
    let json = b"{\"capabilities\":{\"max_msg_fds\":16,\"write_multiple\":true}}\0";
    let set = |count, selection| SetIrqs { index: 2, start: 0, count, action: IrqAction::Trigger, selection };
    vec![
        message(Command::VERSION, None, |out| Version { major: 0, minor: 1, data: json }.write(out)),
        message(Command::DEVICE_GET_INFO, None, DeviceInfo::write_command),
        message(Command::DEVICE_GET_REGION_INFO, None, |out| RegionInfo::write_command(0, 32, out)),
        message(Command::DEVICE_GET_IRQ_INFO, None, |out| IrqInfo::write_command(2, out)),
        message(Command::DMA_MAP, Some(ram), |out| map(0, 0xa_0000, 0).write(out)),
        message(Command::DMA_MAP, Some(ram), |out| map(0xc_0000, 0x1_0000, 0xc_0000).write(out)),
        message(Command::DMA_MAP, None, |out| map(0xffff_0000, 0x1_0000, 0).write(out)),
        message(Command::DEVICE_SET_IRQS, Some(told), |out| set(1, IrqSelection::Eventfds).write(out)),
        message(Command::REGION_WRITE, None, |out| access(&[1, 2, 3, 4]).write(out)),
        message(Command::REGION_READ, None, |out| access(&[]).write(out)),
        message(Command::DMA_UNMAP, None, |out| {
            UnmapMemory::Range { iova: Iova::new(0), bytes: 0xa_0000 }.write(out);
        }),
        message(Command::DEVICE_SET_IRQS, None, |out| set(0, IrqSelection::All).write(out)),
        message(Command::DEVICE_RESET, None, |_| ()),
        message(Command::DMA_UNMAP, None, |out| UnmapMemory::All.write(out)),
    ]
}

/// Sends the first `bytes` of a session and disconnects.
fn cut(path: &Path, session: &[Message], mut bytes: usize) {
    let mut client = Client::over(UnixStream::connect(path).unwrap());
    for Message { bytes: message, descriptor } in session {
        let sent = &message[..bytes.min(message.len())];
        let descriptor: Vec<_> = descriptor.iter().map(AsFd::as_fd).collect();
        client.send_raw(sent, &descriptor).unwrap();
        bytes -= sent.len();
        if bytes == 0 {
            return;
        }
    }
}

#[test]
fn a_client_that_leaves_at_any_byte_leaves_nothing() {
    let _quiet = Quiet::here();
    let mut settings = ServerSettings::default();
    settings.max_clients = 10_000;
    let fixture = Fixture::with(Probes::new(), settings);
    let mut other = fixture.client();
    let session = session();
    let length = session.iter().map(|message| message.bytes.len()).sum::<usize>();
    other.device_info().unwrap();
    let before = descriptors();
    for bytes in 1..=length {
        cut(&fixture.path, &session, bytes);
        if bytes % 50 == 0 {
            other.device_info().unwrap();
        }
    }
    until("all of them are gone", || {
        let state = fixture.snapshot();
        state.clients.len() == 1 && state.accepted == length as u64 + 1
    });
    // The test's references to devices keep a socket open.
    fixture.probes.shared.devices.lock().unwrap().retain(|device| !device.said("gone"));
    until("their descriptors are closed", || descriptors() == before);
    let state = fixture.snapshot();
    assert!(state.store.files.is_empty() && state.store.space.regions.is_empty());
    let ends = ["left", "left-mid-message", "connection"]
        .map(|end| state.disconnects.get(end).copied().unwrap_or(0));
    assert_eq!(ends.iter().sum::<u64>(), length as u64, "{:?}", state.disconnects);
    other.device_info().unwrap();
    drop(other);
    fixture.settle();
}
