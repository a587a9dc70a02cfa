//! Files that are truncated, extended or get holes while they are mapped, or between two mappings.

use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use prereg::Access;
use prereg_linux::{GuestMemory, HugeSize, PageBacking, Pagemap};
use prereg_vfio_user::server::{DmaError, MemoryPolicy};

use crate::fixture::{Client, PAGE, byte_of, iova, pinned, sealed, store, unsealed};
use crate::hole::punch;

#[test]
fn a_file_that_shrinks_under_an_access_is_an_error_and_no_signal() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let Some(file) = unsealed(4) else { return };
    let (other_memory, other) = sealed(1);
    let (bad, good) = (Client::new(&store, 1), Client::new(&store, 2));
    bad.map(0, 4, &file, 0).unwrap();
    good.map(0, 1, &other, 0).unwrap();
    bad.dma.write(iova(3), b"there").unwrap();
    bad.dma.store_u32(iova(3), 7).unwrap();
    let hold = bad.hold(0, 4);
    file.set_len(2 * PAGE).unwrap();
    let gone = Err(DmaError::Gone { iova: iova(0) });
    assert_eq!(hold.read(3 * PAGE, &mut [0; 8]), gone);
    assert_eq!(hold.read(PAGE + 8, &mut [0; PAGE as usize]), gone);
    assert_eq!(hold.write(3 * PAGE, &[1; 8]), gone);
    assert_eq!(hold.load_u32(3 * PAGE), Err(DmaError::Gone { iova: iova(0) }));
    assert_eq!(hold.load_u64(3 * PAGE), Err(DmaError::Gone { iova: iova(0) }));
    assert_eq!(hold.store_u32(3 * PAGE, 1), gone);
    assert_eq!(hold.store_u64(3 * PAGE, 1), gone);
    assert_eq!(bad.dma.load_u32(iova(3)), Err(DmaError::Gone { iova: iova(3) }));
    hold.write(PAGE, b"left").unwrap();
    assert_eq!(byte_of(&file, PAGE), b'l');
    assert_eq!(file.metadata().unwrap().len(), 2 * PAGE, "nothing we wrote made it longer again");
    assert_eq!(bad.map(9, 4, &file, 0).unwrap_err().errno(), prereg::Errno::EINVAL);
    good.dma.write(iova(0), b"well").unwrap();
    let mut found = [0; 4];
    other_memory.read(0, &mut found).unwrap();
    assert_eq!(&found, b"well");
    drop(hold);
    drop(bad);
    assert_eq!(pinned(&store), 1);
}

#[test]
fn a_sealed_file_can_get_holes_and_is_read_all_the_same() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (memory, fd) = sealed(4);
    let client = Client::new(&store, 1);
    client.map(0, 4, &fd, 0).unwrap();
    client.dma.write(iova(2), &[9]).unwrap();
    let hold = client.hold(0, 4);
    punch(fd.as_fd(), 0, 4 * PAGE);
    assert_eq!(hold.load_u32(2 * PAGE), Ok(0));
    hold.store_u32(2 * PAGE, 5).unwrap();
    hold.write(3 * PAGE, &[6]).unwrap();
    let mut found = [0; 4];
    memory.read(2 * PAGE, &mut found).unwrap();
    assert_eq!(found, [5, 0, 0, 0]);
}

/// Whether the device's address of page `at` is that of the client's page. `None` if this user may not see it.
fn is_the_clients(client: &Client, at: u64, page_of_client: prereg::UserAddr) -> Option<bool> {
    let map = Pagemap::open().unwrap();
    let PageBacking::Frames(frame) = map.page(page_of_client).unwrap() else { return None };
    Some(client.hold(at, 1).pieces().next().unwrap().host == frame)
}

/// Uses physical addresses if this user may see them, to compare the pages themselves.
fn physical_store() -> Option<std::sync::Arc<prereg_vfio_user::server::MemoryStore>> {
    let pins = prereg_linux::IoUring::new().map_err(|error| eprintln!("skipped: {error}")).ok()?;
    let space = prereg::AddressSpace::builder(pins).build().unwrap();
    Some(std::sync::Arc::new(prereg_vfio_user::server::MemoryStore::new(space, MemoryPolicy::EAGER)))
}

#[test]
fn memory_that_was_released_and_mapped_again_is_registered_again() {
    let Some(store) = physical_store() else { return };
    let (memory, fd) = sealed(16);
    let client = Client::new(&store, 1);
    let page = |number: u64| memory.ua().checked_add(number * PAGE).unwrap();
    // Like virtio-mem: plugs blocks, unplugs them (unmaps, then punches), plugs them again.
    for block in 0..4 {
        client.map(100 + 4 * block, 4, &fd, 4 * block).unwrap();
    }
    memory.write(5 * PAGE, &[1]).unwrap();
    let before = client.hold(104, 4).pieces().next().unwrap().ua;
    client.unmap(104, 4);
    punch(fd.as_fd(), 4 * PAGE, 4 * PAGE);
    memory.write(5 * PAGE, &[2]).unwrap();
    client.map(104, 4, &fd, 4).unwrap();
    assert_eq!(client.byte(105), 2);
    assert_ne!(client.hold(104, 4).pieces().next().unwrap().ua, before);
    assert_ne!(is_the_clients(&client, 105, page(5)), Some(false));
    assert_ne!(is_the_clients(&client, 100, page(0)), Some(false));
    let state = store.snapshot();
    assert_eq!((state.registrations, state.stale), (2, 1));
    assert_eq!((state.files[0].extents, state.files[0].stale_extents), (2, 1));
    assert_eq!(state.space.pinned_pages, 20, "the old ones are still mapped elsewhere");
    // When nothing maps the old registration any more it is released, with its four pages that are no longer the file's.
    for at in [100, 108, 112] {
        client.unmap(at, 4);
    }
    assert_eq!(pinned(&store), 4);
    client.map(0, 16, &fd, 0).unwrap();
    assert_eq!(pinned(&store), 16);
    for number in [0, 5, 15] {
        memory.write(number * PAGE, &[3]).unwrap();
        assert_ne!(is_the_clients(&client, number, page(number)), Some(false));
    }
}

#[test]
fn one_client_that_punches_under_its_own_mapping_harms_no_other() {
    let Some(store) = physical_store() else { return };
    let (memory, fd) = sealed(8);
    let (bad, good) = (Client::new(&store, 1), Client::new(&store, 2));
    bad.map(0, 8, &fd, 0).unwrap();
    memory.write(3 * PAGE, &[1]).unwrap();
    punch(fd.as_fd(), 3 * PAGE, PAGE);
    // The device still reads there by the processor, which allocates a new page.
    assert_eq!(bad.byte(3), 0);
    memory.write(3 * PAGE, &[2]).unwrap();
    good.map(50, 8, &fd, 0).unwrap();
    assert_eq!(good.byte(53), 2);
    let page = memory.ua().checked_add(3 * PAGE).unwrap();
    assert_ne!(is_the_clients(&good, 53, page), Some(false));
    assert_ne!(is_the_clients(&bad, 3, page), Some(true), "a mapping never moves");
    assert_eq!(store.snapshot().stale, 1);
    bad.unmap(0, 8);
    good.unmap(50, 8);
    assert!(pinned(&store) <= 1, "what holds nobody's pages is gone");
}

#[test]
fn a_range_without_holes_is_read_again_after_every_change_of_the_file() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (memory, fd) = sealed(64);
    let client = Client::new(&store, 1);
    client.map(500, 8, &fd, 56).unwrap();
    for round in 0..200 {
        client.map(round % 7, 1, &fd, round % 48).unwrap();
        memory.write((round % 64) * PAGE, &[1]).unwrap();
        client.unmap(round % 7, 1);
        if round % 50 == 0 {
            // Long enough to trust the change time.
            std::thread::sleep(Duration::from_millis(120));
        }
    }
    let state = store.snapshot();
    assert_eq!((state.registrations, state.stale), (1, 0));
    // After that a hole is still detected at once.
    punch(fd.as_fd(), 9 * PAGE, PAGE);
    client.map(0, 1, &fd, 9).unwrap();
    let state = store.snapshot();
    assert_eq!((state.registrations, state.stale), (2, 1));
}

#[test]
fn a_file_that_grows_is_registered_where_it_grew() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let Some(file) = unsealed(4) else { return };
    let client = Client::new(&store, 1);
    client.map(0, 4, &file, 0).unwrap();
    file.set_len(10 * PAGE).unwrap();
    client.map(4, 2, &file, 3).unwrap();
    file.write_all_at(b"joined", 4 * PAGE - 3).unwrap();
    let mut found = [0; 6];
    client.dma.read(prereg::Iova::new(5 * PAGE - 3), &mut found).unwrap();
    assert_eq!(&found, b"joined");
    let hold = client.dma.hold(iova(4), 2 * PAGE, Access::Read).unwrap();
    assert_eq!(hold.pieces().map(|piece| piece.bytes).sum::<u64>(), 2 * PAGE);
    assert_eq!((pinned(&store), store.snapshot().registrations), (10, 2));
}

#[test]
fn a_file_that_shrank_and_grew_again_has_new_pages() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let Some(file) = unsealed(8) else { return };
    let client = Client::new(&store, 1);
    client.map(0, 8, &file, 0).unwrap();
    file.set_len(2 * PAGE).unwrap();
    file.set_len(8 * PAGE).unwrap();
    client.map(100, 8, &file, 0).unwrap();
    let pieces = |at| client.hold(at, 8).pieces().map(|piece| piece.ua).collect::<Vec<_>>();
    assert_ne!(pieces(0).last(), pieces(100).last());
    let state = store.snapshot();
    assert_eq!((state.registrations, state.stale, state.space.pinned_pages), (2, 1, 14));
    client.unmap(0, 8);
    client.unmap(100, 8);
    assert_eq!(pinned(&store), 6, "the old registration went with its last mapping, the new one stays");
}

#[test]
fn huge_pages_are_registered_again_as_a_whole() {
    const HUGE: u64 = 2 << 20;
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let memory = match GuestMemory::memfd_hugetlb("huge", 2 * HUGE, HugeSize::M2) {
        Ok(memory) => memory,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let fd = memory.descriptor().unwrap();
    let client = Client::new(&store, 1);
    if let Err(error) = client.map(0, 1, &fd, 512 + 3) {
        eprintln!("skipped: {error}");
        return;
    }
    client.dma.write(iova(0), b"first").unwrap();
    client.unmap(0, 1);
    punch(fd, HUGE, HUGE);
    if let Err(error) = client.map(0, 1, &fd, 512 + 5) {
        eprintln!("skipped: {error}");
        return;
    }
    client.map(1, 1, &fd, 512 + 3).unwrap();
    memory.write(HUGE + 3 * PAGE, b"again").unwrap();
    let mut found = [0; 5];
    client.dma.read(iova(1), &mut found).unwrap();
    assert_eq!(&found, b"again");
    let state = store.snapshot();
    assert_eq!((state.registrations, state.stale, state.space.pinned_pages), (2, 1, 2 * 512));
    assert_eq!((state.files[0].extents, state.files[0].stale_extents), (1, 0));
}
