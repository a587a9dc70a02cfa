//! A client that behaves as SPDK's initiator does, where that differs from QEMU: memory in huge pages, requests as long as the
//! reply's buffer, mapped doorbells only, descriptors with requests that need none, memory space never enabled, and a new
//! connection right after the last one was closed.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use prereg::{Access, Errno, Iova};
use prereg_linux::{GuestMemory, HugeSize};
use prereg_nvme::controller::{DoorbellMode, NvmeSettings};
use prereg_nvme::spec::Status;
use prereg_vfio_user::client::{Client, ClientError};
use prereg_vfio_user::wire::{Command, Header, RegionInfo, UnmapMemory};

use crate::driver::{DATA, Driver, FLUSH, transfer};
use crate::fixture::{Fixture, settings};

const RAM: u64 = 4 << 20;

/// Huge pages as SPDK has them, if this host has any; otherwise small pages, and the test says so.
fn memory() -> GuestMemory {
    GuestMemory::memfd_hugetlb("spdk", RAM, HugeSize::M2).unwrap_or_else(|error| {
        eprintln!("small pages instead of huge ones: {error}");
        GuestMemory::memfd("spdk", RAM).unwrap()
    })
}

fn connect(fixture: &Fixture) -> Client {
    let mut client = Client::over(UnixStream::connect(&fixture.path).unwrap());
    let capabilities = r#"{"capabilities":{"max_msg_fds":8,"max_data_xfer_size":1048576}}"#;
    client.version(0, 1, capabilities).unwrap();
    client
}

/// A request whose body is as long as its reply's buffer; returns the reply's body.
fn request(client: &mut Client, command: Command, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    Header::command(0x77, command).frame(&mut bytes, |out| out.extend_from_slice(body));
    client.send_raw(&bytes, &[]).unwrap();
    let (header, reply) = client.receive_raw().unwrap();
    assert!(!header.is_error(), "{header:?}");
    reply.body
}

fn bar(client: &mut Client) -> RegionInfo {
    let mut body = Vec::new();
    RegionInfo::write_command(0, 0xfe0, &mut body);
    body.resize(0xfe0, 0xa5);
    RegionInfo::read(&request(client, Command::DEVICE_GET_REGION_INFO, &body)).unwrap()
}

fn drives(fixture: &Fixture) -> Driver {
    let mut client = connect(fixture);
    let mut info = vec![0; 0xff0];
    info[..4].copy_from_slice(&0xff0u32.to_ne_bytes());
    request(&mut client, Command::DEVICE_GET_INFO, &info);
    let info = bar(&mut client);
    assert_ne!(info.flags & RegionInfo::MMAP, 0, "it cannot do without");
    assert!(info.areas.iter().any(|area| area.offset <= 0x1000 && area.offset + area.bytes >= 0x2000));
    let mut driver = Driver::over(client, memory());
    driver.map_doorbells();
    let mut command = [0; 2];
    driver.client.region_read(7, 4, &mut command).unwrap();
    command = (u16::from_le_bytes(command) | 0x404).to_le_bytes();
    driver.client.region_write(7, 4, &command).unwrap();
    driver.enable();
    driver.create_pair(1);
    driver
}

#[test]
fn it_drives_the_disk_with_the_defaults_and_comes_back_at_once() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    for round in 0..10 {
        let mut driver = drives(&fixture);
        let data = driver.fill(DATA, 4096, round);
        assert_eq!(driver.io(transfer(1, 1, round * 8, 8, DATA, 0)), Status::SUCCESS);
        driver.ram.write(DATA, &[0; 4096]).unwrap();
        assert_eq!(driver.io(transfer(2, 1, round * 8, 8, DATA, 0)), Status::SUCCESS);
        assert!(driver.get(DATA, 4096) == data);
        // Doorbells that are sent as messages work too.
        driver.put(1, FLUSH);
        let tail = driver.tail(1);
        driver.client.region_write(0, 0x1008, &tail.to_le_bytes()).unwrap();
        assert_eq!(driver.take(1).status, Status::SUCCESS);
        let more = memory();
        let (iova, descriptor) = (Iova::new(0x2000_0020_0000), more.descriptor().unwrap());
        match driver.client.dma_map(iova, RAM, Access::ReadWrite, Some((descriptor, 0))) {
            Err(ClientError::Refused { errno: Errno::ENOMEM, .. }) => {
                eprintln!(
                    "skipped: the unmap with a descriptor: no room for more memory in the locked-memory limit"
                );
                continue;
            }
            mapped => mapped.unwrap(),
        }
        let mut unmap = Vec::new();
        Header::command(9, Command::DMA_UNMAP)
            .frame(&mut unmap, |out| UnmapMemory::Range { iova, bytes: RAM }.write(out));
        driver.client.send_raw(&unmap, &[descriptor.as_fd()]).unwrap();
        assert!(!driver.client.receive_raw().unwrap().0.is_error());
    }
    for _ in 0..20 {
        drop(connect(&fixture));
    }
    assert!(!fixture.server.snapshot().disconnects.contains_key("turned-away"));
}

#[test]
fn doorbells_are_mapped_for_clients_that_need_it_unless_the_settings_say_otherwise() {
    let mappable = |settings: NvmeSettings, posts: bool| {
        let fixture = Fixture::new(settings)?;
        let mut client = if posts { fixture.client() } else { connect(&fixture) };
        Some(bar(&mut client).flags & RegionInfo::MMAP != 0)
    };
    for (mode, posts, mapped) in [
        (DoorbellMode::default(), false, true),
        (DoorbellMode::default(), true, false),
        (DoorbellMode::Trapped, false, false),
        (DoorbellMode::Mapped, true, true),
    ] {
        let mut settings = settings();
        settings.doorbells = mode;
        let Some(found) = mappable(settings, posts) else { return };
        assert_eq!(found, mapped, "{mode:?} and {posts}");
    }
}

#[test]
fn a_doorbell_is_found_after_any_idle_time() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = drives(&fixture);
    // From the I/O thread's own polling to the admin thread's.
    for rest in [0, 1, 5, 15, 25, 60, 150, 300] {
        std::thread::sleep(std::time::Duration::from_millis(rest));
        assert_eq!(driver.io(FLUSH), Status::SUCCESS, "after {rest} ms");
    }
}
