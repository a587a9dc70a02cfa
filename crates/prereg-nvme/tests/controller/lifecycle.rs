//! From the first register access to the client's end.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;

use prereg::Errno;
use prereg_nvme::controller::{NvmeDisk, NvmeError, NvmeModel, NvmeSettings};
use prereg_nvme::disk::MemoryDisk;
use prereg_nvme::spec::Status;
use prereg_vfio_user::client::{Client, ClientError};

use crate::driver::{DATA, Driver, FLUSH, LINUX, LIST, command, completion_at, transfer, with_prp};
use crate::fixture::{DISK, Fixture, pins, settings, until};
use crate::staged::StagedDisk;

#[test]
fn a_driver_finds_an_nvme_controller() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    let mut class = [0; 3];
    driver.client.region_read(7, 9, &mut class).unwrap();
    assert_eq!(class, [2, 8, 1]);
    // The BAR: 64 bits, 16 KiB.
    driver.client.region_write(7, 0x10, &[0xff; 8]).unwrap();
    let mut bar = [0; 8];
    driver.client.region_read(7, 0x10, &mut bar).unwrap();
    assert_eq!(u64::from_le_bytes(bar), !0x3fff | 4);
    // Capabilities: power management, PCI Express, MSI, MSI-X, each once.
    let mut found = Vec::new();
    let mut at = [0];
    driver.client.region_read(7, 0x34, &mut at).unwrap();
    while at[0] != 0 {
        let mut header = [0; 2];
        driver.client.region_read(7, u64::from(at[0]), &mut header).unwrap();
        found.push(header[0]);
        at = [header[1]];
    }
    found.sort_unstable();
    assert_eq!(found, [1, 5, 0x10, 0x11]);
    assert_eq!(driver.read_u32(8), 0x0001_0400);
    let mut capabilities = [0; 8];
    driver.client.region_read(0, 0, &mut capabilities).unwrap();
    assert_eq!(u64::from_le_bytes(capabilities) & 0xffff, 63, "MQES");
    assert_eq!(driver.client.region_info(0).unwrap().0.areas.len(), 0, "trapped doorbells are not mapped");
    let mut odd = [0; 7];
    driver.client.region_read(0, 0xffe, &mut odd).unwrap();
    driver.client.region_read(0, 0x2ffd, &mut odd).unwrap();
}

#[test]
fn a_controller_is_enabled_used_shut_down_and_reset_again_and_again() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    for round in 0..10 {
        driver.enable();
        driver.create_pair(1);
        assert_eq!(driver.io(transfer(1, 1, round, 1, DATA, 0)), Status::SUCCESS);
        driver.write_u32(0x14, LINUX | 1 << 14);
        driver.await_status(0xc, 8);
        match round % 4 {
            0 => driver.disable(),
            1 => driver.client.reset().unwrap(),
            2 => {
                // Function level reset: bit 15 of Device Control.
                let express = capability(&mut driver, 0x10);
                driver.client.region_write(7, express + 8, &[0x10, 0xa8]).unwrap();
            }
            _ => {
                driver.write_u32(0x14, 0);
                driver.write_u32(0x14, 0);
                driver.await_status(1, 0);
            }
        }
        assert_eq!(driver.read_u32(0x1c), 0);
    }
    drop(driver);
    fixture.settle();
}

fn capability(driver: &mut Driver, id: u8) -> u64 {
    let mut at = [0];
    driver.client.region_read(7, 0x34, &mut at).unwrap();
    loop {
        let mut header = [0; 2];
        driver.client.region_read(7, u64::from(at[0]), &mut header).unwrap();
        if header[0] == id {
            return u64::from(at[0]);
        }
        assert_ne!(header[1], 0, "no capability {id:#x}");
        at = [header[1]];
    }
}

#[test]
fn a_reset_with_commands_under_way_is_quiet_when_it_returns() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    for round in 0..20 {
        driver.enable();
        driver.create_pair(1);
        driver.create_pair(2);
        for slot in 0..30u64 {
            driver.put(1 + (slot % 2) as usize, transfer(2, 1, slot * 256, 256, DATA, LIST));
        }
        for page in 0..32 {
            driver.put_u64(LIST + page * 8, DATA + (page + 1) * 0x1000);
        }
        driver.ring(1);
        driver.ring(2);
        if round % 2 == 0 {
            driver.client.reset().unwrap();
        } else {
            driver.disable();
        }
        // Guest memory is not written from here on.
        driver.ram.write(DATA, &[0xab; 0x2_0000]).unwrap();
        assert_eq!(driver.read_u32(0x1c), 0);
        assert!(driver.get(DATA, 0x2_0000).iter().all(|byte| *byte == 0xab));
    }
}

#[test]
fn a_client_that_leaves_in_the_middle_leaves_nothing() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    for pairs in [0, 1, 4] {
        let mut driver = Driver::ready(&fixture, pairs);
        driver.put(0, command(0x0c, 0, &[]));
        driver.ring(0);
        for queue in 1..=usize::from(pairs) {
            for slot in 0..20 {
                driver.put(queue, transfer(1, 1, slot * 8, 8, DATA, 0));
            }
            driver.ring(queue);
        }
        drop(driver);
        fixture.settle();
    }
    // The next controller's health log has the counts of the one before.
    let mut driver = Driver::ready(&fixture, 1);
    let log = with_prp(command(2, 0xffff_ffff, &[(10, 2 | 127 << 16)]), DATA, 0);
    assert_eq!(driver.admin(log).status, Status::SUCCESS);
    assert_eq!(driver.get(DATA + 112, 1), [4], "controllers that were attached");
    assert_eq!(driver.get(DATA + 144, 1), [3], "and left without a shutdown");
}

#[test]
fn a_writable_disk_has_one_client_unless_the_settings_say_otherwise() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut first = Driver::ready(&fixture, 1);
    let refused = Client::connect(&fixture.path).unwrap_err();
    assert!(matches!(refused, ClientError::Refused { errno: Errno::EBUSY, .. }), "{refused}");
    assert_eq!(first.io(FLUSH), Status::SUCCESS);
    drop(first);
    // A client that connects at once waits until the one before is gone.
    let mut next = Driver::ready(&fixture, 1);
    assert_eq!(next.io(FLUSH), Status::SUCCESS);
    drop((next, fixture));
    let mut settings = settings();
    settings.shared = true;
    let Some(fixture) = Fixture::new(settings) else { return };
    let (mut one, mut other) = (Driver::ready(&fixture, 1), Driver::ready(&fixture, 2));
    let data = one.fill(DATA, 4096, 5);
    assert_eq!(one.io(transfer(1, 1, 0, 8, DATA, 0)), Status::SUCCESS);
    assert_eq!(other.io(transfer(2, 1, 0, 8, DATA, 0)), Status::SUCCESS);
    assert!(other.get(DATA, 4096) == data);
}

#[test]
fn a_namespace_change_is_reported() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::ready(&fixture, 1);
    assert_eq!(driver.admin(command(9, 0, &[(10, 11), (11, 1 << 8)])).status, Status::SUCCESS);
    let cid = driver.put(0, command(0x0c, 0, &[]));
    driver.ring(0);
    // The reply comes after the request, which waits by now.
    until("the request waits", || driver.read_u32(0x1c) == 1);
    fixture.model.namespace_changed(1);
    let told = driver.take(0);
    assert_eq!((told.cid, told.result), (cid, 0x0004_0002));
    let log = with_prp(command(2, 0, &[(10, 4 | 3 << 16)]), DATA, 0);
    assert_eq!(driver.admin(log).status, Status::SUCCESS);
    assert_eq!(driver.get(DATA, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(fixture.model.refresh().unwrap(), Vec::<(u32, u64)>::new());
    fixture.model.namespace_changed(0);
    fixture.model.namespace_changed(99);
}

#[test]
fn a_thread_that_panics_fails_its_controller_and_holds_nothing_up() {
    let disk = StagedDisk::new();
    let stage = disk.stage();
    let Some(fixture) = pins().and_then(|pins| Fixture::with(settings(), pins, vec![Arc::new(disk)])) else {
        return;
    };
    let mut driver = Driver::ready(&fixture, 1);
    // An I/O thread: the controller works again after a reset.
    stage.panic();
    driver.put(1, FLUSH);
    driver.ring(1);
    driver.await_status(2, 2);
    driver.disable();
    driver.enable();
    driver.create_pair(1);
    assert_eq!(driver.io(FLUSH), Status::SUCCESS);
    // During a reset.
    stage.close();
    driver.put(1, FLUSH);
    driver.ring(1);
    until("the disk has it", || stage.waiting() == 1);
    stage.panic();
    driver.client.reset().unwrap();
    stage.open();
    // The admin thread, which makes queues: only another client gets a controller that works.
    driver.client.region_write(7, 4, &[6, 0]).unwrap();
    driver.enable();
    stage.panic();
    driver.put(0, with_prp(command(5, 0, &[(10, 0x1f_0001), (11, 1)]), completion_at(1), 0));
    driver.ring(0);
    driver.await_status(2, 2);
    driver.client.reset().unwrap();
    drop(driver);
    fixture.settle();
    assert_eq!(Driver::ready(&fixture, 1).io(FLUSH), Status::SUCCESS);
}

#[test]
fn a_size_that_changes_while_a_client_attaches_is_the_size_it_finds() {
    let disk = Arc::new(StagedDisk::new());
    let Some(fixture) = pins().and_then(|pins| Fixture::with(settings(), pins, vec![disk.clone()])) else {
        return;
    };
    let (grown, model) = (Arc::clone(&disk), Arc::clone(&fixture.model));
    disk.interrupt(move || {
        grown.resize(2 * DISK);
        model.namespace_changed(1);
    });
    let mut driver = Driver::ready(&fixture, 0);
    assert_eq!(driver.admin(with_prp(command(6, 1, &[]), DATA, 0)).status, Status::SUCCESS);
    assert_eq!(driver.get(DATA, 8), (2 * DISK / 512).to_le_bytes());
}

#[test]
fn a_failure_ends_with_the_reset_even_if_the_guest_does_not_wait() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    for _ in 0..100 {
        driver.write_u32(0x24, 0x1f_001f);
        driver.client.region_write(0, 0x28, &0xffff_ffff_0000u64.to_le_bytes()).unwrap();
        driver.write_u32(0x14, LINUX);
        driver.await_status(2, 2);
        // Not ready, so the guest has nothing to wait for.
        driver.write_u32(0x14, 0);
        assert_eq!(driver.read_u32(0x1c), 0);
        driver.enable();
        driver.disable();
    }
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let disk = || NvmeDisk::new(Arc::new(MemoryDisk::new(1 << 20, 9).unwrap()));
    let with = |change: fn(&mut NvmeSettings)| {
        let mut settings = NvmeSettings::new("S");
        change(&mut settings);
        NvmeModel::new("disk", vec![disk()], settings).map(|_| ())
    };
    assert_eq!(with(|_| ()), Ok(()));
    for change in [
        (|settings| settings.serial = String::new()) as fn(&mut NvmeSettings),
        |settings| settings.serial = "a serial number of 24 ch".to_owned(),
        |settings| settings.serial = "ü".to_owned(),
        |settings| settings.workers = 0,
        |settings| settings.io_queues = 0,
        |settings| settings.io_queues = 512,
        |settings| settings.entries = 1,
        |settings| settings.entries = 65_537,
        |settings| settings.transfer_shift = 11,
    ] {
        assert!(matches!(with(change), Err(NvmeError::Setting { .. })));
    }
    let none = NvmeModel::new("disk", vec![], NvmeSettings::new("S")).map(|_| ());
    assert_eq!(none, Err(NvmeError::Disks { asked: 0, most: 256 }));
    let odd = NvmeDisk::new(Arc::new(MemoryDisk::new(1 << 20, 11).unwrap()));
    let refused = NvmeModel::new("disk", vec![disk(), odd], NvmeSettings::new("S")).map(|_| ());
    assert_eq!(refused, Err(NvmeError::Block { nsid: 2, shift: 11 }));
}

#[test]
fn the_most_queues_can_be_made() {
    let mut settings = settings();
    settings.io_queues = 64;
    settings.workers = 3;
    let Some(fixture) = Fixture::new(settings) else { return };
    let mut driver = Driver::ready(&fixture, 0);
    for id in 1..=15 {
        driver.create_pair(id);
    }
    for queue in 1..=15 {
        driver.put(queue, FLUSH);
        driver.ring(queue);
    }
    for queue in 1..=15 {
        assert_eq!(driver.take(queue).status, Status::SUCCESS);
    }
}
