//! Which files can be opened as disks, and what happens to their storage.

use std::fs::File;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Arc;

use prereg::Errno;
use prereg_linux::PlainReason;
use prereg_nvme::disk::{Direct, Disk, DiskError, DiskOptions, FileDisk, Operation};

use super::guest::{Guest, perform, queue, write};

fn image(folder: &tempfile::TempDir, bytes: u64) -> PathBuf {
    let path = folder.path().join("disk.img");
    File::create(&path).unwrap().set_len(bytes).unwrap();
    path
}

fn with(direct: Direct, block_shift: Option<u8>) -> DiskOptions {
    DiskOptions { direct, block_shift, ..DiskOptions::default() }
}

#[test]
fn what_is_no_disk_is_refused_with_its_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, 511);
    let open = |path: &std::path::Path, options| FileDisk::open(path, options).unwrap_err();
    let absent = open(&folder.path().join("absent"), DiskOptions::default());
    assert!(matches!(absent, DiskError::File { during: "stat", errno: Errno::ENOENT, .. }), "{absent}");
    for other in [folder.path(), std::path::Path::new("/dev/null")] {
        let error = open(other, DiskOptions::default());
        assert!(matches!(error, DiskError::Kind { .. }) && error.errno() == Errno::EINVAL, "{error}");
    }
    let small = open(&path, DiskOptions::default());
    assert!(matches!(small, DiskError::TooSmall { bytes: 511, .. }), "{small}");
    for shift in [0, 8, 13, 255] {
        let error = open(&path, with(Direct::Auto, Some(shift % 64)));
        assert!(matches!(error, DiskError::Block { .. }), "{error}");
    }
}

#[test]
fn a_writer_is_alone_and_lets_go_when_it_is_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, 4096);
    let disk = FileDisk::open(&path, DiskOptions::default()).unwrap();
    let error = FileDisk::open(&path, DiskOptions::default()).unwrap_err();
    assert!(matches!(error, DiskError::InUse { .. }) && error.errno() == Errno::EBUSY, "{error}");
    let reading = DiskOptions { read_only: true, ..DiskOptions::default() };
    assert!(FileDisk::open(&path, reading).is_err());
    drop(disk);
    assert!(FileDisk::open(&path, DiskOptions::default()).is_ok());
}

#[test]
fn a_file_that_ends_in_mid_block_is_a_disk_of_its_whole_blocks() {
    let Some(guest) = Guest::new() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, 10_000);
    for (shift, bytes) in [(9, 9728), (12, 8192)] {
        let disk = FileDisk::open(&path, with(Direct::Auto, Some(shift))).unwrap();
        assert_eq!((disk.bytes(), disk.block_shift()), (bytes, shift));
        let mut queue = queue(&disk);
        let last = bytes - (1 << shift);
        assert_eq!(perform(&mut *queue, write(last), guest.segments(&[(0, 1 << shift)])), Ok(()));
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 10_000);
}

#[test]
fn errors_have_their_reasons() {
    let folder = tempfile::tempdir().unwrap();
    let path = image(&folder, 1 << 20);
    let cached = FileDisk::open(&path, with(Direct::Off, None)).unwrap();
    assert!(cached.direct().is_err());
    assert_eq!(cached.fixed(), Err(PlainReason::NoBackend));
    drop(cached);
    match FileDisk::open(&path, with(Direct::On, None)) {
        Ok(disk) => assert_eq!(disk.direct(), Ok(())),
        Err(error) => eprintln!("skipped in part: {error}"),
    }
    if let Some(guest) = Guest::new() {
        let buffers = Some(Arc::clone(&guest.pins));
        let disk = FileDisk::open(&path, DiskOptions { buffers, ..DiskOptions::default() }).unwrap();
        assert_eq!(disk.fixed(), guest.pins.fixed_io_support());
    }
}

#[test]
fn holes_stay_holes_when_read_and_storage_goes_back_when_discarded() {
    let Some(guest) = Guest::new() else { return };
    for direct in [Direct::Auto, Direct::Off] {
        let folder = tempfile::tempdir().unwrap();
        let path = image(&folder, 8 << 20);
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let stored = || {
            file.sync_all().unwrap();
            file.metadata().unwrap().blocks() * 512
        };
        let empty = stored();
        let disk = FileDisk::open(&path, with(direct, None)).unwrap();
        let mut queue = queue(&disk);
        perform(&mut *queue, Operation::Read { offset: 0 }, guest.segments(&[(0, 1 << 20)])).unwrap();
        assert_eq!((stored(), guest.get(0, 1 << 20)), (empty, vec![0; 1 << 20]));
        guest.put(0, &[0xee; 1 << 20]);
        perform(&mut *queue, write(1 << 20), guest.segments(&[(0, 1 << 20)])).unwrap();
        let full = stored();
        assert!(full >= empty + (1 << 20));
        if !disk.discard_zeroes() {
            eprintln!("skipped: no holes can be punched in files here");
            return;
        }
        let ranges = vec![(1 << 20, 256 << 10), ((1 << 20) + (512 << 10), 256 << 10)];
        perform(&mut *queue, Operation::Discard { ranges }, Vec::new()).unwrap();
        assert!(stored() <= full - (512 << 10), "{} of {full} bytes are still stored", stored());
        let zeroes = |deallocate| Operation::WriteZeroes {
            offset: (1 << 20) + (256 << 10),
            bytes: 256 << 10,
            deallocate,
            fua: true,
        };
        let before = stored();
        perform(&mut *queue, zeroes(false), Vec::new()).unwrap();
        assert!(stored() >= before, "asked to keep the storage");
        perform(&mut *queue, zeroes(true), Vec::new()).unwrap();
        assert!(stored() <= before - (256 << 10));
        let mut back = vec![1; 1 << 20];
        file.read_exact_at(&mut back, 1 << 20).unwrap();
        assert!(back[..768 << 10].iter().all(|byte| *byte == 0));
        assert!(back[768 << 10..].iter().all(|byte| *byte == 0xee));
        assert_eq!(disk.counters().discards, 2);
        assert_eq!(disk.counters().zeroes, 2);
    }
}
