//! Requests that are rejected, and files that are full or were truncated.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use prereg::Errno;
use prereg_nvme::disk::{
    Changed, Direct, Disk, DiskFault, DiskOptions, DiskQueue, FileDisk, MemoryDisk, Operation, Request,
    Segment, Wait, ignore_file_size_signal,
};

use super::guest::{Guest, answers, kick, perform, queue, write};

/// Set in the process with a file size limit.
const LIMITED: &str = "PREREG_TEST_FILE_LIMIT";

fn open(folder: &tempfile::TempDir, bytes: u64, options: DiskOptions) -> FileDisk {
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    FileDisk::open(&path, options).unwrap()
}

#[test]
fn ranges_that_are_not_whole_blocks_inside_are_refused() {
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = open(&folder, 1 << 20, DiskOptions::default());
    let memory = MemoryDisk::new(1 << 20, 9).unwrap();
    for disk in [&file as &dyn Disk, &memory] {
        let mut queue = queue(disk);
        let mut refused = |operation: Operation, parts: &[(u64, u64)]| {
            let data = guest.segments(parts);
            assert_eq!(perform(&mut *queue, operation.clone(), data), Err(DiskFault::Range), "{operation:?}");
        };
        for (offset, bytes) in
            [(1 << 20, 512), ((1 << 20) - 512, 1024), (100, 512), (0, 100), (u64::MAX - 511, 512), (512, 513)]
        {
            refused(Operation::Read { offset }, &[(0, bytes)]);
            refused(write(offset), &[(0, bytes)]);
            refused(Operation::Write { offset, fua: true }, &[(0, bytes)]);
            refused(Operation::Compare { offset }, &[(0, bytes)]);
            refused(Operation::WriteZeroes { offset, bytes, deallocate: true, fua: false }, &[]);
            refused(Operation::Discard { ranges: vec![(0, 512), (offset, bytes)] }, &[]);
        }
        refused(Operation::Read { offset: 0 }, &[]);
        let outside = Segment { hold: guest.hold(0, 512), offset: 256, bytes: 512 };
        assert_eq!(perform(&mut *queue, write(0), vec![outside]), Err(DiskFault::Range));
        let wraps = Segment { hold: guest.hold(0, 512), offset: u64::MAX, bytes: 512 };
        assert_eq!(perform(&mut *queue, write(0), vec![wraps]), Err(DiskFault::Range));
        assert_eq!(disk.counters().faults, 6 * 6 + 3);
    }
}

#[test]
fn a_read_only_disk_changes_nothing_and_can_be_shared() {
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("disk.img");
    std::fs::write(&path, vec![5; 8192]).unwrap();
    let options = DiskOptions { read_only: true, ..DiskOptions::default() };
    let disk = FileDisk::open(&path, options.clone()).unwrap();
    let other = FileDisk::open(&path, options).unwrap();
    assert!(FileDisk::open(&path, DiskOptions::default()).is_err(), "readers keep writers out");
    let mut queue = queue(&disk);
    let data = || guest.segments(&[(0, 512)]);
    for (operation, data) in [
        (write(0), data()),
        (Operation::WriteZeroes { offset: 0, bytes: 512, deallocate: false, fua: false }, Vec::new()),
        (Operation::Discard { ranges: vec![(0, 512)] }, Vec::new()),
    ] {
        assert_eq!(perform(&mut *queue, operation, data), Err(DiskFault::ReadOnly));
    }
    assert_eq!(perform(&mut *queue, Operation::Flush, Vec::new()), Ok(()));
    assert_eq!(perform(&mut *queue, Operation::Read { offset: 512 }, data()), Ok(()));
    assert_eq!(guest.get(0, 512), [5; 512]);
    drop(other);
    assert_eq!(std::fs::read(&path).unwrap(), [5; 8192]);
}

#[test]
fn a_file_that_is_cut_short_gives_errors_and_its_new_size_when_asked() {
    let Some(guest) = Guest::new() else { return };
    for direct in [Direct::Auto, Direct::Off] {
        let folder = tempfile::tempdir().unwrap();
        let disk = open(&folder, 64 << 10, DiskOptions { direct, ..DiskOptions::default() });
        let file = File::options().write(true).open(folder.path().join("disk.img")).unwrap();
        let mut queue = queue(&disk);
        file.set_len((32 << 10) + 100).unwrap();
        let read = |queue: &mut dyn DiskQueue, offset| {
            perform(queue, Operation::Read { offset }, guest.segments(&[(0, 4096)]))
        };
        assert_eq!(read(&mut *queue, 60 << 10), Err(DiskFault::Io(Errno::EIO)));
        assert_eq!(read(&mut *queue, 30 << 10), Err(DiskFault::Io(Errno::EIO)), "half of it is there");
        assert_eq!(read(&mut *queue, 28 << 10), Ok(()));
        assert_eq!(disk.bytes(), 64 << 10);
        let changed = Changed::Bytes { before: 64 << 10, now: 32 << 10 };
        assert_eq!(disk.refresh(), Ok(changed), "whole blocks of what is left");
        assert_eq!(disk.refresh(), Ok(Changed::No));
        assert_eq!(read(&mut *queue, 32 << 10), Err(DiskFault::Range));
        file.set_len(1 << 20).unwrap();
        assert!(matches!(disk.refresh(), Ok(Changed::Bytes { now: 1_048_576, .. })));
        assert_eq!(read(&mut *queue, (1 << 20) - 4096), Ok(()));
    }
}

#[test]
fn a_full_queue_gives_the_request_back_whole() {
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let disk = open(&folder, 1 << 20, DiskOptions::default());
    let mut queue = queue(&disk);
    let mut taken = 0;
    let refused = loop {
        let request =
            Request { tag: taken, operation: write(taken % 2048 * 512), data: guest.segments(&[(0, 512)]) };
        match queue.submit(request) {
            Ok(()) => taken += 1,
            Err(request) => break request,
        }
    };
    assert_eq!((refused.tag, refused.data.len()), (taken, 1));
    assert_eq!(queue.in_flight() as u64, taken);
    let mut seen = vec![false; taken as usize];
    while queue.in_flight() > 0 {
        for done in answers(&mut *queue) {
            assert_eq!(done.result, Ok(()));
            assert!(!std::mem::replace(&mut seen[done.tag as usize], true), "answered once");
        }
    }
    assert!(seen.iter().all(|seen| *seen));
}

#[test]
fn a_kick_ends_a_wait_and_an_idle_poll_does_not_wait() {
    let folder = tempfile::tempdir().unwrap();
    let file = open(&folder, 1 << 20, DiskOptions::default());
    let memory = MemoryDisk::new(1 << 20, 9).unwrap();
    for disk in [&file as &dyn Disk, &memory] {
        let kick: Arc<OwnedFd> = kick();
        let mut queue = disk.queue(Arc::clone(&kick)).unwrap();
        let mut done = Vec::new();
        queue.poll(Wait::No, &mut done).unwrap();
        let mut bell = File::from(kick.try_clone().unwrap());
        let ringer = std::thread::spawn(move || bell.write_all(&1u64.to_ne_bytes()).unwrap());
        queue.poll(Wait::Kick, &mut done).unwrap();
        ringer.join().unwrap();
        queue.poll(Wait::For(std::time::Duration::from_millis(1)), &mut done).unwrap();
        assert!(done.is_empty());
    }
}

#[test]
fn a_list_of_pages_is_one_transfer_where_the_kernel_has_lists() {
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let options = DiskOptions { buffers: Some(Arc::clone(&guest.pins)), ..DiskOptions::default() };
    let disk = open(&folder, 1 << 20, options);
    if let Err(reason) = disk.fixed() {
        eprintln!("skipped: {reason}");
        return;
    }
    let mut queue = queue(&disk);
    let pages: Vec<_> = (0..32).map(|page| (page * 8192, 4096)).collect();
    perform(&mut *queue, write(0), guest.segments(&pages)).unwrap();
    let counters = disk.counters();
    assert_eq!((counters.plain, counters.bounced, counters.retried), (0, 0, 0));
    assert!(counters.fixed == 1 || counters.fixed == 32, "{counters:?}");
}

/// Runs in a process of its own, with a file size limit, whose signal kills a process by default.
#[test]
fn a_write_beyond_the_file_size_limit_fails_and_the_disk_goes_on() {
    const NAME: &str = "limits::a_write_beyond_the_file_size_limit_fails_and_the_disk_goes_on";
    if let Some(folder) = std::env::var_os(LIMITED) {
        return below_the_limit(Path::new(&folder));
    }
    let folder = tempfile::tempdir().unwrap();
    for image in ["direct.img", "cached.img"] {
        File::create(folder.path().join(image)).unwrap().set_len(1 << 20).unwrap();
    }
    // 64 blocks of 512 bytes in some shells, of 1024 in others.
    let script = "ulimit -f 64 && exec \"$0\" --exact \"$1\" --nocapture";
    let program = std::env::current_exe().unwrap();
    let mut limited = Command::new("sh");
    let output =
        limited.args(["-c", script]).arg(program).arg(NAME).env(LIMITED, folder.path()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{output:?}");
}

/// The largest offset under the smaller of the two limits, and under the larger.
const LARGEST: [u64; 2] = [32 << 10, 64 << 10];

fn below_the_limit(folder: &Path) {
    let Some(guest) = Guest::of(LARGEST[0], LARGEST[0]) else { return };
    ignore_file_size_signal();
    let refused = Err(DiskFault::Io(Errno::from_raw(libc::EFBIG)));
    for (image, direct) in [("direct.img", Direct::Auto), ("cached.img", Direct::Off)] {
        let options = DiskOptions { direct, ..DiskOptions::default() };
        let disk = FileDisk::open(&folder.join(image), options).unwrap();
        let mut queue = queue(&disk);
        let data = || guest.segments(&[(0, 8192)]);
        assert_eq!(perform(&mut *queue, write(0), data()), Ok(()));
        assert_eq!(perform(&mut *queue, write(LARGEST[1] * 2), data()), refused);
        // The limit is in the middle of one of these: a short write, and none after it.
        let results = LARGEST.map(|limit| perform(&mut *queue, write(limit - 4096), data()));
        assert!(results.contains(&refused), "{results:?}");
        assert!(disk.counters().continued >= 1, "{:?}", disk.counters());
        assert_eq!(perform(&mut *queue, Operation::Flush, Vec::new()), Ok(()), "nothing was lost by that");
        assert_eq!(perform(&mut *queue, Operation::Read { offset: 0 }, data()), Ok(()));
    }
}
