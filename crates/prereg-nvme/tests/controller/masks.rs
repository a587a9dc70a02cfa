//! Masks of interrupts and of the whole device: MSI-X and MSI masks, INTx disable, bus mastering, memory space.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use prereg_nvme::controller::InterruptKinds;
use prereg_nvme::spec::Status;
use prereg_vfio_user::client::Eventfd;

use crate::driver::{DATA, Driver, FLUSH, LINUX, command, transfer};
use crate::fixture::{Fixture, pins, settings, until};
use crate::interrupts::unmask;
use crate::staged::StagedDisk;

const INTX: u32 = 0;
const MSI: u32 = 1;
const MSIX: u32 = 2;
const CONFIG: u32 = 7;
const TABLE: u64 = 0x2000;
const PENDING: u64 = 0x3000;
const LONG: Duration = Duration::from_secs(60);

fn connect_eventfds(driver: &mut Driver, kind: u32, vector: u32) -> Eventfd {
    let eventfd = Eventfd::new().unwrap();
    driver.client.set_eventfds(kind, vector, &[eventfd.as_fd()]).unwrap();
    eventfd
}

fn capability(driver: &mut Driver, id: u8) -> u64 {
    let mut at = [0x34];
    driver.client.region_read(CONFIG, 0x34, &mut at).unwrap();
    while at[0] != 0 {
        let mut header = [0; 2];
        driver.client.region_read(CONFIG, u64::from(at[0]), &mut header).unwrap();
        if header[0] == id {
            break;
        }
        at = [header[1]];
    }
    assert_ne!(at[0], 0, "no capability {id:#x}");
    u64::from(at[0])
}

/// Completes a command on queue 1, so that its interrupt is due.
fn complete(driver: &mut Driver) {
    driver.put(1, FLUSH);
    driver.ring(1);
    until("it is done", || driver.peek(1).is_some());
    assert_eq!(driver.take(1).status, Status::SUCCESS);
    // After a round trip of the I/O thread the earlier command's interrupt is handled.
    driver.put(1, FLUSH);
    driver.ring(1);
    driver.take(1);
}

/// The pending bit of vector 1.
fn pending(driver: &mut Driver) -> u64 {
    let mut bits = [0; 8];
    driver.client.region_read(0, PENDING, &mut bits).unwrap();
    u64::from_le_bytes(bits) & 2
}

fn until_pending(driver: &mut Driver, bits: u64) {
    until("it is pending", || pending(driver) == bits);
}

#[test]
fn msix_obeys_its_table_the_function_and_the_enable_bit() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    let told = connect_eventfds(&mut driver, MSIX, 1);
    driver.enable();
    driver.create_pair(1);
    let control = capability(&mut driver, 0x11) + 2;
    let set_control = |driver: &mut Driver, value: u16| {
        driver.client.region_write(CONFIG, control, &value.to_le_bytes()).unwrap();
    };
    let set_mask = |driver: &mut Driver, mask: u32| driver.write_u32(TABLE + 16 + 12, mask);
    set_control(&mut driver, 0x8000);
    set_mask(&mut driver, 0);
    complete(&mut driver);
    assert!(told.wait(LONG) >= 1, "enabled and unmasked");
    until("all are reported", || pending(&mut driver) & 2 == 0);
    assert!(told.take() <= 1);
    // The vector's mask.
    set_mask(&mut driver, 1);
    complete(&mut driver);
    until_pending(&mut driver, 2);
    assert_eq!(told.take(), 0);
    set_mask(&mut driver, 0);
    assert_eq!((told.wait(LONG), pending(&mut driver)), (1, 0));
    // The function mask, and MSI-X enable.
    for held in [0xc000, 0, 0x4000] {
        set_control(&mut driver, held);
        complete(&mut driver);
        until_pending(&mut driver, 2);
        assert_eq!(told.take(), 0, "{held:#x}");
        set_control(&mut driver, 0x8000);
        assert_eq!((told.wait(LONG), pending(&mut driver)), (1, 0), "{held:#x}");
    }
    // Without its eventfd for a while.
    driver.client.clear_irqs(MSIX).unwrap();
    complete(&mut driver);
    until_pending(&mut driver, 2);
    let told = connect_eventfds(&mut driver, MSIX, 1);
    assert_eq!((told.wait(LONG), pending(&mut driver)), (1, 0));
    // A reset clears pending interrupts and the interrupt mode.
    set_mask(&mut driver, 1);
    complete(&mut driver);
    until_pending(&mut driver, 2);
    driver.client.reset().unwrap();
    assert_eq!(pending(&mut driver), 0);
    assert_eq!(told.take(), 0);
}

#[test]
fn msi_obeys_its_masks() {
    let mut settings = settings();
    settings.interrupts.msix = false;
    let Some(fixture) = Fixture::new(settings) else { return };
    let mut driver = Driver::connect(&fixture);
    let told = connect_eventfds(&mut driver, MSI, 1);
    driver.enable();
    driver.create_pair(1);
    let msi = capability(&mut driver, 5);
    driver.client.region_write(CONFIG, msi + 2, &0x31u16.to_le_bytes()).unwrap();
    driver.client.region_write(CONFIG, msi + 16, &2u32.to_le_bytes()).unwrap();
    complete(&mut driver);
    let pending = |driver: &mut Driver| {
        let mut bits = [0; 4];
        driver.client.region_read(CONFIG, msi + 20, &mut bits).unwrap();
        u32::from_le_bytes(bits) & 2
    };
    until("it is pending", || pending(&mut driver) == 2);
    assert_eq!(told.take(), 0);
    driver.client.region_write(CONFIG, msi + 16, &0u32.to_le_bytes()).unwrap();
    assert_eq!((told.wait(LONG), pending(&mut driver)), (1, 0));
}

#[test]
fn the_pin_obeys_intx_disable_and_its_status_can_be_read() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    driver.enable();
    driver.create_pair_with(1, 0);
    let command = |driver: &mut Driver, value: u16| {
        driver.client.region_write(CONFIG, 4, &value.to_le_bytes()).unwrap();
    };
    let status = |driver: &mut Driver| {
        let mut status = [0; 2];
        driver.client.region_read(CONFIG, 6, &mut status).unwrap();
        status[0] >> 3 & 1
    };
    command(&mut driver, 0x406);
    let told = connect_eventfds(&mut driver, INTX, 0);
    driver.put(1, FLUSH);
    driver.ring(1);
    until("the pin is up", || status(&mut driver) == 1);
    assert_eq!(told.take(), 0, "disabled");
    command(&mut driver, 0x006);
    assert_eq!(told.wait(LONG), 1, "up all the while");
    driver.take(1);
    until("the pin is down", || status(&mut driver) == 0);
}

#[test]
fn a_device_that_may_not_master_the_bus_waits() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    let told = connect_eventfds(&mut driver, MSIX, 1);
    driver.enable();
    driver.create_pair(1);
    driver.client.region_write(CONFIG, 4, &[2, 0]).unwrap();
    driver.put(1, FLUSH);
    driver.ring(1);
    // Nothing must happen, so there is no event to wait for, only some time for the threads.
    for _ in 0..200 {
        driver.client.device_info().unwrap();
    }
    assert!(driver.peek(1).is_none() && told.take() == 0);
    driver.client.region_write(CONFIG, 4, &[6, 0]).unwrap();
    assert_eq!(driver.take(1).status, Status::SUCCESS);
    assert_eq!(told.wait(LONG), 1);
    // Disabled and reset, it is as at the beginning.
    driver.client.region_write(CONFIG, 4, &[2, 0]).unwrap();
    driver.put(1, FLUSH);
    driver.ring(1);
    driver.client.reset().unwrap();
    assert_eq!(driver.read_u32(0x1c), 0);
}

#[test]
fn a_device_that_may_not_master_the_bus_ends_what_it_began_and_shuts_down() {
    let disk = StagedDisk::new();
    let stage = disk.stage();
    let Some(fixture) = pins().and_then(|pins| Fixture::with(settings(), pins, vec![Arc::new(disk)])) else {
        return;
    };
    let mut driver = Driver::connect(&fixture);
    for is_reading in [false, true] {
        driver.client.region_write(CONFIG, 4, &[6, 0]).unwrap();
        driver.enable();
        driver.create_pair(1);
        if is_reading {
            stage.close();
            driver.put(1, transfer(2, 1, 0, 8, DATA, 0));
            driver.ring(1);
            until("the disk has it", || stage.waiting() == 1);
        }
        driver.client.region_write(CONFIG, 4, &[2, 0]).unwrap();
        stage.open();
        driver.write_u32(0x14, LINUX | 1 << 14);
        driver.await_status(0xc, 8);
        assert!(driver.peek(1).is_none(), "a completion is a write to memory");
        driver.disable();
        assert_eq!(driver.read_u32(0x1c), 0);
    }
    drop(driver);
    fixture.settle();
}

#[test]
fn a_mask_that_is_written_while_a_reset_ends_is_in_force_if_it_can_be_read() {
    let mut settings = settings();
    settings.interrupts = InterruptKinds { intx: true, msi: false, msix: false };
    let Some(fixture) = Fixture::new(settings) else { return };
    let mut driver = Driver::connect(&fixture);
    let told = connect_eventfds(&mut driver, INTX, 0);
    for round in 0..4000 {
        driver.enable();
        driver.client.region_post(0, 0x14, &(LINUX & !1).to_le_bytes()).unwrap();
        // At another point of the reset each time.
        for _ in 0..round % 160 {
            driver.client.region_post(0, 0x10, &[0; 4]).unwrap();
        }
        driver.client.region_post(0, 0x0c, &[1, 0, 0, 0]).unwrap();
        driver.disable();
        if driver.read_u32(0x0c) == 0 {
            driver.enable();
            driver.put(0, command(0x0a, 0, &[(10, 7)]));
            driver.ring(0);
            // Before the head is written, which deasserts INTx again and may come first.
            assert_eq!(told.wait(LONG), 1, "round {round}: the mask reads 0");
            driver.take(0);
            driver.disable();
        }
        driver.write_u32(0x10, 1);
        unmask(&mut driver);
        let _ = told.take();
    }
}

#[test]
fn a_device_without_memory_space_answers_nothing() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::connect(&fixture);
    let version = 0x0001_0400;
    assert_eq!(driver.read_u32(8), version);
    driver.client.region_write(CONFIG, 4, &[4, 0]).unwrap();
    assert_eq!(driver.read_u32(8), u32::MAX);
    driver.write_u32(0x24, 0x1f_001f);
    driver.client.region_write(CONFIG, 4, &[6, 0]).unwrap();
    assert_eq!((driver.read_u32(8), driver.read_u32(0x24)), (version, 0), "the write went nowhere");
    driver.client.region_write(CONFIG, 4, &[0, 0]).unwrap();
    assert_eq!(driver.read_u32(8), u32::MAX);
    driver.client.reset().unwrap();
    assert_eq!(driver.read_u32(8), version, "nothing was said since");
    // As SPDK does, which never enables memory space.
    driver.client.region_write(CONFIG, 4, &[4, 4]).unwrap();
    assert_eq!(driver.read_u32(8), version);
}
