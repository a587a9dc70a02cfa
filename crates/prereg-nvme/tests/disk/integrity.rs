//! Random requests against a model of the disk that is an array of bytes.

use std::path::Path;
use std::sync::Arc;

use prereg_nvme::disk::{
    Direct, Disk, DiskFault, DiskOptions, DiskQueue, FileDisk, MemoryDisk, Operation, Segment,
};
use proptest::prelude::*;

use super::guest::{BYTES, Guest, REMOTE, answers, queue, start};

/// Blocks of the disk, and of one request at most.
const BLOCKS: u64 = 256;
const MOST: u64 = 24;
/// Requests in flight at most; each has its own part of guest memory.
const DEPTH: u64 = 8;
const AREA: u64 = 128 << 10;

#[derive(Clone, Copy, Debug)]
enum Layout {
    /// One segment.
    Whole,
    /// Page by page, the last first in memory.
    Backwards,
    /// Starts within a page, as a PRP list may.
    MidPage,
    /// At an address that direct I/O does not accept.
    Odd,
    /// In memory that only the client can reach.
    Remote,
    /// Half of each.
    Mixed,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write { fua: bool },
    Zeroes { deallocate: bool, fua: bool },
    Discard,
    Compare { spoiled: bool },
    Flush,
}

#[derive(Clone, Copy, Debug)]
struct Step {
    kind: Kind,
    first: u64,
    blocks: u64,
    layout: Layout,
    seed: u8,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        4 => Just(Kind::Read),
        4 => any::<bool>().prop_map(|fua| Kind::Write { fua }),
        1 => any::<(bool, bool)>().prop_map(|(deallocate, fua)| Kind::Zeroes { deallocate, fua }),
        1 => Just(Kind::Discard),
        1 => any::<bool>().prop_map(|spoiled| Kind::Compare { spoiled }),
        1 => Just(Kind::Flush),
    ];
    let layout = prop_oneof![
        3 => Just(Layout::Whole),
        2 => Just(Layout::Backwards),
        2 => Just(Layout::MidPage),
        1 => Just(Layout::Odd),
        1 => Just(Layout::Remote),
        1 => Just(Layout::Mixed),
    ];
    let step =
        (kind, 0..BLOCKS, 1..=MOST, layout, any::<u8>()).prop_map(|(kind, first, blocks, layout, seed)| {
            Step { kind, first, blocks: blocks.min(BLOCKS - first), layout, seed }
        });
    proptest::collection::vec(step, 1..60)
}

/// The guest memory of one request's data, in order.
fn places(layout: Layout, area: u64, bytes: u64) -> Vec<(u64, u64)> {
    const PAGE: u64 = 4096;
    let pages = |from: u64| {
        let mut parts = Vec::new();
        let (mut at, mut left) = (from, bytes);
        while left > 0 {
            let part = (PAGE - at % PAGE).min(left);
            parts.push((at, part));
            (at, left) = (at + part, left - part);
        }
        parts
    };
    match layout {
        Layout::Whole => vec![(area, bytes)],
        Layout::Backwards => {
            let count = bytes.div_ceil(PAGE);
            pages(area)
                .iter()
                .map(|(at, part)| (area + (count - 1 - (at - area) / PAGE) * PAGE, *part))
                .collect()
        }
        Layout::MidPage => pages(area + 512),
        Layout::Odd => vec![(area + 4, bytes)],
        Layout::Remote => vec![(REMOTE + area, bytes)],
        Layout::Mixed if bytes >= 1024 => vec![(area, 512), (REMOTE + area + 7, bytes - 512)],
        Layout::Mixed => vec![(REMOTE + area, bytes)],
    }
}

fn pattern(seed: u8, bytes: u64) -> Vec<u8> {
    (0..bytes).map(|at| seed ^ (at as u8) ^ ((at >> 8) as u8).wrapping_mul(31)).collect()
}

/// The expected data of a read, and their address.
type Expected = (Vec<(u64, u64)>, Vec<u8>);

struct Waiting {
    tag: u64,
    range: (u64, u64),
    changes: bool,
    expected: Option<Expected>,
    result: Result<(), DiskFault>,
}

/// Runs the steps; those that share blocks run one after the other.
fn run(guest: &Guest, disk: &dyn Disk, model: &mut [u8], steps: &[Step]) {
    let block = 1u64 << disk.block_shift();
    let mut queue = queue(disk);
    let mut waiting: Vec<Waiting> = Vec::new();
    for (tag, step) in steps.iter().enumerate() {
        let tag = tag as u64;
        let (offset, bytes) = (step.first * block, step.blocks * block);
        let range = (offset, offset + bytes);
        let changes = !matches!(step.kind, Kind::Read | Kind::Compare { .. } | Kind::Flush);
        let meets = |other: &Waiting| {
            (changes || other.changes) && other.range.0 < range.1 && range.0 < other.range.1
                || other.tag % DEPTH == tag % DEPTH
        };
        while waiting.iter().any(meets) {
            settle(guest, &mut *queue, &mut waiting);
        }
        let parts = places(step.layout, tag % DEPTH * AREA, bytes);
        let now = &mut model[offset as usize..(offset + bytes) as usize];
        let mut expected = None;
        let mut result = Ok(());
        let mut data: Vec<Segment> = guest.segments(&parts);
        let operation = match step.kind {
            Kind::Read => {
                scatter(guest, &parts, &vec![!step.seed; bytes as usize]);
                expected = Some((parts, now.to_vec()));
                Operation::Read { offset }
            }
            Kind::Write { fua } => {
                let new = pattern(step.seed, bytes);
                scatter(guest, &parts, &new);
                now.copy_from_slice(&new);
                Operation::Write { offset, fua }
            }
            Kind::Zeroes { deallocate, fua } => {
                data.clear();
                now.fill(0);
                Operation::WriteZeroes { offset, bytes, deallocate, fua }
            }
            Kind::Discard => {
                data.clear();
                if disk.discard_zeroes() {
                    now.fill(0);
                }
                let half = step.blocks / 2 * block;
                Operation::Discard { ranges: vec![(offset, half), (offset + half, bytes - half)] }
            }
            Kind::Compare { spoiled } => {
                let mut same = now.to_vec();
                if spoiled {
                    same[usize::from(step.seed) * 2 % bytes as usize] ^= 1;
                    result = Err(DiskFault::Mismatch);
                }
                scatter(guest, &parts, &same);
                Operation::Compare { offset }
            }
            Kind::Flush => {
                data.clear();
                Operation::Flush
            }
        };
        start(&mut *queue, tag, operation, data);
        waiting.push(Waiting { tag, range, changes, expected, result });
    }
    while !waiting.is_empty() {
        settle(guest, &mut *queue, &mut waiting);
    }
    assert_eq!(queue.in_flight(), 0);
}

fn scatter(guest: &Guest, parts: &[(u64, u64)], bytes: &[u8]) {
    let mut rest = bytes;
    for (iova, len) in parts {
        let (part, behind) = rest.split_at(*len as usize);
        guest.put(*iova, part);
        rest = behind;
    }
}

fn settle(guest: &Guest, queue: &mut dyn DiskQueue, waiting: &mut Vec<Waiting>) {
    for done in answers(queue) {
        let at = waiting.iter().position(|waiting| waiting.tag == done.tag).expect("an answer to a request");
        let request = waiting.swap_remove(at);
        assert_eq!(done.result, request.result, "request {}", done.tag);
        if let Some((parts, expected)) = request.expected {
            let found: Vec<u8> =
                parts.iter().flat_map(|(iova, len)| guest.get(*iova, *len as usize)).collect();
            assert!(found == expected, "request {} read something else", done.tag);
        }
    }
}

fn file_of(path: &Path, bytes: u64) {
    std::fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

fn check_file(folder: &Path, direct: Direct, fixed: bool, block_shift: u8, slot: u64, steps: &[Step]) {
    let Some(guest) = Guest::of(BYTES, slot) else { return };
    let path = folder.join("disk.img");
    file_of(&path, BLOCKS << block_shift);
    let mut model = vec![0; (BLOCKS << block_shift) as usize];
    let options = DiskOptions {
        direct,
        block_shift: Some(block_shift),
        buffers: fixed.then(|| Arc::clone(&guest.pins)),
        ..DiskOptions::default()
    };
    let disk = FileDisk::open(&path, options).unwrap();
    run(&guest, &disk, &mut model, steps);
    let counters = disk.counters();
    if fixed && disk.fixed().is_ok() {
        assert_eq!(counters.plain, 0, "{counters:?}");
    }
    assert_eq!((counters.faults, counters.retried), (0, 0), "{counters:?}");
    drop(disk);
    assert!(std::fs::read(&path).unwrap() == model, "the file is what the model is");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_file_is_what_its_model_is(steps in steps(), cached: bool, fixed: bool, large: bool, pieces: bool) {
        let folder = tempfile::tempdir().unwrap();
        let direct = if cached { Direct::Off } else { Direct::Auto };
        // Small slots: one hold has several segments, and one request several transfers.
        let slot = if pieces { 12 << 10 } else { BYTES };
        check_file(folder.path(), direct, fixed, if large { 12 } else { 9 }, slot, &steps);
    }

    #[test]
    fn a_file_in_memory_is_what_its_model_is(steps in steps(), fixed: bool) {
        // No ZERO_RANGE there, so zeros are written.
        let Ok(folder) = tempfile::tempdir_in("/dev/shm") else { return Ok(()) };
        check_file(folder.path(), Direct::Auto, fixed, 9, 64 << 10, &steps);
    }

    #[test]
    fn a_disk_in_memory_is_what_its_model_is(steps in steps(), large: bool) {
        let Some(guest) = Guest::new() else { return Ok(()) };
        let shift = if large { 12 } else { 9 };
        let disk = MemoryDisk::new(BLOCKS << shift, shift).unwrap();
        let mut model = vec![0; (BLOCKS << shift) as usize];
        run(&guest, &disk, &mut model, &steps);
        let whole = Step { kind: Kind::Read, first: 0, blocks: MOST, layout: Layout::Whole, seed: 0 };
        let all: Vec<_> = (0..BLOCKS / MOST).map(|at| Step { first: at * MOST, ..whole }).collect();
        run(&guest, &disk, &mut model, &all);
    }
}

#[test]
fn four_queues_at_once_keep_their_stripes() {
    const QUEUES: u64 = 4;
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    file_of(&path, QUEUES << 20);
    let options = DiskOptions { buffers: Some(Arc::clone(&guest.pins)), ..DiskOptions::default() };
    let disk = FileDisk::open(&path, options).unwrap();
    std::thread::scope(|scope| {
        for stripe in 0..QUEUES {
            let (guest, disk) = (&guest, &disk);
            scope.spawn(move || {
                let mut queue = queue(disk);
                let memory = stripe << 19;
                guest.put(memory, &pattern(stripe as u8, 512 << 10));
                // Blocks of all queues are adjacent in every page of the file.
                for block in 0..1024u64 {
                    if queue.in_flight() >= 64 {
                        assert!(answers(&mut *queue).iter().all(|done| done.result.is_ok()));
                    }
                    let offset = (block * QUEUES + stripe) * 512;
                    let fua = block % 100 == 99;
                    let data = guest.segments(&[(memory + block * 512, 512)]);
                    start(&mut *queue, block, Operation::Write { offset, fua }, data);
                    if block % 64 == 63 {
                        start(&mut *queue, 9999, Operation::Flush, Vec::new());
                    }
                }
                while queue.in_flight() > 0 {
                    assert!(answers(&mut *queue).iter().all(|done| done.result.is_ok()));
                }
            });
        }
    });
    let image = std::fs::read(&path).unwrap();
    for stripe in 0..QUEUES {
        let mine: Vec<u8> =
            image.chunks(512).skip(stripe as usize).step_by(4).flatten().copied().take(512 << 10).collect();
        assert!(mine == pattern(stripe as u8, 512 << 10), "stripe {stripe}");
    }
    let counters = disk.counters();
    assert_eq!((counters.writes, counters.bytes_written), (4096, 4096 * 512));
    assert_eq!((counters.flushes, counters.faults), (64, 0));
}
