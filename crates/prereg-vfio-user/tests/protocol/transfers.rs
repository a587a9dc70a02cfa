//! DMA_READ and DMA_WRITE: the server's own commands.

use prereg::{Errno, Iova};
use prereg_vfio_user::wire::{Command, DmaAccess, DmaDone, Header, RegionAccess};
use prereg_vfio_user::{Action, Session, Settings, TransferError, TransferId};

use crate::client::{Client, Frame, QEMU, body, command};

/// The guest's memory at `iova`.
fn memory(iova: u64, bytes: u64) -> Vec<u8> {
    (iova..iova + bytes).map(|at| (at ^ (at >> 8) ^ (at >> 16)) as u8).collect()
}

/// A client's reply to one of the server's commands, which moves at most `most` bytes.
fn answer(frame: &Frame, most: u64) -> Vec<u8> {
    let asked = DmaAccess::read(&frame.body).unwrap();
    let bytes = asked.bytes.min(most);
    let mut out = Vec::new();
    let reply = Header::reply(frame.header.id, frame.header.command);
    match frame.header.command {
        Command::DMA_READ => {
            let data = memory(asked.iova.raw(), bytes);
            reply.frame(&mut out, |out| DmaAccess { iova: asked.iova, bytes, data: &data }.write(out));
        }
        Command::DMA_WRITE => {
            assert_eq!(asked.data, memory(asked.iova.raw(), asked.bytes));
            reply.frame(&mut out, |out| DmaDone { iova: asked.iova, bytes }.write(out));
        }
        other => panic!("{other}"),
    }
    out
}

fn ended(client: &mut Client) -> Option<(TransferId, Result<Vec<u8>, TransferError>)> {
    match client.session.next_action() {
        None => None,
        Some(Action::TransferEnded { transfer, result }) => Some((transfer, result)),
        Some(other) => panic!("{other:?}"),
    }
}

/// Replies until no request is left; returns the most bytes under way, and the number of messages.
fn serve(client: &mut Client, most: u64, limit: u64) -> (u64, usize) {
    let (mut widest, mut count) = (0, 0);
    loop {
        let frames = client.frames();
        if frames.is_empty() {
            return (widest, count);
        }
        count += frames.len();
        let sizes: Vec<u64> =
            frames.iter().map(|frame| DmaAccess::read(&frame.body).unwrap().bytes).collect();
        assert!(sizes.iter().all(|bytes| *bytes <= limit));
        widest = widest.max(sizes.iter().sum());
        for frame in frames {
            client.send(&answer(&frame, most)).unwrap();
        }
    }
}

#[test]
fn a_small_read_is_one_message() {
    let mut client = Client::new();
    let id = client.session.dma_read(Iova::new(0x1234), 100).unwrap();
    let frame = client.frame();
    assert_eq!((frame.header.size, frame.header.flags, frame.header.command), (32, 0, Command::DMA_READ));
    assert!(ended(&mut client).is_none());
    client.send(&answer(&frame, u64::MAX)).unwrap();
    assert_eq!(ended(&mut client), Some((id, Ok(memory(0x1234, 100)))));
    assert!(client.session.unsent().is_none());
}

#[test]
fn large_transfers_are_cut_and_never_have_more_than_the_window_under_way() {
    for json in [QEMU, r#"{"capabilities":{"max_data_xfer_size":5000}}"#] {
        let mut client = Client::with(Settings::default(), json);
        let limit = u64::from(client.session.negotiated().unwrap().client_max_data_xfer_size).min(128 << 10);
        let bytes = 1_000_000;
        let read = client.session.dma_read(Iova::new(0x777), bytes).unwrap();
        let write = client.session.dma_write(Iova::new(0x999), &memory(0x999, 300_000)).unwrap();
        let (widest, count) = serve(&mut client, u64::MAX, limit);
        assert!(widest <= 128 << 10, "{widest}");
        assert_eq!(count as u64, 1_000_000_u64.div_ceil(limit) + 300_000_u64.div_ceil(limit));
        assert_eq!(ended(&mut client), Some((read, Ok(memory(0x777, bytes as u64)))));
        assert_eq!(ended(&mut client), Some((write, Ok(Vec::new()))));
    }
}

#[test]
fn replies_come_in_any_order_between_other_commands() {
    let mut client = Client::new();
    let ids: Vec<_> = (0..20).map(|n| client.session.dma_read(Iova::new(n << 16), 64).unwrap()).collect();
    let mut frames = client.frames();
    assert_eq!(frames.len(), 20, "small ones go out together");
    let mut seen: Vec<u16> = frames.iter().map(|frame| frame.header.id).collect();
    seen.dedup();
    assert_eq!(seen.len(), 20, "every message has its own id");
    frames.reverse();
    for (frame, n) in frames.iter().zip((0..20).rev()) {
        let mut bytes = command(frame.header.id, Command::DEVICE_RESET, &[]);
        bytes.extend(answer(frame, u64::MAX));
        client.send(&bytes).unwrap();
        let actions = client.actions();
        assert!(matches!(actions[0], Action::Reset { .. }));
        let Action::TransferEnded { transfer, result } = &actions[1] else { panic!() };
        assert_eq!((*transfer, result), (ids[n], &Ok(memory((n as u64) << 16, 64))));
    }
}

#[test]
fn what_comes_short_is_asked_for_again() {
    let mut client = Client::new();
    let read = client.session.dma_read(Iova::new(0x5000), 1000).unwrap();
    let (_, count) = serve(&mut client, 300, 1000);
    assert_eq!(count, 4);
    assert_eq!(ended(&mut client), Some((read, Ok(memory(0x5000, 1000)))));
    let write = client.session.dma_write(Iova::new(0x5000), &memory(0x5000, 1000)).unwrap();
    serve(&mut client, 999, 1000);
    assert_eq!(ended(&mut client), Some((write, Ok(Vec::new()))));
}

#[test]
fn an_error_of_the_client_ends_the_transfer_with_its_errno() {
    let mut client = Client::new();
    for (sent, errno) in [(19, Errno::ENODEV), (7, Errno::E2BIG), (0, Errno::EIO)] {
        let id = client.session.dma_read(Iova::new(0), 1 << 20).unwrap();
        let frame = client.frame();
        let mut header = Header::failure(frame.header.id, Command::DMA_READ, Errno::EIO);
        header.error = sent;
        let mut bytes = Vec::new();
        header.frame(&mut bytes, |_| ());
        client.send(&bytes).unwrap();
        assert_eq!(ended(&mut client), Some((id, Err(TransferError::Refused { errno }))));
        assert!(client.session.unsent().is_none(), "the rest is not asked for");
    }
}

#[test]
fn a_failed_transfer_ends_with_the_reply_to_its_last_chunk() {
    let mut client = Client::with(Settings::default(), r#"{"capabilities":{"max_data_xfer_size":1000}}"#);
    let id = client.session.dma_write(Iova::new(0), &memory(0, 3000)).unwrap();
    let frames = client.frames();
    assert_eq!(frames.len(), 3);
    let mut refusal = Vec::new();
    Header::failure(frames[1].header.id, Command::DMA_WRITE, Errno::ENODEV).frame(&mut refusal, |_| ());
    client.send(&refusal).unwrap();
    client.send(&answer(&frames[0], u64::MAX)).unwrap();
    assert!(ended(&mut client).is_none());
    client.send(&answer(&frames[2], u64::MAX)).unwrap();
    assert_eq!(ended(&mut client), Some((id, Err(TransferError::Refused { errno: Errno::ENODEV }))));
}

#[test]
fn nothing_more_is_asked_for_a_transfer_that_failed() {
    let mut client = Client::with(Settings::default(), r#"{"capabilities":{"max_data_xfer_size":1000}}"#);
    let id = client.session.dma_read(Iova::new(0), 300_000).unwrap();
    let frames = client.frames();
    assert_eq!(frames.len(), 131);
    let mut refusal = Vec::new();
    Header::failure(frames[0].header.id, Command::DMA_READ, Errno::ENODEV).frame(&mut refusal, |_| ());
    client.send(&refusal).unwrap();
    for frame in &frames[1..] {
        assert!(client.session.unsent().is_none());
        client.send(&answer(frame, u64::MAX)).unwrap();
    }
    assert_eq!(ended(&mut client), Some((id, Err(TransferError::Refused { errno: Errno::ENODEV }))));
}

#[test]
fn replies_that_do_not_fit_are_failures_and_the_stream_goes_on() {
    let mut client = Client::new();
    type Reply = (&'static str, fn(&mut Vec<u8>));
    let replies: [Reply; 8] = [
        ("nothing", |_| ()),
        ("cut off", |out| out.extend_from_slice(&[0; 15])),
        ("no bytes", |out| DmaAccess { iova: Iova::new(0x1000), bytes: 0, data: &[] }.write(out)),
        ("elsewhere", |out| DmaAccess { iova: Iova::new(0x2000), bytes: 8, data: &[0; 8] }.write(out)),
        ("too many", |out| DmaAccess { iova: Iova::new(0x1000), bytes: 9, data: &[0; 9] }.write(out)),
        ("less than said", |out| DmaAccess { iova: Iova::new(0x1000), bytes: 8, data: &[0; 7] }.write(out)),
        ("more than said", |out| DmaAccess { iova: Iova::new(0x1000), bytes: 8, data: &[0; 9] }.write(out)),
        ("everything", |out| {
            DmaAccess { iova: Iova::new(0x1000), bytes: u64::MAX, data: &[0; 9] }.write(out);
        }),
    ];
    for (why, write) in replies {
        let id = client.session.dma_read(Iova::new(0x1000), 8).unwrap();
        let frame = client.frame();
        let mut bytes = Vec::new();
        Header::reply(frame.header.id, Command::DMA_READ).frame(&mut bytes, write);
        client.send(&bytes).unwrap();
        assert_eq!(ended(&mut client), Some((id, Err(TransferError::Malformed))), "{why}");
        client.send(&bytes).unwrap();
        assert!(ended(&mut client).is_none(), "a reply counts once");
    }
    let id = client.session.dma_read(Iova::new(0x1000), 8).unwrap();
    let frame = client.frame();
    let mut bytes = Vec::new();
    Header::reply(frame.header.id, Command::REGION_READ).frame(&mut bytes, |_| ());
    client.send(&bytes).unwrap();
    assert_eq!(ended(&mut client), Some((id, Err(TransferError::Malformed))), "another command");
    let id = client.session.dma_read(Iova::new(0x1000), 8).unwrap();
    let frame = client.frame();
    bytes.clear();
    Header::reply(frame.header.id, Command::DMA_READ).frame(&mut bytes, |out| out.resize(2 << 20, 0));
    client.send(&bytes).unwrap();
    assert_eq!(ended(&mut client), Some((id, Err(TransferError::Malformed))), "longer than is read");
}

#[test]
fn the_short_count_of_the_specification_is_understood() {
    let mut client = Client::new();
    let id = client.session.dma_write(Iova::new(0x1000), &memory(0x1000, 8)).unwrap();
    let frame = client.frame();
    let mut bytes = Vec::new();
    Header::reply(frame.header.id, Command::DMA_WRITE).frame(&mut bytes, |out| {
        out.extend_from_slice(&0x1000_u64.to_ne_bytes());
        out.extend_from_slice(&8_u32.to_ne_bytes());
    });
    client.send(&bytes).unwrap();
    assert_eq!(ended(&mut client), Some((id, Ok(Vec::new()))));
}

#[test]
fn ranges_that_do_not_exist_are_refused_at_once() {
    let mut client = Client::new();
    let range = |iova, bytes| TransferError::Range { iova: Iova::new(iova), bytes };
    assert_eq!(client.session.dma_read(Iova::new(0), 0), Err(range(0, 0)));
    assert_eq!(client.session.dma_write(Iova::new(0), &[]), Err(range(0, 0)));
    assert_eq!(client.session.dma_read(Iova::new(u64::MAX), 2), Err(range(u64::MAX, 2)));
    assert!(matches!(
        client.session.dma_read(Iova::new(0), usize::MAX >> 1),
        Err(TransferError::OutOfMemory { .. })
    ));
    assert!(client.session.dma_read(Iova::new(u64::MAX), 1).is_ok());
}

#[test]
fn nothing_is_asked_of_a_client_that_is_not_there() {
    let mut silent = Client::silent(Settings::default());
    assert_eq!(silent.session.dma_read(Iova::new(0), 1), Err(TransferError::NotNegotiated));
    let mut client = Client::new();
    let ids = [
        client.session.dma_read(Iova::new(0), 1 << 20).unwrap(),
        client.session.dma_write(Iova::new(0), &[0; 100]).unwrap(),
    ];
    client.session.close().unwrap();
    for id in ids {
        assert_eq!(ended(&mut client), Some((id, Err(TransferError::Gone))));
    }
    assert!(client.session.unsent().is_none());
    assert_eq!(client.session.dma_read(Iova::new(0), 1), Err(TransferError::Gone));
}

#[test]
fn a_lost_stream_ends_transfers() {
    let mut client = Client::new();
    let id = client.session.dma_read(Iova::new(0), 16).unwrap();
    client.send(&[0; 16]).unwrap_err();
    assert_eq!(ended(&mut client), Some((id, Err(TransferError::Gone))));
    assert_eq!(client.session.dma_read(Iova::new(0), 1), Err(TransferError::Gone));
}

#[test]
fn ids_are_used_again_but_never_twice_at_a_time() {
    let settings = Settings { transfer_window: 4, ..Settings::default() };
    let mut session: Session<()> = Session::new(settings);
    session.receive(&crate::client::version(0, 0, 0, QEMU), []).unwrap();
    let mut client = Client { session: Session::new(settings), pool: Default::default() };
    client.send(&crate::client::version(0, 0, 0, QEMU)).unwrap();
    client.actions();
    client.frames();
    // One message is never answered, the others wrap around all ids twice.
    client.session.dma_read(Iova::new(0), 1).unwrap();
    let stuck = client.frame().header.id;
    for _ in 0..140_000 {
        client.session.dma_read(Iova::new(0), 1).unwrap();
        let frame = client.frame();
        assert_ne!(frame.header.id, stuck);
        client.send(&answer(&frame, 1)).unwrap();
        assert!(ended(&mut client).is_some());
    }
}

#[test]
fn a_request_that_waits_for_a_transfer_does_not_stop_the_reading() {
    let settings = Settings { held_bytes: 10_000, ..Settings::default() };
    let mut client = Client::with(settings, QEMU);
    let write = body(|out| RegionAccess { offset: 0, region: 0, count: 9990, data: &[1; 9990] }.write(out));
    let Action::WriteRegion { token, .. } = client.action(&command(1, Command::REGION_WRITE, &write), 0)
    else {
        panic!()
    };
    assert!(!client.session.wants_bytes(), "enough is unanswered");
    client.session.dma_read(Iova::new(0), 16).unwrap();
    assert!(client.session.wants_bytes(), "the reply it waits for must be read");
    client.session.reply(token, Ok(()));
}
