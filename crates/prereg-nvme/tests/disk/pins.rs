//! Pins of I/O: none where memory is registered, and none left afterwards.
//!
//! The kernel counts pins for a whole process, so each of these tests runs in a process of its own.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;

use prereg_linux::KernelCount;
use prereg_nvme::disk::{Disk, DiskOptions, FileDisk, Operation};

use super::guest::{BYTES, Guest, answers, perform, queue, start, write};

/// Set in the process that runs one test alone.
const ALONE: &str = "PREREG_TEST_ALONE";

/// Runs the test `name` of this program in a process of its own; `true` in that process.
fn alone(name: &str) -> bool {
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    false
}

fn pinned() -> u64 {
    KernelCount::now().unwrap().pinned
}

/// A disk of 8 MiB with fixed buffers; `None`, with the reason printed, where there are none.
fn disk(folder: &tempfile::TempDir, guest: &Guest) -> Option<FileDisk> {
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(8 << 20).unwrap();
    let options = DiskOptions { buffers: Some(Arc::clone(&guest.pins)), ..DiskOptions::default() };
    let disk = FileDisk::open(&path, options).unwrap();
    if let Err(reason) = disk.fixed() {
        eprintln!("skipped: {reason}");
        return None;
    }
    Some(disk)
}

#[test]
fn io_on_registered_memory_pins_nothing_and_copies_nothing() {
    if !alone("pins::io_on_registered_memory_pins_nothing_and_copies_nothing") {
        return;
    }
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk(&folder, &guest) else { return };
    let registered = pinned();
    assert!(registered >= BYTES, "the guest's memory is");
    let pins = guest.pins.state().pin_calls;
    let mut queues: Vec<_> = (0..4).map(|_| queue(&disk)).collect();
    assert_eq!(pinned(), registered, "four queues share one pin");
    for round in 0..100u64 {
        for (at, queue) in (0..).zip(&mut queues) {
            let offset = (round * 4 + at) % 60 * (128 << 10);
            start(&mut **queue, 0, write(offset), guest.segments(&[(at << 19, 128 << 10)]));
            let read = Operation::Read { offset };
            start(&mut **queue, 1, read, guest.segments(&[((at << 19) + (256 << 10), 128 << 10)]));
        }
        assert_eq!(pinned(), registered);
        for queue in &mut queues {
            while queue.in_flight() > 0 {
                assert!(answers(&mut **queue).iter().all(|done| done.result.is_ok()));
                assert_eq!(pinned(), registered);
            }
        }
    }
    let counters = disk.counters();
    assert_eq!((counters.plain, counters.bounced, counters.retried), (0, 0, 0));
    assert_eq!(counters.fixed, 800 + counters.continued);
    assert_eq!(guest.pins.state().pin_calls, pins);
}

#[test]
fn a_guest_that_goes_takes_its_pins_along_though_the_queues_stay() {
    if !alone("pins::a_guest_that_goes_takes_its_pins_along_though_the_queues_stay") {
        return;
    }
    let before = pinned();
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk(&folder, &guest) else { return };
    let mut queues: Vec<_> = (0..3).map(|_| queue(&disk)).collect();
    for (at, queue) in (0..).zip(&mut queues) {
        perform(&mut **queue, write(at * 4096), guest.segments(&[(at * 4096, 4096)])).unwrap();
    }
    for tag in 0..64 {
        start(&mut *queues[0], tag, write(tag * 4096), guest.segments(&[(tag * 4096, 4096)]));
    }
    let pins = Arc::clone(&guest.pins);
    drop(guest);
    assert!(pinned() > before, "requests in flight keep it");
    while queues[0].in_flight() > 0 {
        answers(&mut *queues[0]);
    }
    assert_eq!(pinned(), before, "the last answer ended the pin");
    let state = pins.state();
    assert_eq!((state.io_rings, state.slots_used, state.stuck_slots), (3, 0, 0));
    drop(queues);
    assert_eq!(pins.state().io_rings, 0);
}

#[test]
fn dropping_a_queue_releases_the_holds_of_everything_in_flight() {
    if !alone("pins::dropping_a_queue_releases_the_holds_of_everything_in_flight") {
        return;
    }
    let before = pinned();
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(disk) = disk(&folder, &guest) else { return };
    let mut queue = queue(&disk);
    for tag in 0..500 {
        start(&mut *queue, tag, write(tag * 4096), guest.segments(&[(tag * 4096, 4096)]));
    }
    let mut done = Vec::new();
    queue.poll(prereg_nvme::disk::Wait::No, &mut done).unwrap();
    drop(queue);
    drop(guest);
    assert_eq!(pinned(), before);
}
