//! I/O commands: their effects on disk and memory, and their statuses.

use prereg_nvme::disk::Operation;
use prereg_nvme::engine::counters::Kind;
use prereg_nvme::spec::Status;

use crate::world::{BLOCK, DISK, Guest, command, transfer, with_prp};

const WRITE: u8 = 1;
const READ: u8 = 2;
const COMPARE: u8 = 5;
const DATA: u64 = 0x20_0000;

fn pattern(bytes: u64, seed: u8) -> Vec<u8> {
    (0..bytes)
        .map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed).wrapping_add((at >> 8) as u8))
        .collect()
}

#[test]
fn what_is_written_is_read_back() {
    let mut guest = Guest::with_queues(1);
    let data = pattern(2 * BLOCK, 7);
    guest.machine.ram.put(DATA, &data);
    assert_eq!(guest.io(transfer(WRITE, 1, 10, 2, DATA, 0)), Status::SUCCESS);
    assert_eq!(guest.machine.disks.inner().images[0][10 * 512..12 * 512], data);
    assert_eq!(guest.io(transfer(READ, 1, 10, 2, DATA + 0x4000, 0)), Status::SUCCESS);
    assert_eq!(guest.machine.ram.get(DATA + 0x4000, 2 * BLOCK), data);
    assert_eq!(guest.io(transfer(COMPARE, 1, 10, 2, DATA, 0)), Status::SUCCESS);
    guest.machine.ram.put(DATA + 700, &[!data[700]]);
    assert_eq!(guest.io(transfer(COMPARE, 1, 10, 2, DATA, 0)), Status::COMPARE_FAILURE);
    assert_eq!(guest.machine.disks.inner().images[0][12 * 512], 0, "nothing behind it");
}

#[test]
fn namespaces_are_apart_and_have_blocks_of_their_own() {
    let mut guest = Guest::with_queues(1);
    guest.machine.ram.put(DATA, &pattern(4096, 1));
    assert_eq!(guest.io(transfer(WRITE, 3, 2, 1, DATA, 0)), Status::SUCCESS);
    assert_eq!(guest.machine.disks.inner().images[2][2 * 4096..3 * 4096], pattern(4096, 1));
    assert!(guest.machine.disks.inner().images[0].iter().all(|byte| *byte == 0));
}

#[test]
fn a_write_protected_namespace_can_be_read_only() {
    let mut guest = Guest::with_queues(1);
    assert_eq!(guest.io(transfer(WRITE, 2, 0, 1, DATA, 0)), Status::WRITE_PROTECTED);
    assert_eq!(guest.io(command(8, 2, &[])), Status::WRITE_PROTECTED);
    assert_eq!(guest.io(with_prp(command(9, 2, &[(11, 4)]), DATA, 0)), Status::WRITE_PROTECTED);
    assert_eq!(guest.io(transfer(READ, 2, 0, 1, DATA, 0)), Status::SUCCESS);
    assert_eq!(guest.io(command(0, 2, &[])), Status::SUCCESS);
}

#[test]
fn namespaces_and_ranges_are_checked() {
    let mut guest = Guest::with_queues(1);
    let blocks = DISK as u64 / BLOCK;
    for nsid in [0, 4, 0xffff_ffff] {
        assert_eq!(guest.io(transfer(READ, nsid, 0, 1, DATA, 0)), Status::INVALID_NAMESPACE);
    }
    assert_eq!(guest.io(transfer(READ, 1, blocks - 1, 1, DATA, 0)), Status::SUCCESS);
    for (lba, count) in [(blocks, 1), (blocks - 1, 2), (u64::MAX, 1), (u64::MAX, 0x1_0000), (1 << 63, 1)] {
        assert_eq!(
            guest.io(transfer(READ, 1, lba, count, DATA, 0)),
            Status::LBA_RANGE,
            "{lba:#x}+{count:#x}"
        );
    }
    // One block more than MDTS, which is 128 KiB here.
    assert_eq!(guest.io(transfer(READ, 1, 0, 257, DATA, DATA)), Status::INVALID_FIELD);
    assert_eq!(guest.io(command(0x7f, 1, &[])), Status::INVALID_OPCODE);
    let mut fused = transfer(COMPARE, 1, 0, 1, DATA, 0);
    fused[0] |= 1 << 8;
    assert_eq!(guest.io(fused), Status::INVALID_FIELD);
    let mut reserved = transfer(READ, 1, 0, 1, DATA, 0);
    reserved[0] |= 3 << 14;
    assert_eq!(guest.io(reserved), Status::INVALID_FIELD);
}

#[test]
fn a_flush_reaches_one_disk_or_all() {
    let mut guest = Guest::with_queues(1);
    assert_eq!(guest.io(command(0, 3, &[])), Status::SUCCESS);
    assert_eq!(guest.io(command(0, 0xffff_ffff, &[])), Status::SUCCESS);
    let flushed: Vec<_> = guest.machine.disks.inner().done.iter().map(|(nsid, _)| *nsid).collect();
    assert_eq!(flushed, [3, 1, 2, 3]);
    assert_eq!(guest.io(command(0, 0, &[])), Status::INVALID_NAMESPACE);
}

#[test]
fn forced_unit_access_is_asked_of_the_disk() {
    let mut guest = Guest::with_queues(1);
    let is_fua = |guest: &Guest| match guest.machine.disks.inner().done.last() {
        Some((_, Operation::Write { fua, .. } | Operation::WriteZeroes { fua, .. })) => *fua,
        other => panic!("{other:?}"),
    };
    guest.io(transfer(WRITE, 1, 0, 1, DATA, 0));
    assert!(!is_fua(&guest));
    let mut forced = transfer(WRITE, 1, 0, 1, DATA, 0);
    forced[12] |= 1 << 30;
    guest.io(forced);
    assert!(is_fua(&guest));
    assert_eq!(guest.admin(command(9, 0, &[(10, 6), (11, 0)])).status, Status::SUCCESS);
    guest.io(transfer(WRITE, 1, 0, 1, DATA, 0));
    assert!(is_fua(&guest), "without a write cache every write is");
    guest.io(command(8, 1, &[(12, 3)]));
    assert!(is_fua(&guest));
}

#[test]
fn zeroes_are_written_without_data_and_beyond_mdts() {
    let mut guest = Guest::with_queues(1);
    guest.machine.disks.inner().images[0].fill(0xee);
    assert_eq!(guest.io(command(8, 1, &[(10, 4), (12, 999 | 1 << 25)])), Status::SUCCESS);
    let inner = guest.machine.disks.inner();
    assert_eq!(
        inner.done.last(),
        Some(&(1, Operation::WriteZeroes { offset: 2048, bytes: 512_000, deallocate: true, fua: false }))
    );
    assert_eq!((inner.images[0][2047], inner.images[0][2048], inner.images[0][514_048]), (0xee, 0, 0xee));
}

#[test]
fn ranges_are_deallocated() {
    let mut guest = Guest::with_queues(1);
    let mut ranges = Vec::new();
    for (lba, count) in [(8u64, 4u32), (100, 0), (8191, 1)] {
        ranges.extend(0u32.to_le_bytes());
        ranges.extend(count.to_le_bytes());
        ranges.extend(lba.to_le_bytes());
    }
    guest.machine.ram.put(DATA, &ranges);
    assert_eq!(guest.io(with_prp(command(9, 1, &[(10, 2), (11, 4)]), DATA, 0)), Status::SUCCESS);
    assert_eq!(
        guest.machine.disks.inner().done.pop(),
        Some((1, Operation::Discard { ranges: vec![(4096, 2048), (8191 * 512, 512)] })),
        "a range of no blocks is none"
    );
    assert_eq!(guest.io(with_prp(command(9, 1, &[(10, 2), (11, 2)]), DATA, 0)), Status::SUCCESS, "a hint");
    assert_eq!(guest.machine.disks.inner().done.pop(), None);
    guest.machine.ram.put(DATA + 2 * 16 + 4, &2u32.to_le_bytes());
    assert_eq!(guest.io(with_prp(command(9, 1, &[(10, 2), (11, 4)]), DATA, 0)), Status::LBA_RANGE);
    assert_eq!(guest.machine.disks.inner().done.pop(), None, "all or nothing");
    assert_eq!(guest.io(with_prp(command(9, 1, &[(10, 2), (11, 4)]), 0x7fff_0000, 0)), Status::DATA_TRANSFER);
}

#[test]
fn a_disk_that_breaks_ends_its_commands() {
    let mut guest = Guest::with_queues(1);
    guest.machine.disks.inner().stuck = true;
    let cids = [0, 1, 2].map(|lba| guest.put(1, transfer(WRITE, 1, lba, 1, DATA, 0)));
    guest.ring(1);
    guest.machine.run();
    guest.machine.disks.inner().broken = true;
    guest.machine.run();
    for cid in cids {
        let end = guest.take(1).unwrap();
        assert_eq!((end.cid, end.status), (cid, Status::INTERNAL));
    }
    guest.machine.disks.inner().stuck = false;
    assert_eq!(guest.machine.poll_group.in_flight(), 0);
    assert_eq!(guest.io(command(0, 1, &[])), Status::SUCCESS);
}

#[test]
fn what_was_done_is_counted() {
    let counters = std::sync::Arc::new(prereg_nvme::engine::counters::Counters::default());
    let mut guest = Guest::with_queues(0);
    let machine = &mut guest.machine;
    machine.poll_group = prereg_nvme::engine::poll_group::PollGroup::new(
        machine.shared.clone(),
        counters.clone(),
        machine.ram.clone(),
        machine.disks.clone(),
    );
    guest.create_pair(1);
    guest.io(transfer(WRITE, 1, 0, 3, DATA, 0));
    guest.io(transfer(READ, 1, 0, 1, DATA, 0));
    guest.io(transfer(READ, 1, 1 << 40, 1, DATA, 0));
    let totals = counters.totals();
    assert_eq!((totals.of(Kind::Write).commands, totals.of(Kind::Write).bytes), (1, 1536));
    assert_eq!((totals.of(Kind::Read).commands, totals.of(Kind::Read).bytes), (1, 512));
    assert_eq!(totals.of(Kind::Read).latency.iter().sum::<u64>(), 1);
    assert_eq!(totals.failures.len(), 1);
    assert_eq!((totals.failures[0].0.code(), totals.failures[0].1), (0x80, 1));
}
