//! Descriptors that are no memory, too short, or not open for the access.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use prereg::{Access, Errno, Iova};
use prereg_vfio_user::server::MemoryPolicy;

use crate::fixture::{Client, PAGE, another, iova, pinned, sealed, store, unsealed};

/// The file, opened again.
fn reopened(file: &impl AsFd, options: &OpenOptions) -> File {
    options.open(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd())).unwrap()
}

/// One end of a pipe.
fn pipe_of_a_child() -> OwnedFd {
    let mut child = Command::new("true").stdin(Stdio::piped()).spawn().unwrap();
    let pipe = child.stdin.take().unwrap();
    child.wait().unwrap();
    pipe.into()
}

#[test]
fn what_is_no_memory_is_refused_and_not_kept() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let client = Client::new(&store, 1);
    let device = |path| OwnedFd::from(OpenOptions::new().read(true).write(true).open(path).unwrap());
    let all = [
        OwnedFd::from(UnixStream::pair().unwrap().0),
        OwnedFd::from(File::open("/").unwrap()),
        device("/dev/null"),
        device("/dev/zero"),
        pipe_of_a_child(),
    ];
    for fd in all {
        let error = client.space.map(iova(0), PAGE, Access::ReadWrite, Some((fd, 0))).unwrap_err();
        assert_eq!(error.errno(), Errno::ENODEV, "{error}");
    }
    assert_eq!((client.space.snapshot().files, store.snapshot().files.len()), (0, 0));
    assert_eq!(client.space.snapshot().iova.mappings, 0);
}

#[test]
fn a_descriptor_must_be_open_for_what_the_device_does() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let Some(file) = unsealed(2) else { return };
    let client = Client::new(&store, 1);
    let read_only = reopened(&file, OpenOptions::new().read(true));
    let write_only = reopened(&file, OpenOptions::new().write(true));
    let nothing = reopened(&file, OpenOptions::new().read(true).custom_flags(libc::O_PATH));
    let errno = |fd: &File, access| client.map_for(0, 2, fd, 0, access).unwrap_err().errno();
    for access in [Access::Read, Access::Write, Access::ReadWrite] {
        assert_eq!(errno(&write_only, access), Errno::EACCES);
        assert_eq!(errno(&nothing, access), Errno::EACCES);
    }
    for access in [Access::Write, Access::ReadWrite] {
        assert_eq!(errno(&read_only, access), Errno::EACCES);
    }
    assert_eq!(client.space.snapshot().files, 0);
    client.map(0, 2, &file, 0).unwrap();
    assert_eq!(errno(&read_only, Access::Write), Errno::EACCES);
    // It is registered already, and the mapping does not allow the device to write.
    client.map_for(10, 1, &read_only, 1, Access::Read).unwrap();
    assert!(client.dma.read(iova(10), &mut [0; 8]).is_ok());
    assert_eq!(client.dma.write(iova(10), &[1]).unwrap_err().errno(), Errno::EACCES);
    assert_eq!(pinned(&store), 2);
}

#[test]
fn memory_that_cannot_be_pinned_is_reached_through_the_client() {
    let Some(store) = store(MemoryPolicy::BACKGROUND) else { return };
    let client = Client::new(&store, 1);
    client.far.bytes.lock().unwrap()[3 * PAGE as usize] = 42;
    let (_memory, fd) = sealed(2);
    let read_only = reopened(&fd, OpenOptions::new().read(true));
    let mut files = vec![(read_only, Access::Read)];
    // The file system of the sources may be tmpfs.
    if let Ok(file) = tempfile::tempfile_in(".") {
        file.set_len(2 * PAGE).unwrap();
        if prereg_linux::SharedFile::of(another(&file)).is_err() {
            files.push((file, Access::ReadWrite));
        }
    }
    for (file, access) in files {
        let refused = client.map_for(3, 2, &file, 1, access).unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL, "past the end of the file: {refused}");
        client.map_for(3, 2, &file, 0, access).unwrap();
        assert_eq!(client.byte(3), 42, "what the client answers");
        let written = client.dma.write(iova(4), &[1]).map_err(|error| error.errno());
        assert_eq!(written, if access == Access::Read { Err(Errno::EACCES) } else { Ok(()) });
        client.unmap(3, 2);
    }
    assert_eq!((pinned(&store), client.space.snapshot().files), (0, 0));
}

#[test]
fn ranges_outside_of_the_file_are_refused() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (_memory, fd) = sealed(4);
    let client = Client::new(&store, 1);
    for (bytes, offset) in [
        (5 * PAGE, 0),
        (PAGE, 4 * PAGE),
        (2 * PAGE, 3 * PAGE),
        (PAGE, u64::MAX - 0xfff),
        (1 << 62, 0),
        (PAGE, 8),
        (PAGE, PAGE + 1),
        (0, 0),
    ] {
        let error = client.space.map(iova(0), bytes, Access::Read, Some((another(&fd), offset))).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL, "{error}");
    }
    assert_eq!((pinned(&store), client.space.snapshot().files), (0, 0));
    let overlapped = client.map(0, 4, &fd, 0).and_then(|()| client.map(3, 1, &fd, 0)).unwrap_err();
    assert_eq!(overlapped.errno(), Errno::EEXIST);
    let wrapped = client.space.map(Iova::new(1), PAGE, Access::Read, Some((another(&fd), 0))).unwrap_err();
    assert_eq!(wrapped.errno(), Errno::EINVAL);
}

#[test]
fn a_file_whose_last_page_is_not_whole_gives_its_whole_pages() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let Some(file) = unsealed(2) else { return };
    file.set_len(2 * PAGE + 100).unwrap();
    let client = Client::new(&store, 1);
    assert_eq!(client.map(0, 3, &file, 0).unwrap_err().errno(), Errno::EINVAL);
    client.map(0, 2, &file, 0).unwrap();
    assert_eq!(pinned(&store), 2);
}

#[test]
fn descriptors_are_closed() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let Some(file) = unsealed(16) else { return };
    let name = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).unwrap();
    let open = || {
        let links = std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| *link == name).count()
    };
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    for page in 0..16 {
        one.map(page, 1, &file, page).unwrap();
        two.map(page, 1, &file, page).unwrap();
        let _ = one.map(page, 1, &file, page).unwrap_err();
    }
    assert_eq!(open(), 2, "the client's and the store's");
    drop((one, two));
    assert_eq!(open(), 1);
}
