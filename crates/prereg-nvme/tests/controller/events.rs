//! Events of a controller: its states, and requests that the disk cannot perform.

use std::sync::Arc;

use prereg::Errno;
use prereg_nvme::controller::NvmeEvent;
use prereg_nvme::disk::DiskFault;
use prereg_nvme::engine::counters::Kind;
use prereg_nvme::spec::Status;

use crate::driver::{DATA, Driver, FLUSH, transfer};
use crate::fixture::{Fixture, pins, settings, until};
use crate::staged::StagedDisk;

const WRITE: u8 = 1;
const READ: u8 = 2;

#[test]
fn states_of_the_controller_and_failures_of_the_disk_are_reported_with_the_status() {
    let disk = Arc::new(StagedDisk::new());
    let stage = disk.stage();
    let Some(fixture) = pins().and_then(|pins| Fixture::with(settings(), pins, vec![disk])) else { return };
    let mut driver = Driver::ready(&fixture, 1);
    stage.fail(DiskFault::NoSpace);
    assert_eq!(driver.io(transfer(WRITE, 1, 7, 1, DATA, 0)), Status::CAPACITY);
    stage.fail(DiskFault::Io(Errno::EIO));
    assert_eq!(driver.io(transfer(READ, 1, 9, 1, DATA, 0)), Status::READ_ERROR);
    // What the guest asked for is no failure of the disk.
    stage.fail(DiskFault::Mismatch);
    assert_eq!(driver.io(FLUSH), Status::COMPARE_FAILURE);
    driver.disable();
    drop(driver);
    fixture.settle();
    let failed = |command, lba, fault, status| NvmeEvent::DiskFailed { nsid: 1, command, lba, fault, status };
    until("all events were reported", || fixture.events.all().len() >= 4);
    assert_eq!(
        fixture.events.all()[..4],
        [
            NvmeEvent::Enabled,
            failed(Kind::Write, 7, DiskFault::NoSpace, Status::CAPACITY),
            failed(Kind::Read, 9, DiskFault::Io(Errno::EIO), Status::READ_ERROR),
            NvmeEvent::Reset,
        ]
    );
}

#[test]
fn a_panic_of_an_io_thread_is_reported_as_a_failed_controller() {
    let disk = Arc::new(StagedDisk::new());
    let stage = disk.stage();
    let Some(fixture) = pins().and_then(|pins| Fixture::with(settings(), pins, vec![disk])) else { return };
    let mut driver = Driver::ready(&fixture, 1);
    stage.panic();
    let write = transfer(WRITE, 1, 0, 1, DATA, 0);
    driver.put(1, write);
    driver.ring(1);
    let fatal = NvmeEvent::Fatal { cause: "an I/O thread panicked" };
    until("it is reported", || fixture.events.all().contains(&fatal));
}
