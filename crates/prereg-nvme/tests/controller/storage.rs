//! Data: writes reach the file, on every path.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::sync::Arc;

use prereg_nvme::disk::{Disk, DiskOptions, FileDisk, MemoryDisk};
use prereg_nvme::spec::Status;

use crate::driver::{DATA, Driver, FLUSH, LIST, command, transfer, with_prp};
use crate::fixture::{Fixture, pins, settings};

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const IMAGE: u64 = 16 << 20;

/// A server with an image file of `IMAGE` bytes of 0x55.
fn bed_with_file(read_only: bool) -> Option<(Fixture, tempfile::NamedTempFile)> {
    let pins = pins()?;
    let image = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(image.path(), vec![0x55; IMAGE as usize]).unwrap();
    let options = DiskOptions { read_only, buffers: Some(Arc::clone(&pins)), ..DiskOptions::default() };
    let disk: Arc<dyn Disk> = Arc::new(FileDisk::open(image.path(), options).unwrap());
    let mut settings = settings();
    settings.transfer_shift = 8;
    Some((Fixture::with(settings, pins, vec![disk])?, image))
}

fn put_list(driver: &Driver, pages: &[u64]) -> u64 {
    for (at, page) in (0..).zip(pages) {
        driver.put_u64(LIST + at * 8, *page);
    }
    LIST
}

#[test]
fn an_image_file_has_what_the_guest_wrote_and_flushed() {
    let Some((fixture, image)) = bed_with_file(false) else { return };
    let mut driver = Driver::ready(&fixture, 2);
    let mut expected = vec![0x55; IMAGE as usize];
    // Pages in any order, a first page with an offset, lengths from one block to the largest.
    for (step, (blocks, offset)) in
        [(1u32, 0u64), (8, 0), (8, 0x200), (64, 0x800), (512, 0), (2048, 0xe00), (3, 0x600)]
            .into_iter()
            .enumerate()
    {
        let bytes = u64::from(blocks) * 512;
        let first = DATA + offset;
        let begun = bytes.min(0x1000 - offset);
        let pages: Vec<u64> =
            (0..(bytes - begun).div_ceil(0x1000)).rev().map(|page| DATA + (page + 1) * 0x1000).collect();
        let mut data = driver.fill(first, begun, step as u64 + 1);
        for page in &pages {
            let more = (bytes - data.len() as u64).min(0x1000);
            data.extend(driver.fill(*page, more, page ^ step as u64));
        }
        let second = if pages.len() == 1 { pages[0] } else { put_list(&driver, &pages) };
        let lba = 4096 * step as u64 + 3;
        assert_eq!(driver.io(transfer(WRITE, 1, lba, blocks, first, second)), Status::SUCCESS);
        expected[lba as usize * 512..][..data.len()].copy_from_slice(&data);
        for page in [&first].into_iter().chain(&pages) {
            driver.ram.write(*page, &vec![0; (0x1000 - page % 0x1000) as usize]).unwrap();
        }
        let read = driver.run(2, transfer(READ, 1, lba, blocks, first, second));
        assert_eq!(read.status, Status::SUCCESS);
        let mut back = driver.get(first, begun);
        for page in &pages {
            back.extend(driver.get(*page, (bytes - back.len() as u64).min(0x1000)));
        }
        assert!(back == data, "{blocks} blocks at offset {offset:#x}");
        assert_eq!(driver.io(transfer(COMPARE, 1, lba, blocks, first, second)), Status::SUCCESS);
        driver.ram.write(first, &[!data[0]]).unwrap();
        assert_eq!(driver.io(transfer(COMPARE, 1, lba, blocks, first, second)), Status::COMPARE_FAILURE);
    }
    // Zeroes, deallocation, a write with FUA.
    assert_eq!(driver.io(command(8, 1, &[(10, 4100), (12, 99)])), Status::SUCCESS);
    expected[4100 * 512..4200 * 512].fill(0);
    driver.ram.write(DATA, &[0, 0, 0, 0, 16, 0, 0, 0, 0x40, 0x20, 0, 0, 0, 0, 0, 0]).unwrap();
    assert_eq!(driver.io(with_prp(command(9, 1, &[(11, 4)]), DATA, 0)), Status::SUCCESS);
    let data = driver.fill(DATA, 4096, 99);
    let mut forced = transfer(WRITE, 1, 20_000, 8, DATA, 0);
    forced[12] |= 1 << 30;
    assert_eq!(driver.io(forced), Status::SUCCESS);
    expected[20_000 * 512..][..4096].copy_from_slice(&data);
    assert_eq!(driver.io(FLUSH), Status::SUCCESS);
    let mut found = std::fs::read(image.path()).unwrap();
    // The data of deallocated blocks depends on the disk.
    for bytes in [&mut found, &mut expected] {
        bytes[0x2040 * 512..0x2050 * 512].fill(0);
    }
    assert!(found == expected);
    drop(driver);
    fixture.settle();
}

#[test]
fn a_read_only_image_is_never_written() {
    let Some((fixture, image)) = bed_with_file(true) else { return };
    let mut driver = Driver::ready(&fixture, 1);
    let identify = with_prp(command(6, 1, &[]), DATA, 0);
    assert_eq!(driver.admin(identify).status, Status::SUCCESS);
    assert_eq!(driver.get(DATA + 99, 1), [1]);
    assert_eq!(driver.io(transfer(WRITE, 1, 0, 1, DATA, 0)), Status::WRITE_PROTECTED);
    assert_eq!(driver.io(transfer(READ, 1, 9, 8, DATA, 0)), Status::SUCCESS);
    assert_eq!(driver.get(DATA, 4096), [0x55; 4096]);
    assert_eq!(driver.io(FLUSH), Status::SUCCESS);
    let mut second = Driver::ready(&fixture, 1);
    assert_eq!(
        second.io(transfer(READ, 1, 9, 8, DATA, 0)),
        Status::SUCCESS,
        "readers do not disturb each other"
    );
    drop((driver, second));
    fixture.settle();
    assert!(std::fs::read(image.path()).unwrap().iter().all(|byte| *byte == 0x55));
}

#[test]
fn scatter_gather_lists_reach_the_disk() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::ready(&fixture, 1);
    let data = [driver.fill(DATA + 4, 300, 1), driver.fill(DATA + 0x3000, 1748, 2)].concat();
    let descriptor = |driver: &Driver, at: u64, address: u64, bytes: u32, kind: u32| {
        driver.put_u64(at, address);
        driver.put_u64(at + 8, u64::from(bytes) | u64::from(kind) << 56);
    };
    descriptor(&driver, LIST, DATA + 4, 300, 0);
    descriptor(&driver, LIST + 16, LIST + 0x1000, 16, 0x30);
    descriptor(&driver, LIST + 0x1000, DATA + 0x3000, 1748, 0);
    let mut write = transfer(WRITE, 1, 5, 4, LIST, 32 | 0x20 << 56);
    write[0] |= 1 << 14;
    assert_eq!(driver.io(write), Status::SUCCESS);
    assert_eq!(driver.io(transfer(READ, 1, 5, 4, DATA + 0x8000, 0)), Status::SUCCESS);
    assert_eq!(driver.get(DATA + 0x8000, 2048), data);
    // A bit bucket: the first and the last block of four.
    descriptor(&driver, LIST, DATA + 0x9000, 512, 0);
    descriptor(&driver, LIST + 16, 0, 1024, 0x10);
    descriptor(&driver, LIST + 32, DATA + 0xa000, 512, 0);
    let mut read = transfer(READ, 1, 5, 4, LIST, 48 | 0x30 << 56);
    read[0] |= 1 << 14;
    assert_eq!(driver.io(read), Status::SUCCESS);
    assert_eq!(
        [driver.get(DATA + 0x9000, 512), driver.get(DATA + 0xa000, 512)].concat(),
        [&data[..512], &data[1536..]].concat()
    );
}

#[test]
fn several_queues_work_at_once() {
    let Some(fixture) = Fixture::new(settings()) else { return };
    let mut driver = Driver::ready(&fixture, 4);
    let page = |queue: u64, slot: u64| DATA + (queue * 16 + slot) * 0x1000;
    let lba = |queue: u64, slot: u64, round: u64| (round * 64 + queue * 16 + slot) * 8;
    for round in 0..20 {
        let mut sent = Vec::new();
        for queue in 1..=4 {
            for slot in 0..16 {
                let data = driver.fill(page(queue - 1, slot), 4096, round << 16 | queue << 8 | slot);
                let write = transfer(WRITE, 1, lba(queue - 1, slot, round), 8, page(queue - 1, slot), 0);
                driver.put(queue as usize, write);
                sent.push((queue - 1, slot, data));
            }
            driver.ring(queue as usize);
        }
        for queue in 1..=4 {
            for _ in 0..16 {
                assert_eq!(driver.take(queue).status, Status::SUCCESS);
            }
        }
        for (queue, slot, data) in sent.iter().step_by(5) {
            // Read through another queue than written.
            let at = 1 + (*queue as usize + 1) % 4;
            let read = transfer(READ, 1, lba(*queue, *slot, round), 8, DATA + 0x10_0000, 0);
            assert_eq!(driver.run(at, read).status, Status::SUCCESS);
            assert!(driver.get(DATA + 0x10_0000, 4096) == *data);
        }
    }
    let state = fixture.model.snapshot();
    assert_eq!(state.len(), 1);
    assert_eq!(state[0].io_queues, 4);
    let facts: std::collections::BTreeMap<_, _> = state[0].metrics().into_iter().collect();
    assert_eq!(facts["write_commands"], 20 * 64);
    assert_eq!(facts["write_bytes"], 20 * 64 * 4096);
    let latencies: u64 =
        facts.iter().filter(|(name, _)| name.starts_with("write_latency")).map(|(_, count)| count).sum();
    assert_eq!(latencies, 20 * 64);
}

#[test]
fn namespaces_of_several_disks_work_at_once() {
    let Some(pins) = pins() else { return };
    let disks: Vec<Arc<dyn Disk>> = vec![
        Arc::new(MemoryDisk::new(1 << 20, 9).unwrap()),
        Arc::new(MemoryDisk::new(2 << 20, 12).unwrap()),
        Arc::new(MemoryDisk::new(4 << 20, 9).unwrap()),
    ];
    let Some(fixture) = Fixture::with(settings(), pins, disks) else { return };
    let mut driver = Driver::ready(&fixture, 2);
    for round in 0..30u64 {
        for queue in 1..=2usize {
            for nsid in 1..=3u32 {
                let at = DATA + (queue as u64 * 8 + u64::from(nsid)) * 0x1000;
                driver.fill(at, 4096, round << 8 | u64::from(nsid) << 4 | queue as u64);
                let (lba, count) = if nsid == 2 {
                    (round * 2 + queue as u64 - 1, 1)
                } else {
                    ((round * 2 + queue as u64 - 1) * 8, 8)
                };
                driver.put(queue, transfer(WRITE, nsid, lba, count, at, 0));
            }
            driver.put(queue, command(0, 0xffff_ffff, &[]));
            driver.ring(queue);
        }
        for queue in 1..=2 {
            for _ in 0..4 {
                assert_eq!(driver.take(queue).status, Status::SUCCESS);
            }
        }
    }
    for nsid in 1..=3u32 {
        let (lba, count) = if nsid == 2 { (59, 1) } else { (59 * 8, 8) };
        assert_eq!(driver.io(transfer(READ, nsid, lba, count, DATA, 0)), Status::SUCCESS);
        let there = driver.get(DATA, 4096);
        let expected = driver.fill(DATA, 4096, 29 << 8 | u64::from(nsid) << 4 | 2);
        assert!(there == expected, "namespace {nsid}");
    }
}
