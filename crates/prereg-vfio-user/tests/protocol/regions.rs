//! REGION_READ, REGION_WRITE, REGION_WRITE_MULTI and DEVICE_RESET.

use prereg::Errno;
use prereg_vfio_user::wire::{Command, Header, RegionAccess, RegionWrite, RegionWrites};
use prereg_vfio_user::{Action, Capabilities, Settings};

use crate::client::{Client, QEMU, body, command};

fn access(number: Command, offset: u64, count: u32, data: &[u8]) -> Vec<u8> {
    command(3, number, &body(|out| RegionAccess { offset, region: 7, count, data }.write(out)))
}

#[test]
fn a_read_is_answered_with_its_data() {
    let mut client = Client::new();
    for count in [1, 2, 4, 8, 256, 1 << 20] {
        let action = client.action(&access(Command::REGION_READ, 0x30, count, &[]), 0);
        let Action::ReadRegion { region: 7, offset: 0x30, count: asked, token } = action else { panic!() };
        assert_eq!(asked, count);
        let data = vec![0x5a; count as usize];
        client.session.reply(token, Ok(&data));
        let frame = client.frame();
        let expected = RegionAccess { offset: 0x30, region: 7, count, data: &data };
        assert_eq!(RegionAccess::read(&frame.body), Ok(expected));
    }
}

#[test]
fn a_read_may_be_short_but_never_long() {
    let mut client = Client::new();
    let read = access(Command::REGION_READ, 0, 8, &[]);
    let Action::ReadRegion { token, .. } = client.action(&read, 0) else { panic!() };
    client.session.reply(token, Ok(&[1, 2, 3]));
    let frame = client.frame();
    assert_eq!((frame.header.size, RegionAccess::read(&frame.body).unwrap().count), (35, 3));
    let Action::ReadRegion { token, .. } = client.action(&read, 0) else { panic!() };
    client.session.reply(token, Ok(&[0; 9]));
    let frame = client.frame();
    assert_eq!((frame.header.size, frame.error()), (16, 5));
}

#[test]
fn a_write_is_answered_with_its_place() {
    let mut client = Client::new();
    let action = client.action(&access(Command::REGION_WRITE, 0x1000, 4, &[1, 2, 3, 4]), 0);
    let Action::WriteRegion { region: 7, offset: 0x1000, data, token } = action else { panic!() };
    assert_eq!(data, [1, 2, 3, 4]);
    client.session.reply(token, Ok(()));
    let frame = client.frame();
    assert_eq!(frame.header.size, 32);
    assert_eq!(
        RegionAccess::read(&frame.body),
        Ok(RegionAccess { offset: 0x1000, region: 7, count: 4, data: &[] })
    );
}

#[test]
fn a_request_without_reply_gets_none() {
    let mut client = Client::new();
    let mut bytes = Vec::new();
    for (id, fails) in [(1, false), (2, true)] {
        Header::command(id, Command::REGION_WRITE).without_reply().frame(&mut bytes, |out| {
            RegionAccess { offset: 0, region: 0, count: 4, data: &[0; 4] }.write(out);
        });
        client.send(&bytes).unwrap();
        bytes.clear();
        let Some(Action::WriteRegion { token, .. }) = client.session.next_action() else { panic!() };
        client.session.reply(token, if fails { Err(Errno::EIO) } else { Ok(()) });
    }
    // Nor for requests that the engine refuses.
    Header::command(3, Command::REGION_WRITE).without_reply().frame(&mut bytes, |_| ());
    Header::command(4, Command::new(77)).without_reply().frame(&mut bytes, |_| ());
    client.send(&bytes).unwrap();
    assert_eq!(client.actions().len(), 2);
    assert!(client.session.unsent().is_none());
    assert!(matches!(client.action(&command(5, Command::DEVICE_RESET, &[]), 0), Action::Reset { .. }));
}

#[test]
fn wrong_accesses_are_refused() {
    let mut client = Client::new();
    for (bytes, errno, why) in [
        (access(Command::REGION_READ, 0, 0, &[]), 22, "reads nothing"),
        (access(Command::REGION_READ, u64::MAX, 2, &[]), 22, "reads past the top"),
        (access(Command::REGION_READ, 0, (1 << 20) + 1, &[]), 7, "reads too much"),
        (access(Command::REGION_READ, 0, u32::MAX, &[]), 7, "reads far too much"),
        (access(Command::REGION_WRITE, 0, 0, &[]), 22, "writes nothing"),
        (access(Command::REGION_WRITE, 0, 0, &[1]), 22, "writes nothing, with data"),
        (access(Command::REGION_WRITE, 0, 4, &[1; 3]), 22, "less data than counted"),
        (access(Command::REGION_WRITE, 0, 4, &[1; 5]), 22, "more data than counted"),
        (access(Command::REGION_WRITE, 0, u32::MAX, &[1; 5]), 7, "counts too much"),
        (access(Command::REGION_WRITE, u64::MAX, 4, &[1; 4]), 22, "writes past the top"),
        (command(3, Command::REGION_READ, &[0; 15]), 22, "a short body"),
    ] {
        assert_eq!(client.refusal(&bytes, 0), errno, "{why}");
    }
}

#[test]
fn the_servers_own_limit_holds() {
    let capabilities = Capabilities { max_data_xfer_size: 64, ..Capabilities::default() };
    let mut client = Client::with(Settings { capabilities, ..Settings::default() }, QEMU);
    assert_eq!(client.refusal(&access(Command::REGION_READ, 0, 65, &[]), 0), 7);
    assert_eq!(client.refusal(&access(Command::REGION_WRITE, 0, 65, &[0; 65]), 0), 7);
    let action = client.action(&access(Command::REGION_WRITE, 0, 64, &[0; 64]), 0);
    assert!(matches!(action, Action::WriteRegion { .. }));
}

fn writes(list: Vec<RegionWrite>) -> Vec<u8> {
    command(3, Command::REGION_WRITE_MULTI, &body(|out| RegionWrites::new(list).write(out)))
}

#[test]
fn many_writes_come_in_their_order() {
    let mut client = Client::new();
    let list: Vec<_> = (0..200_u64)
        .map(|n| RegionWrite::new(0, n * 8, &[n as u8; 8][..1 + n as usize % 8]).unwrap())
        .collect();
    let Action::WriteRegions { writes: got, token } = client.action(&writes(list.clone()), 0) else {
        panic!()
    };
    assert_eq!(got, list);
    assert_eq!((got[2].region(), got[2].offset(), got[2].data()), (0, 16, [2; 3].as_slice()));
    client.session.reply(token, Ok(200));
    let frame = client.frame();
    assert_eq!(RegionWrites::read_reply(&frame.body), Ok(200));
    let Action::WriteRegions { token, .. } = client.action(&writes(list), 0) else { panic!() };
    client.session.reply(token, Ok(201));
    assert_eq!(client.frame().error(), 5, "more than there were");
}

#[test]
fn wrong_lists_of_writes_are_refused() {
    let mut client = Client::new();
    let good = writes(vec![RegionWrite::new(0, 0, &[1; 4]).unwrap(); 2]);
    let mut miscounted = good.clone();
    miscounted[16..24].copy_from_slice(&3_u64.to_ne_bytes());
    let mut huge = good.clone();
    huge[16..24].copy_from_slice(&u64::MAX.to_ne_bytes());
    let with_count = |count: u32| {
        let mut bytes = good.clone();
        bytes[36..40].copy_from_slice(&count.to_ne_bytes());
        bytes
    };
    let mut high = good.clone();
    high[24..32].copy_from_slice(&(u64::MAX - 1).to_ne_bytes());
    for (bytes, why) in [
        (writes(Vec::new()), "no writes"),
        (miscounted, "fewer than counted"),
        (huge, "far fewer than counted"),
        (with_count(0), "a write of nothing"),
        (with_count(9), "a write of 9 bytes"),
        (with_count(u32::MAX), "a write of 4 GiB"),
        (high, "past the top"),
        (command(3, Command::REGION_WRITE_MULTI, &good[16..good.len() - 1]), "a write cut off"),
        (command(3, Command::REGION_WRITE_MULTI, &[0; 7]), "a count cut off"),
    ] {
        assert_eq!(client.refusal(&bytes, 0), 22, "{why}");
    }
    assert!(RegionWrite::new(0, 0, &[]).is_none());
    assert!(RegionWrite::new(0, 0, &[0; 9]).is_none());
}

#[test]
fn many_writes_must_have_been_agreed_on() {
    let list = writes(vec![RegionWrite::new(0, 0, &[1; 4]).unwrap()]);
    assert_eq!(Client::with(Settings::default(), "").refusal(&list, 0), 95);
    let capabilities = Capabilities { write_multiple: false, ..Capabilities::default() };
    assert_eq!(Client::with(Settings { capabilities, ..Settings::default() }, QEMU).refusal(&list, 0), 95);
}

#[test]
fn a_reset_is_answered_with_a_header() {
    let mut client = Client::new();
    let Action::Reset { token } = client.action(&command(3, Command::DEVICE_RESET, &[]), 0) else { panic!() };
    client.session.reply(token, Ok(()));
    assert_eq!(client.frame().header.size, 16);
}
