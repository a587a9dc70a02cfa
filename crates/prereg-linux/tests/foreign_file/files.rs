//! Status of descriptors.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;

use prereg::{Errno, Memory, PageShift};
use prereg_linux::{FileStat, GuestMemory, HugeSize, SharedError, SharedFile};

use crate::syscalls::seal_against_writing;
use crate::{PAGE, another, has_small_pages, sealed, shared, unsealed};

#[test]
fn descriptors_of_one_file_have_one_identity() {
    let (_memory, fd) = sealed(3);
    let (_other_memory, other) = sealed(3);
    let facts = FileStat::of(fd.as_fd()).unwrap();
    let again = FileStat::of(another(&fd).as_fd()).unwrap();
    assert_eq!(facts, again);
    assert_eq!((facts.bytes, facts.readable, facts.writable), (3 * PAGE, true, true));
    assert_ne!(facts.identity, FileStat::of(other.as_fd()).unwrap().identity);
    assert_eq!(shared(&fd).identity(), facts.identity);
}

#[test]
fn how_a_descriptor_is_open_is_told() {
    let Some(file) = unsealed(1) else { return };
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let modes = |options: &mut OpenOptions| {
        let facts = FileStat::of(options.open(&path).unwrap().as_fd()).unwrap();
        (facts.readable, facts.writable)
    };
    assert_eq!(modes(OpenOptions::new().read(true).write(true)), (true, true));
    assert_eq!(modes(OpenOptions::new().read(true)), (true, false));
    assert_eq!(modes(OpenOptions::new().write(true)), (false, false));
    assert_eq!(modes(OpenOptions::new().read(true).custom_flags(libc::O_PATH)), (false, false));
    let read_only = File::open(&path).unwrap();
    let facts = FileStat::of(read_only.as_fd()).unwrap();
    let error = SharedFile::new(read_only.into(), &facts).unwrap_err();
    assert_eq!(error.errno(), Errno::EACCES);
}

#[test]
fn what_is_no_memory_is_told_by_what_it_is() {
    let (socket, _) = UnixStream::pair().unwrap();
    for (fd, what) in [
        (another(&socket), "a socket"),
        (File::open("/").unwrap().into(), "a directory"),
        (File::open("/dev/null").unwrap().into(), "a device"),
    ] {
        assert_eq!(FileStat::of(fd.as_fd()).unwrap_err(), SharedError::NotMemory { what });
    }
    let Ok(file) = tempfile::tempfile_in(".") else {
        eprintln!("skipped: the sources cannot be written to, so there is no file of a disk");
        return;
    };
    file.set_len(PAGE).unwrap();
    let facts = FileStat::of(file.as_fd()).unwrap();
    let error = SharedFile::new(file.into(), &facts).unwrap_err();
    assert!(matches!(error, SharedError::NotMemory { .. }), "{error}");
    assert_eq!(error.errno(), Errno::ENODEV);
}

#[test]
fn memory_that_may_not_be_written_is_refused() {
    let (_memory, fd) = sealed(1);
    if !seal_against_writing(fd.as_fd()) {
        eprintln!("skipped: this kernel has no F_SEAL_FUTURE_WRITE");
        return;
    }
    assert!(!SharedFile::may_be_written(fd.as_fd()));
    let facts = FileStat::of(fd.as_fd()).unwrap();
    assert!(facts.writable, "the descriptor itself is");
    assert_eq!(SharedFile::new(fd, &facts).unwrap_err().errno(), Errno::EPERM);
}

#[test]
fn only_whole_pages_that_the_file_has_are_mapped() {
    if !has_small_pages() {
        return;
    }
    let Some(file) = unsealed(4) else { return };
    let memory = shared(&file);
    for (offset, bytes) in
        [(0, 0), (1, PAGE), (0, PAGE + 1), (0, 5 * PAGE), (4 * PAGE, PAGE), (1 << 62, PAGE)]
    {
        let error = memory.map(offset, bytes).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
    }
    let part = memory.map(PAGE, 3 * PAGE).unwrap();
    assert_eq!((part.bytes(), part.file_offset()), (3 * PAGE, PAGE));
    assert_ne!(part.ua(), part.copy_ua());
    let inner = part.part(PAGE, PAGE).unwrap();
    assert_eq!((inner.file_offset(), Memory::bytes(&inner)), (2 * PAGE, PAGE));
    assert_eq!(inner.ua().offset_from(part.ua()), Some(PAGE));
    assert!(part.part(2 * PAGE, 2 * PAGE).is_none() && part.part(0, 0).is_none());
}

#[test]
fn huge_pages_are_mapped_whole_and_never_touched_directly() {
    let memory = match GuestMemory::memfd_hugetlb("huge", 4 << 20, HugeSize::M2) {
        Ok(memory) => memory,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let file = shared(&memory.descriptor().unwrap());
    assert_eq!((file.page(), file.is_direct(), file.tracks_changes()), (PageShift::M2, false, false));
    assert!(file.map(0, PAGE).is_err() && file.map(PAGE, 2 << 20).is_err());
    let Ok(half) = file.map(2 << 20, 2 << 20) else {
        eprintln!("skipped: no huge page available");
        return;
    };
    half.write(5, b"large").unwrap();
    let mut found = [0; 5];
    memory.read((2 << 20) + 5, &mut found).unwrap();
    assert_eq!(&found, b"large");
    half.read(5, &mut found).unwrap();
    assert_eq!(&found, b"large");
}

#[test]
fn parts_of_a_file_that_have_pages_are_found_without_moving_its_offset() {
    use std::io::{Read, Seek, SeekFrom, Write};
    let Some(mut file) = unsealed(64) else { return };
    file.seek(SeekFrom::Start(8 * PAGE)).unwrap();
    file.write_all(&[7; 2 * PAGE as usize]).unwrap();
    let memory = shared(&file);
    let residency = memory.data_extents().unwrap();
    let data = |from| residency.next_data(from * PAGE).unwrap().map(|(from, to)| (from / PAGE, to / PAGE));
    assert_eq!([data(0), data(8), data(9)], [Some((8, 10)), Some((8, 10)), Some((9, 10))]);
    assert_eq!([data(10), data(64)], [None, None]);
    file.set_len(0).unwrap();
    assert_eq!(data(0), None);
    let mut rest = Vec::new();
    file.set_len(11 * PAGE).unwrap();
    assert_eq!(file.read_to_end(&mut rest).unwrap() as u64, PAGE, "the sender's offset stays");
}
