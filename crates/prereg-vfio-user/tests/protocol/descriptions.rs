//! Descriptions of the device: DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_GET_REGION_IO_FDS, DEVICE_GET_IRQ_INFO.

use prereg::Errno;
use prereg_vfio_user::wire::{
    Command, DeviceInfo, IoRegionKind, IoRegionsInfo, IoSubregion, IrqInfo, RegionInfo, SparseArea,
};
use prereg_vfio_user::{Action, IoRegion, IrqDescription, Mmap, Region, Settings};

use crate::client::{Client, Fd, Frame, QEMU, body, command};

fn words(command_number: Command, words: &[u32]) -> Vec<u8> {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    command(3, command_number, &bytes)
}

#[test]
fn the_device_is_described() {
    let mut client = Client::new();
    // 16 bytes as in QEMU, 32 as in the client of vfio_user, a longer struct as in newer kernels.
    for sent in [[16, 0, 0, 0].as_slice(), &[32, 0, 0, 0], &[20, 0, 0, 0, 0], &[24, 0, 0, 0, 0, 0]] {
        let Action::DescribeDevice { token } = client.action(&words(Command::DEVICE_GET_INFO, sent), 0)
        else {
            panic!()
        };
        client.session.reply(token, Ok(DeviceInfo { resets: true, regions: 9, irqs: 5 }));
        let frame = client.frame();
        assert_eq!(frame.header.size, 32);
        assert_eq!(frame.body, words(Command::DEVICE_GET_INFO, &[16, 3, 9, 5])[16..]);
    }
}

#[test]
fn wrong_questions_about_the_device_are_refused() {
    let mut client = Client::new();
    for sent in [[16, 0, 0].as_slice(), &[15, 0, 0, 0], &[0, 0, 0, 0]] {
        assert_eq!(client.refusal(&words(Command::DEVICE_GET_INFO, sent), 0), 22, "{sent:?}");
    }
}

fn areas(count: u64) -> Vec<SparseArea> {
    (0..count).map(|area| SparseArea { offset: area << 12, bytes: 0x1000 }).collect()
}

/// The reply to DEVICE_GET_REGION_INFO for region 5 with this `argsz`.
fn region(client: &mut Client, argsz: u32, answer: Region<Fd>) -> Frame {
    let sent =
        command(3, Command::DEVICE_GET_REGION_INFO, &body(|out| RegionInfo::write_command(5, argsz, out)));
    let Action::DescribeRegion { index: 5, token } = client.action(&sent, 0) else { panic!() };
    client.session.reply(token, Ok(answer));
    client.frame()
}

#[test]
fn a_region_that_cannot_be_mapped_is_32_bytes() {
    let mut client = Client::new();
    let answer = Region { bytes: 0x4000, readable: true, writable: true, mmap: None };
    let frame = region(&mut client, 32, answer);
    let info = RegionInfo::read(&frame.body).unwrap();
    assert_eq!((info.argsz, info.flags, info.index, info.bytes), (32, 3, 5, 0x4000));
    assert_eq!((frame.body.len(), frame.fds.len()), (32, 0));
    let unused = region(&mut client, 32, Region { bytes: 0, readable: false, writable: false, mmap: None });
    assert_eq!(RegionInfo::read(&unused.body).unwrap().flags, 0);
}

#[test]
fn a_region_that_can_be_mapped_whole_has_a_descriptor_and_no_areas() {
    let mut client = Client::new();
    let mmap = Some(Mmap { descriptor: client.pool.fd(9), offset: 0x1000, areas: Vec::new() });
    let frame = region(&mut client, 32, Region { bytes: 0x4000, readable: true, writable: false, mmap });
    let info = RegionInfo::read(&frame.body).unwrap();
    assert_eq!((info.argsz, info.flags, info.offset), (32, 1 | 4, 0x1000));
    assert_eq!(frame.fds[0].number, 9);
    drop(frame);
    assert_eq!(client.pool.held(), 0, "sent descriptors are dropped");
}

#[test]
fn areas_go_to_a_client_with_room_for_them() {
    let mut client = Client::new();
    let answer = |client: &Client| {
        let mmap = Some(Mmap { descriptor: client.pool.fd(9), offset: 0, areas: areas(2) });
        Region { bytes: 0x4000, readable: true, writable: true, mmap }
    };
    for short in [32, 79] {
        let said = answer(&client);
        let without = region(&mut client, short, said);
        let info = RegionInfo::read(&without.body).unwrap();
        assert_eq!((info.argsz, without.body.len(), without.fds.len()), (80, 32, 0));
        assert_eq!(info.flags, 3, "nothing says that the region can be mapped");
        assert_eq!(client.pool.held(), 0);
    }
    for enough in [80, 1000] {
        let said = answer(&client);
        let with = region(&mut client, enough, said);
        let info = RegionInfo::read(&with.body).unwrap();
        assert_eq!((info.argsz, info.flags, with.body.len(), with.fds.len()), (80, 15, 80, 1));
        assert_eq!(info.areas, areas(2));
        // struct vfio_region_info_cap_sparse_mmap, byte for byte.
        let words: Vec<u32> =
            with.body[32..].chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
        assert_eq!(&with.body[12..16], &32_u32.to_ne_bytes());
        assert_eq!(&with.body[32..36], [1_u16.to_ne_bytes(), 1_u16.to_ne_bytes()].concat());
        assert_eq!(words[1..4], [0, 2, 0]);
    }
}

#[test]
fn a_client_without_descriptors_is_offered_no_mapping() {
    let mut client = Client::with(Settings::default(), r#"{"capabilities":{"max_msg_fds":0}}"#);
    let mmap = Some(Mmap { descriptor: client.pool.fd(9), offset: 0, areas: areas(1) });
    let frame = region(&mut client, 1000, Region { bytes: 0x4000, readable: true, writable: true, mmap });
    let info = RegionInfo::read(&frame.body).unwrap();
    assert_eq!((info.argsz, info.flags, frame.fds.len()), (32, 3, 0));
    assert_eq!(client.pool.held(), 0);
}

#[test]
fn a_region_that_is_not_there_has_an_errno() {
    let mut client = Client::new();
    let sent = command(
        3,
        Command::DEVICE_GET_REGION_INFO,
        &body(|out| RegionInfo::write_command(u32::MAX, 32, out)),
    );
    let Action::DescribeRegion { index: u32::MAX, token } = client.action(&sent, 0) else { panic!() };
    client.session.reply(token, Err(Errno::EINVAL));
    let frame = client.frame();
    assert_eq!((frame.error(), frame.header.size), (22, 16));
}

#[test]
fn wrong_questions_about_a_region_are_refused() {
    let mut client = Client::new();
    for sent in [[31, 0, 0, 0, 0, 0, 0, 0].as_slice(), &[0, 0, 0, 0, 0, 0, 0, 0], &[32, 0, 0, 0]] {
        assert_eq!(client.refusal(&words(Command::DEVICE_GET_REGION_INFO, sent), 0), 22, "{sent:?}");
    }
}

fn io_region(client: &Client, descriptors: u32) -> IoRegion<Fd> {
    let eventfd = IoRegionKind::Eventfd { flags: 1, datamatch: 7 };
    let ioregion = IoRegionKind::Ioregion { flags: 2, user_data: 8 };
    let part = |offset, descriptor, kind| IoSubregion { offset, bytes: 4, descriptor, kind };
    IoRegion {
        subregions: vec![part(0x1000, 0, eventfd), part(0x1004, descriptors - 1, ioregion)],
        descriptors: client.pool.fds(descriptors),
    }
}

fn io_descriptors(client: &mut Client, argsz: u32, answer: IoRegion<Fd>) -> Frame {
    let sent = command(
        3,
        Command::DEVICE_GET_REGION_IO_FDS,
        &body(|out| IoRegionsInfo::write_command(1, argsz, out)),
    );
    let Action::DescribeIoDescriptors { index: 1, token } = client.action(&sent, 0) else { panic!() };
    client.session.reply(token, Ok(answer));
    client.frame()
}

#[test]
fn parts_with_descriptors_go_to_a_client_with_room_for_them() {
    let mut client = Client::new();
    let answer = io_region(&client, 2);
    let frame = io_descriptors(&mut client, 16, answer);
    let info = IoRegionsInfo::read(&frame.body).unwrap();
    assert_eq!((info.argsz, info.subregions.len(), frame.fds.len()), (96, 0, 0));
    let answer = io_region(&client, 2);
    let subregions = answer.subregions.clone();
    let frame = io_descriptors(&mut client, 96, answer);
    let info = IoRegionsInfo::read(&frame.body).unwrap();
    assert_eq!((info.argsz, info.index, frame.body.len()), (96, 1, 96));
    assert_eq!(info.subregions, subregions);
    assert_eq!(frame.fds.iter().map(|fd| fd.number).collect::<Vec<_>>(), [0, 1]);
}

#[test]
fn more_descriptors_than_a_client_takes_or_a_part_without_one_is_a_failure() {
    let mut client = Client::new();
    let answer = io_region(&client, 17);
    assert_eq!(io_descriptors(&mut client, 1000, answer).error(), 7);
    let mut answer = io_region(&client, 2);
    answer.descriptors.pop();
    assert_eq!(io_descriptors(&mut client, 1000, answer).error(), 7);
    assert_eq!(client.pool.held(), 0);
    let mut poor = Client::with(Settings::default(), "");
    let answer = io_region(&poor, 2);
    assert_eq!(io_descriptors(&mut poor, 1000, answer).error(), 7);
}

#[test]
fn interrupts_are_described() {
    let mut client = Client::with(Settings::default(), QEMU);
    let sent = words(Command::DEVICE_GET_IRQ_INFO, &[16, 0, 2, 0]);
    let Action::DescribeIrqs { index: 2, token } = client.action(&sent, 0) else { panic!() };
    client.session.reply(token, Ok(IrqDescription { flags: 9, count: 8 }));
    let frame = client.frame();
    assert_eq!(frame.body, words(Command::DEVICE_GET_IRQ_INFO, &[16, 9, 2, 8])[16..]);
    assert_eq!(IrqInfo::read(&frame.body), Ok(IrqInfo { index: 2, flags: 9, count: 8 }));
    for wrong in [[15, 0, 2, 0].as_slice(), &[16, 0, 2]] {
        assert_eq!(client.refusal(&words(Command::DEVICE_GET_IRQ_INFO, wrong), 0), 22, "{wrong:?}");
    }
    for wrong in [[15, 0, 2, 0].as_slice(), &[16, 1, 2, 0], &[16, 0, 2, 1], &[16, 0, 2]] {
        assert_eq!(client.refusal(&words(Command::DEVICE_GET_REGION_IO_FDS, wrong), 0), 22, "{wrong:?}");
    }
}
