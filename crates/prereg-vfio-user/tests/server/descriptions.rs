//! Descriptions of a device: DEVICE_GET_INFO, regions, mappings, eventfds, interrupts.

use std::os::fd::AsFd;
use std::sync::Arc;

use prereg::Errno;
use prereg_linux::{SharedError, SharedFile};
use prereg_vfio_user::client::{ClientError, Eventfd};
use prereg_vfio_user::server::{Device, Ioeventfd, ServerSettings};
use prereg_vfio_user::wire::{Command, DeviceInfo, IoRegionKind, RegionInfo, SparseArea};

use crate::fixture::{BAR_BYTES, CONFIG, Fixture, Probes, ROM, WRITE_ONLY};

fn refused(command: Command, errno: Errno) -> ClientError {
    ClientError::Refused { command, errno }
}

#[test]
fn a_pci_device_has_nine_regions_and_five_kinds_of_interrupt() {
    let fixture = Fixture::new();
    let info = fixture.client().device_info().unwrap();
    assert_eq!(info, DeviceInfo { resets: true, regions: 9, irqs: 5 });
}

#[test]
fn regions_say_how_long_they_are_and_what_may_be_done() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let (read, write) = (RegionInfo::READ, RegionInfo::WRITE);
    let expected = [
        (0, BAR_BYTES, read | write),
        (1, 0, 0),
        (WRITE_ONLY, 16, write),
        (ROM, 0x800, read),
        (CONFIG, 0x1000, read | write),
        (8, 0, 0),
    ];
    for (index, bytes, flags) in expected {
        let (info, descriptor) = client.region_info(index).unwrap();
        assert_eq!((info.index, info.bytes, info.flags), (index, bytes, flags));
        assert!(descriptor.is_none());
    }
    for index in [9, u32::MAX] {
        let error = client.region_info(index).unwrap_err();
        assert_eq!(error, refused(Command::DEVICE_GET_REGION_INFO, Errno::EINVAL));
        assert_eq!(client.region_io_fds(index).unwrap_err().errno(), Errno::EINVAL);
    }
}

#[test]
fn what_is_written_through_a_mapping_is_there_for_the_device() {
    let fixture = Fixture::with(Probes::with_doorbells(Vec::new()), ServerSettings::default());
    let mut client = fixture.client();
    let (info, descriptor) = client.region_info(0).unwrap();
    assert_eq!(info.areas, [SparseArea { offset: 0x1000, bytes: 0x1000 }]);
    assert_eq!(info.flags & RegionInfo::MMAP, RegionInfo::MMAP);
    let descriptor = descriptor.unwrap();
    let page = SharedFile::of(descriptor).unwrap().map(info.offset + 0x1000, 0x1000).unwrap();
    assert!(page.is_direct(), "its file is sealed against shrinking");
    page.store_u32(8, 0x1234_5678).unwrap();
    let layout = fixture.probes.device(0).layout();
    let theirs = layout.regions[0].mmap.as_ref().unwrap();
    let theirs = SharedFile::of(theirs.fd.try_clone().unwrap()).unwrap().map(0x1000, 0x1000).unwrap();
    assert_eq!(theirs.load_u32(8), Ok(0x1234_5678));
    for outside in [6, 0x1000] {
        assert!(matches!(theirs.load_u32(outside), Err(SharedError::OutOfBounds { .. })), "{outside:#x}");
    }
}

#[test]
fn a_server_that_cuts_its_file_short_costs_the_client_an_error_and_not_its_life() {
    let file = match tempfile::tempfile_in("/dev/shm") {
        Ok(file) => file,
        Err(error) => return eprintln!("skipped: no file in /dev/shm: {error}"),
    };
    file.set_len(BAR_BYTES).unwrap();
    let offered = file.try_clone().unwrap().into();
    let fixture = Fixture::with(Probes::with_doorbells_in(offered, Vec::new()), ServerSettings::default());
    let mut client = fixture.client();
    let (info, descriptor) = client.region_info(0).unwrap();
    let page = SharedFile::of(descriptor.unwrap()).unwrap().map(info.offset + 0x1000, 0x1000).unwrap();
    assert!(!page.is_direct(), "nothing keeps its pages there");
    page.store_u32(8, 0x1234_5678).unwrap();
    assert_eq!(page.load_u32(8), Ok(0x1234_5678));

    file.set_len(0x1000).unwrap();
    assert_eq!((page.load_u32(8), page.load_u64(8)), (Err(SharedError::Gone), Err(SharedError::Gone)));
    assert_eq!(
        (page.store_u32(8, 1), page.store_u64(8, 1)),
        (Err(SharedError::Gone), Err(SharedError::Gone))
    );
    assert_eq!(page.read(0, &mut [0; 4]), Err(SharedError::Gone));
    assert_eq!(file.metadata().unwrap().len(), 0x1000, "a store does not make it longer again");

    let (_, descriptor) = client.region_info(0).unwrap();
    let error = SharedFile::of(descriptor.unwrap()).unwrap().map(0x1000, 0x1000).unwrap_err();
    assert!(matches!(error, SharedError::Short { length: 0x1000, .. }), "{error}");
}

#[test]
fn what_is_no_memory_is_not_mapped() {
    let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    let mut all = vec![("a socket", socket.into())];
    match tempfile::tempfile_in(".") {
        Ok(file) => {
            file.set_len(0x2000).unwrap();
            all.push(("a file of a disk", file.into()));
        }
        Err(error) => eprintln!("skipped: a file of a disk: the sources cannot be written to: {error}"),
    }
    for (what, descriptor) in all {
        let error = SharedFile::of(descriptor).unwrap_err();
        assert!(matches!(error, SharedError::NotMemory { .. }), "{what}: {error}");
    }
}

#[test]
fn an_eventfd_goes_once_however_many_writes_it_stands_for() {
    let eventfds: Vec<_> = (0..2).map(|_| Eventfd::new().unwrap()).collect();
    let fd = |at: usize| Arc::new(eventfds[at].as_fd().try_clone_to_owned().unwrap());
    let (one, two) = (fd(0), fd(1));
    let ioeventfd =
        |fd: &Arc<_>, offset, datamatch| Ioeventfd { fd: Arc::clone(fd), offset, bytes: 4, datamatch };
    let offered =
        vec![ioeventfd(&one, 0x1000, None), ioeventfd(&two, 0x1004, Some(7)), ioeventfd(&one, 0x1008, None)];
    let fixture = Fixture::with(Probes::with_doorbells(offered), ServerSettings::default());
    let mut client = fixture.client();
    let (info, descriptors) = client.region_io_fds(0).unwrap();
    let parts: Vec<_> =
        info.subregions.iter().map(|part| (part.offset, part.bytes, part.descriptor)).collect();
    assert_eq!(parts, [(0x1000, 4, 0), (0x1004, 4, 1), (0x1008, 4, 0)]);
    assert_eq!(info.subregions[1].kind, IoRegionKind::Eventfd { flags: 1, datamatch: 7 });
    assert_eq!(descriptors.len(), 2);
    let (nothing, none) = client.region_io_fds(CONFIG).unwrap();
    assert!(nothing.subregions.is_empty() && none.is_empty());
}

#[test]
fn interrupts_say_how_many_they_are_and_what_they_can() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let expected = [(0, 1, 0b111), (1, 4, 0b1001), (2, 64, 1), (3, 1, 0b1001), (4, 1, 0b1001)];
    for (index, count, flags) in expected {
        let info = client.irq_info(index).unwrap();
        assert_eq!((info.index, info.count, info.flags), (index, count, flags));
    }
    assert_eq!(client.irq_info(5).unwrap_err(), refused(Command::DEVICE_GET_IRQ_INFO, Errno::EINVAL));
}

#[test]
fn a_reset_reaches_the_device() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    assert!(!fixture.probes.device(0).said("reset"));
    client.reset().unwrap();
    assert!(fixture.probes.device(0).said("reset"));
}
