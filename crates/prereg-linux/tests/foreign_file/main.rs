//! Memory behind descriptors that other processes may change at any time.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod copies;
mod files;
mod page_residency;
mod syscalls;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};

use prereg_linux::{FileStat, GuestMemory, SharedFile};

const PAGE: u64 = 0x1000;

/// Whether this system has the page size that the tests are written for.
fn has_small_pages() -> bool {
    let bytes = prereg_linux::Pagemap::open().map_or(PAGE, |map| map.granule().bytes());
    if bytes != PAGE {
        eprintln!("skipped: the system's pages are {bytes} bytes");
    }
    bytes == PAGE
}

fn another(file: &impl AsFd) -> OwnedFd {
    file.as_fd().try_clone_to_owned().unwrap()
}

fn shared(file: &impl AsFd) -> SharedFile {
    let fd = another(file);
    let facts = FileStat::of(fd.as_fd()).unwrap();
    SharedFile::new(fd, &facts).unwrap()
}

/// A memfd that is sealed against shrinking.
fn sealed(pages: u64) -> (GuestMemory, OwnedFd) {
    let memory = GuestMemory::memfd("shared", pages * PAGE).unwrap();
    let fd = another(&memory.descriptor().unwrap());
    (memory, fd)
}

/// A file of tmpfs that is not sealed. `None`, with the reason printed, where there is no tmpfs.
fn unsealed(pages: u64) -> Option<File> {
    match tempfile::tempfile_in("/dev/shm") {
        Ok(file) => {
            file.set_len(pages * PAGE).unwrap();
            Some(file)
        }
        Err(error) => {
            eprintln!("skipped: no file in /dev/shm: {error}");
            None
        }
    }
}
