//! Flushes reach the file system: seen in the file's extents.
//!
//! Data written through the page cache have no blocks on the disk until writeback ("delayed allocation"), which the file's
//! extents show. Without `fdatasync` they stay so.

use std::fs::File;
use std::os::fd::AsRawFd;

use prereg_nvme::disk::{Direct, Disk, DiskOptions, FileDisk, Operation};

use super::guest::{Guest, perform, queue, write};

/// `struct fiemap` with one `struct fiemap_extent`, from `include/uapi/linux/fiemap.h`.
#[repr(C)]
#[derive(Default)]
struct Extents {
    start: u64,
    length: u64,
    flags: u32,
    mapped: u32,
    count: u32,
    reserved: u32,
    logical: u64,
    physical: u64,
    bytes: u64,
    reserved64: [u64; 2],
    extent_flags: u32,
    reserved32: [u32; 3],
}

/// Whether the block at `offset` is delayed; `None` where the file system does not say.
fn unplaced(file: &File, offset: u64) -> Option<bool> {
    const FS_IOC_FIEMAP: libc::c_ulong = 0xc020_660b;
    const DELAYED: u32 = 0x4;
    let mut extents = Extents { start: offset, length: 4096, count: 1, ..Extents::default() };
    // SAFETY: the structure has room for the one extent that it says it has.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP, &raw mut extents) };
    (result == 0).then_some(extents.mapped == 1 && extents.extent_flags & DELAYED != 0)
}

#[test]
fn a_flush_makes_earlier_writes_of_every_queue_durable_and_no_write_does_it_by_itself() {
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    let file = File::create(&path).unwrap();
    file.set_len(16 << 20).unwrap();
    let disk = FileDisk::open(&path, DiskOptions { direct: Direct::Off, ..DiskOptions::default() }).unwrap();
    let (mut first, mut second) = (queue(&disk), queue(&disk));
    guest.put(0, &[3; 4096]);
    let data = || guest.segments(&[(0, 4096)]);
    perform(&mut *first, write(0), data()).unwrap();
    match unplaced(&file, 0) {
        Some(true) => {}
        // The kernel's writeback may have run, and then the test shows nothing.
        Some(false) => return eprintln!("skipped: this file system places data at once"),
        None => return eprintln!("skipped: this file system does not tell where data are"),
    }
    assert_eq!(disk.counters().syncs, 0);
    perform(&mut *second, Operation::Flush, Vec::new()).unwrap();
    assert_eq!(unplaced(&file, 0), Some(false), "flushed from another queue");
    assert_eq!(disk.counters().syncs, 1);
    let durable = Operation::Write { offset: 8 << 20, fua: true };
    perform(&mut *first, durable, data()).unwrap();
    assert_eq!(unplaced(&file, 8 << 20), Some(false), "a write that says so is durable by itself");
    assert_eq!(disk.counters().syncs, 1);
    let zeroes = |fua| Operation::WriteZeroes { offset: 4 << 20, bytes: 4096, deallocate: false, fua };
    perform(&mut *first, zeroes(false), Vec::new()).unwrap();
    assert_eq!(disk.counters().syncs, 1);
    perform(&mut *first, zeroes(true), Vec::new()).unwrap();
    assert_eq!(disk.counters().syncs, 2);
}
