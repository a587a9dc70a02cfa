//! Copies in and out while other owners change the file.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use prereg::Errno;
use prereg_linux::{SharedError, SharedMemory};

use crate::syscalls::punch;
use crate::{PAGE, has_small_pages, sealed, shared, unsealed};

/// Memory that is copied by loads and stores, and memory that is copied by system calls.
fn both(pages: u64) -> Vec<SharedMemory> {
    let mut all = Vec::new();
    let (_, fd) = sealed(pages);
    all.push(shared(&fd).map(0, pages * PAGE).unwrap());
    all.extend(unsealed(pages).map(|file| shared(&file).map(0, pages * PAGE).unwrap()));
    assert!(all[0].is_direct() && all.iter().skip(1).all(|memory| !memory.is_direct()));
    all
}

#[test]
fn bytes_and_numbers_arrive_as_they_were_sent() {
    if !has_small_pages() {
        return;
    }
    for memory in both(3) {
        let sent: Vec<u8> = (0..2 * PAGE + 5).map(|n| (n % 253) as u8).collect();
        memory.write(77, &sent).unwrap();
        let mut found = vec![0; sent.len()];
        memory.read(77, &mut found).unwrap();
        assert_eq!(found, sent);
        memory.store_u32(8, 0x0102_0304).unwrap();
        memory.store_u32(12, 0xa0b0_c0d0).unwrap();
        assert_eq!((memory.load_u32(8), memory.load_u64(8)), (Ok(0x0102_0304), Ok(0xa0b0_c0d0_0102_0304)));
        memory.store_u64(16, 7).unwrap();
        let mut bytes = [0; 8];
        memory.read(16, &mut bytes).unwrap();
        assert_eq!(bytes, [7, 0, 0, 0, 0, 0, 0, 0]);
        let part = memory.part(2 * PAGE, PAGE).unwrap();
        part.write(0, b"part").unwrap();
        memory.read(2 * PAGE, &mut bytes).unwrap();
        assert_eq!(&bytes[..4], b"part");
    }
}

#[test]
fn nothing_outside_is_reached() {
    if !has_small_pages() {
        return;
    }
    for memory in both(2) {
        let part = memory.part(0, PAGE).unwrap();
        for offset in [PAGE - 1, PAGE, PAGE + 1, u64::MAX] {
            let errors = [
                part.read(offset, &mut [0; 2]).unwrap_err(),
                part.write(offset, &[0; 2]).unwrap_err(),
                part.load_u32(offset).unwrap_err(),
                part.store_u64(offset, 0).unwrap_err(),
            ];
            assert!(errors.iter().all(|error| error.errno() == Errno::EINVAL));
        }
        assert!(part.load_u32(2).is_err() && part.load_u64(4).is_err() && part.store_u32(1, 0).is_err());
        assert_eq!(part.read(PAGE, &mut []), Ok(()));
    }
}

#[test]
fn a_file_that_ends_early_is_an_error_on_every_way() {
    if !has_small_pages() {
        return;
    }
    let Some(file) = unsealed(3) else { return };
    let memory = shared(&file).map(0, 3 * PAGE).unwrap();
    memory.write(0, &[1; 3 * PAGE as usize]).unwrap();
    file.set_len(PAGE).unwrap();
    let gone = SharedError::Gone;
    assert_eq!(gone.errno(), Errno::EFAULT);
    assert_eq!(memory.read(PAGE - 4, &mut [0; 8]), Err(gone));
    assert_eq!(memory.write(PAGE - 4, &[0; 8]), Err(gone));
    assert_eq!(memory.load_u32(PAGE), Err(gone));
    assert_eq!(memory.load_u64(2 * PAGE), Err(gone));
    assert_eq!(memory.store_u32(PAGE, 1), Err(gone));
    assert_eq!(memory.store_u64(PAGE, 1), Err(gone));
    assert_eq!(memory.read(0, &mut [0; 8]), Ok(()));
    assert_eq!(file.metadata().unwrap().len(), PAGE);
    file.set_len(3 * PAGE).unwrap();
    assert_eq!(memory.load_u32(PAGE), Ok(0));
}

#[test]
fn a_hole_reads_as_zeros_and_takes_what_is_written() {
    if !has_small_pages() {
        return;
    }
    let (_, fd) = sealed(2);
    let files = [Some(fd), unsealed(2).map(Into::into)];
    for fd in files.into_iter().flatten() {
        let memory = shared(&fd).map(0, 2 * PAGE).unwrap();
        memory.write(PAGE, &[9; 16]).unwrap();
        punch(fd.as_fd(), 0, 2 * PAGE);
        let mut found = [1; 16];
        memory.read(PAGE, &mut found).unwrap();
        assert_eq!(found, [0; 16]);
        assert_eq!(memory.load_u32(PAGE), Ok(0));
        memory.store_u32(PAGE + 4, 5).unwrap();
        assert_eq!(memory.load_u64(PAGE), Ok(5 << 32));
    }
}

#[test]
fn a_number_is_loaded_at_once_however_it_is_copied() {
    if !has_small_pages() {
        return;
    }
    let Some(file) = unsealed(1) else { return };
    // Access to the same memory by another owner.
    let Ok(guest) = vm_like(&file) else { return };
    let memory = shared(&file).map(0, PAGE).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                for value in [0u64, u64::MAX] {
                    guest(value);
                }
            }
        });
        for _ in 0..5_000 {
            let value = memory.load_u32(64).unwrap();
            assert!(value == 0 || value == u32::MAX, "{value:#x}");
        }
        stop.store(true, Ordering::Relaxed);
    });
}

/// Stores to the eight bytes at 64 as another owner does: by write(2), which copies eight bytes at once.
fn vm_like(file: &std::fs::File) -> std::io::Result<impl Fn(u64) + Sync + '_> {
    use std::os::unix::fs::FileExt;
    file.write_all_at(&[0; 8], 64)?;
    Ok(move |value: u64| file.write_all_at(&value.to_ne_bytes(), 64).unwrap())
}
