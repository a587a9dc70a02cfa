use super::*;
use prereg::Memory;

#[test]
fn what_is_written_is_read_back_at_every_alignment() {
    let memory = GuestMemory::memfd("copy", 1 << 16).unwrap();
    let data: Vec<u8> = (0..100u8).collect();
    for offset in 0..17 {
        for len in 0..40 {
            memory.write(offset, &data[..len]).unwrap();
            let mut back = vec![0xff; len];
            memory.read(offset, &mut back).unwrap();
            assert_eq!(back, data[..len], "{offset} {len}");
        }
    }
}

#[test]
fn a_copy_does_not_touch_its_neighbours() {
    let memory = GuestMemory::anonymous(1 << 16).unwrap();
    for (offset, len) in [(8u64, 8usize), (9, 3), (15, 18), (1, 6)] {
        memory.write(0, &[0xaa; 64]).unwrap();
        memory.write(offset, &vec![0x55; len]).unwrap();
        let mut all = [0; 64];
        memory.read(0, &mut all).unwrap();
        for (i, byte) in all.into_iter().enumerate() {
            let inside = i as u64 >= offset && (i as u64) < offset + len as u64;
            assert_eq!(byte, if inside { 0x55 } else { 0xaa }, "{offset} {len} {i}");
        }
    }
}

#[test]
fn copies_outside_are_refused_whole() {
    let memory = GuestMemory::anonymous(1 << 16).unwrap();
    for (offset, len) in [(1u64 << 16, 1usize), ((1 << 16) - 1, 2), (u64::MAX, 1), (u64::MAX - 3, 8)] {
        assert!(matches!(memory.read(offset, &mut vec![0; len]), Err(MemoryError::OutOfBounds { .. })));
        let error = memory.write(offset, &vec![0; len]).unwrap_err();
        assert_eq!(error.errno(), Errno::EINVAL);
    }
    memory.read(1 << 16, &mut []).unwrap();
    memory.write((1 << 16) - 8, &[1; 8]).unwrap();
}

#[test]
fn sizes_and_names_that_cannot_be_are_refused() {
    for bytes in [0, 1, 4095, u64::MAX, u64::MAX - 1] {
        assert!(matches!(GuestMemory::anonymous(bytes), Err(MemoryError::Size { .. })), "{bytes}");
        assert!(matches!(GuestMemory::memfd("x", bytes), Err(MemoryError::Size { .. })), "{bytes}");
    }
    assert!(matches!(GuestMemory::memfd_hugetlb("x", 4096, HugeSize::M2), Err(MemoryError::Size { .. })));
    assert!(matches!(GuestMemory::memfd("a\0b", 1 << 16), Err(MemoryError::Name { .. })));
    assert!(matches!(GuestMemory::memfd(&"n".repeat(250), 1 << 16), Err(MemoryError::Name { .. })));
    GuestMemory::memfd(&"n".repeat(249), 1 << 16).unwrap();
    let error = GuestMemory::anonymous(1 << 62).unwrap_err();
    assert!(matches!(error, MemoryError::Os { during: "mmap", .. }), "{error}");
    let largest = !((1u64 << 21) - 1);
    assert!(matches!(GuestMemory::anonymous_thp(largest), Err(MemoryError::Os { .. })));
}

#[test]
fn memory_for_huge_pages_is_aligned_to_them() {
    for _ in 0..4 {
        let memory = GuestMemory::anonymous_thp(6 << 20).unwrap();
        assert!(memory.ua().is_aligned(PageShift::M2));
        memory.write((6 << 20) - 1, &[1]).unwrap();
        memory.write(0, &[1]).unwrap();
    }
}

/// A pool without enough pages fails the `mmap`, while other threads map memory.
#[test]
fn huge_pages_that_cannot_be_had_cost_other_threads_no_memory() {
    const TOO_MUCH: u64 = 1 << 40;
    // Larger than any gap between other mappings.
    const LARGE: u64 = 1 << 30;
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    let memory = GuestMemory::anonymous(LARGE).unwrap();
                    sys::populate_write(memory.ua().raw(), sys::page_size()).unwrap();
                }
            });
        }
        for _ in 0..10_000 {
            let error = GuestMemory::memfd_hugetlb("huge", TOO_MUCH, HugeSize::M2).unwrap_err();
            assert!(matches!(error, MemoryError::NoHugePages { .. }), "{error}");
        }
    });
}

#[test]
fn the_memory_outlives_its_handle_through_what_it_keeps() {
    let memory = GuestMemory::memfd("kept", 1 << 16).unwrap();
    let ua = memory.ua().raw();
    let kept = Memory::keep(&memory).unwrap();
    drop(memory);
    let mapped = |ua: u64| {
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        crate::proc_maps::parse(&text)
            .iter()
            .any(|area| area.start <= ua && ua < area.end && area.path.contains("kept"))
    };
    assert!(mapped(ua));
    drop(kept);
    assert!(!mapped(ua));
}

#[test]
fn a_memfd_cannot_be_made_shorter() {
    let memory = GuestMemory::memfd("sealed", 1 << 16).unwrap();
    let file = std::fs::File::from(memory.descriptor().unwrap().try_clone_to_owned().unwrap());
    assert_eq!(file.set_len(4096).unwrap_err().raw_os_error(), Some(libc::EPERM));
    file.set_len(1 << 17).unwrap();
}

#[test]
fn two_handles_are_the_same_memory() {
    let memory = GuestMemory::anonymous(1 << 16).unwrap();
    let other = memory.clone();
    memory.write(3, &[9]).unwrap();
    let mut byte = [0];
    other.read(3, &mut byte).unwrap();
    assert_eq!(byte, [9]);
}

#[test]
fn numbers_are_little_endian_aligned_and_inside() {
    let memory = GuestMemory::anonymous(1 << 16).unwrap();
    memory.store_u32(4, 0x0403_0201).unwrap();
    memory.store_u64(8, 0x1817_1615_1413_1211).unwrap();
    let mut bytes = [0; 12];
    memory.read(4, &mut bytes).unwrap();
    assert_eq!(bytes, [1, 2, 3, 4, 0x11, 0x12, 0x13, 0x14, 0x15, 0x16, 0x17, 0x18]);
    assert_eq!((memory.load_u32(12), memory.load_u64(8)), (Ok(0x1817_1615), Ok(0x1817_1615_1413_1211)));
    assert!(matches!(memory.load_u64(4), Err(MemoryError::Misaligned { offset: 4, len: 8 })));
    assert!(matches!(memory.store_u32(6, 0), Err(MemoryError::Misaligned { .. })));
    for offset in [(1 << 16) - 2, 1 << 16, u64::MAX - 3] {
        assert!(matches!(memory.store_u32(offset, 0), Err(MemoryError::OutOfBounds { .. })), "{offset:#x}");
        assert!(matches!(memory.load_u64(offset), Err(MemoryError::OutOfBounds { .. })), "{offset:#x}");
    }
}
