//! The stream is split into messages, however it is received.

use prereg::{Access, Iova};
use prereg_vfio_user::wire::{
    Command, DeviceInfo, Header, IoRegionsInfo, IrqAction, IrqInfo, IrqSelection, MapMemory, RegionAccess,
    RegionInfo, RegionWrite, RegionWrites, SetIrqs, UnmapMemory,
};
use prereg_vfio_user::{Action, SessionError, Settings};

use crate::client::{Client, Fd, QEMU, body, command, version};

/// A message of every command, malformed ones between them, each with its descriptors.
fn everything() -> Vec<(Vec<u8>, u32)> {
    let map = MapMemory { access: Access::ReadWrite, offset: 0x1000, iova: Iova::new(0), bytes: 0x2000 };
    let set = |selection| SetIrqs { index: 2, start: 0, count: 2, action: IrqAction::Trigger, selection };
    let access = |data| RegionAccess { offset: 16, region: 0, count: 4, data };
    let writes = RegionWrites::new(vec![RegionWrite::new(0, 8, &[1, 2, 3, 4]).unwrap(); 3]);
    vec![
        (version(0, 0, 0, QEMU), 0),
        (command(1, Command::DMA_MAP, &body(|out| map.write(out))), 1),
        (command(2, Command::DMA_UNMAP, &body(|out| UnmapMemory::All.write(out))), 0),
        (command(3, Command::DEVICE_GET_INFO, &body(DeviceInfo::write_command)), 0),
        (command(4, Command::DEVICE_GET_REGION_INFO, &body(|out| RegionInfo::write_command(0, 32, out))), 0),
        (
            command(
                5,
                Command::DEVICE_GET_REGION_IO_FDS,
                &body(|out| IoRegionsInfo::write_command(0, 56, out)),
            ),
            0,
        ),
        (command(6, Command::DEVICE_GET_IRQ_INFO, &body(|out| IrqInfo::write_command(2, out))), 0),
        (command(7, Command::new(999), &[7; 100]), 1),
        (command(8, Command::DEVICE_SET_IRQS, &body(|out| set(IrqSelection::Eventfds).write(out))), 2),
        (command(9, Command::DEVICE_SET_IRQS, &body(|out| set(IrqSelection::Each(&[1, 0])).write(out))), 0),
        (command(10, Command::REGION_READ, &body(|out| access(&[]).write(out))), 0),
        (command(11, Command::REGION_WRITE, &body(|out| access(&[1, 2, 3, 4]).write(out))), 0),
        (command(12, Command::REGION_WRITE, &body(|out| access(&[1, 2, 3]).write(out))), 0),
        (command(13, Command::REGION_WRITE_MULTI, &body(|out| writes.write(out))), 0),
        (command(14, Command::DEVICE_RESET, &[]), 0),
        (command(15, Command::DEVICE_RESET, &[0]), 0),
    ]
}

/// The actions and frames of a session whose stream comes in parts of these lengths. Descriptors come with the part that
/// contains byte `place` of their message.
fn outcome(pieces: impl Fn(usize) -> usize, first_byte: bool) -> (Vec<String>, Vec<String>) {
    let mut client = Client::silent(Settings::default());
    let messages = everything();
    let mut stream = Vec::new();
    let mut places: Vec<(usize, u32)> = Vec::new();
    for (bytes, fds) in &messages {
        let place = if first_byte { stream.len() } else { stream.len() + bytes.len() - 1 };
        stream.extend_from_slice(bytes);
        if *fds > 0 {
            places.push((place, *fds));
        }
    }
    let (mut at, mut actions) = (0, Vec::new());
    while at < stream.len() {
        // Linux ends a part after the first buffer with descriptors; one buffer is one message here.
        let mut end = at.saturating_add(pieces(at)).min(stream.len());
        let mut fds: Vec<Fd> = Vec::new();
        if let Some(index) = places.iter().position(|(place, _)| (at..end).contains(place)) {
            let (place, count) = places.remove(index);
            end = end.min(message_end(&messages, place));
            fds = client.pool.fds(count);
        }
        client.session.receive(&stream[at..end], fds).unwrap();
        at = end;
        actions.extend(client.actions().iter().map(|action| format!("{action:?}")));
    }
    let frames = client.frames().iter().map(|frame| format!("{frame:?}")).collect();
    (actions, frames)
}

fn message_end(messages: &[(Vec<u8>, u32)], place: usize) -> usize {
    let mut end = 0;
    for (bytes, _) in messages {
        end += bytes.len();
        if place < end {
            break;
        }
    }
    end
}

#[test]
fn reads_of_any_length_make_the_same_messages() {
    let whole = outcome(|_| usize::MAX, true);
    assert_eq!(whole.0.len(), everything().len());
    for length in 1..100 {
        assert_eq!(outcome(|_| length, true), whole, "pieces of {length}");
        assert_eq!(outcome(|_| length, false), whole, "pieces of {length}, descriptors with the last byte");
    }
}

#[test]
fn one_cut_anywhere_changes_nothing() {
    let whole = outcome(|_| usize::MAX, true);
    let length: usize = everything().iter().map(|(bytes, _)| bytes.len()).sum();
    for cut in 1..length {
        assert_eq!(outcome(|at| if at < cut { cut - at } else { usize::MAX }, true), whole, "cut at {cut}");
    }
}

#[test]
fn wanted_never_goes_beyond_a_message() {
    let mut client = Client::silent(Settings::default());
    for (bytes, _) in everything() {
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            assert!(client.session.wanted() <= rest.len());
            let (piece, more) = rest.split_at(client.session.wanted());
            client.send(piece).unwrap();
            rest = more;
        }
        assert_eq!(client.actions().len(), 1);
        assert_eq!(client.session.wanted(), 16);
    }
}

#[test]
fn a_size_below_the_header_ends_the_session() {
    for size in 0..16_u32 {
        let mut client = Client::new();
        let mut bytes = command(1, Command::DEVICE_RESET, &[]);
        let mut short = command(2, Command::DEVICE_RESET, &[]);
        short[4..8].copy_from_slice(&size.to_ne_bytes());
        bytes.extend(short);
        let end = SessionError::ShortMessage { id: 2, size };
        assert_eq!(client.send(&bytes), Err(end));
        assert_eq!(client.send(&bytes), Err(end), "nothing more is read");
        assert!(!client.session.wants_bytes());
        // Earlier requests are still answered.
        let Some(Action::Reset { token }) = client.session.next_action() else { panic!() };
        client.session.reply(token, Ok(()));
        assert_eq!(client.frame().header.id, 1);
        assert_eq!(client.session.close(), Err(end));
        assert_eq!(client.session.close(), Ok(()));
    }
}

#[test]
fn a_size_beyond_reason_ends_the_session_before_its_body() {
    let mut client = Client::new();
    let mut bytes = command(2, Command::REGION_WRITE, &[]);
    bytes[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    assert!(matches!(client.send(&bytes), Err(SessionError::LongMessage { id: 2, size: u32::MAX, .. })));
}

#[test]
fn a_message_longer_than_is_read_is_skipped_and_refused() {
    let mut client = Client::new();
    let mut bytes = command(2, Command::REGION_WRITE, &vec![0; (1 << 20) + 17]);
    bytes.extend(command(3, Command::DEVICE_RESET, &[]));
    for piece in bytes.chunks(10_000) {
        client.send(piece).unwrap();
    }
    let actions = client.actions();
    assert!(matches!(actions[0], Action::Refused { id: 2, .. }));
    assert!(matches!(actions[1], Action::Reset { .. }));
    assert_eq!(client.frame().error(), 7);
}

#[test]
fn the_longest_write_is_read() {
    let mut client = Client::new();
    let data = vec![0xa5; 1 << 20];
    let access = RegionAccess { offset: 0, region: 0, count: 1 << 20, data: &data };
    let action = client.action(&command(2, Command::REGION_WRITE, &body(|out| access.write(out))), 0);
    assert!(matches!(action, Action::WriteRegion { data: got, .. } if got == data));
}

#[test]
fn types_that_there_are_not_are_refused_and_other_marks_ignored() {
    let mut client = Client::new();
    for kind in 2..16_u32 {
        let mut bytes = command(1, Command::DEVICE_RESET, &[]);
        bytes[8..12].copy_from_slice(&kind.to_ne_bytes());
        assert_eq!(client.refusal(&bytes, 0), 22, "type {kind}");
    }
    for bit in [5, 6, 7, 16, 31] {
        let mut bytes = command(1, Command::DEVICE_RESET, &[]);
        bytes[8..12].copy_from_slice(&(1_u32 << bit).to_ne_bytes());
        bytes[12..16].copy_from_slice(&5_u32.to_ne_bytes());
        let Action::Reset { token } = client.action(&bytes, 0) else { panic!("bit {bit}") };
        client.session.reply(token, Ok(()));
        assert_eq!(client.frame().header.flags, 1);
    }
}

#[test]
fn unsupported_commands_are_skipped_and_rejected() {
    let mut client = Client::new();
    for number in [0, 11, 12, 14, 16, 17, 18, 19, 999, u16::MAX] {
        for length in [0, 1, 16, 5000] {
            assert_eq!(client.refusal(&command(9, Command::new(number), &vec![0xff; length]), 0), 95);
        }
    }
}

#[test]
fn a_reply_without_a_request_is_skipped() {
    let mut client = Client::new();
    let mut bytes = Vec::new();
    Header::reply(5, Command::DMA_READ).frame(&mut bytes, |out| out.extend_from_slice(&[0; 40]));
    bytes.extend(command(3, Command::DEVICE_RESET, &[]));
    client.send(&bytes).unwrap();
    let actions = client.actions();
    assert_eq!(actions.len(), 1);
    assert!(matches!(actions[0], Action::Reset { .. }));
}

#[test]
fn a_disconnect_within_a_message_differs_from_one_between_messages() {
    assert_eq!(Client::new().session.close(), Ok(()));
    let bytes = command(1, Command::REGION_READ, &[0; 16]);
    for cut in 1..bytes.len() {
        let mut client = Client::new();
        let fds = client.pool.fds(1);
        client.session.receive(&bytes[..cut], fds).unwrap();
        let size = if cut < 16 { 16 } else { 32 };
        assert_eq!(client.session.close(), Err(SessionError::MidMessage { found: cut as u32, size }));
        assert_eq!(client.pool.held(), 0);
        assert_eq!(client.send(&bytes), Err(SessionError::Closed));
    }
}
