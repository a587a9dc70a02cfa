//! Policies: time and size of registrations.

use prereg::Access;
use prereg_vfio_user::server::{DmaError, MemoryPolicy};

use crate::fixture::{Client, PAGE, iova, pinned, sealed, store, unsealed};

#[test]
fn pieces_are_registered_as_they_are_mapped() {
    let Some(store) = store(MemoryPolicy::EAGER.with_extent(4 * PAGE)) else { return };
    let (memory, fd) = sealed(18);
    let client = Client::new(&store, 1);
    client.map(0, 1, &fd, 5).unwrap();
    assert_eq!(pinned(&store), 4);
    client.map(1, 9, &fd, 3).unwrap();
    assert_eq!((pinned(&store), store.snapshot().registrations), (12, 3));
    client.map(10, 1, &fd, 17).unwrap();
    assert_eq!(pinned(&store), 14, "the last piece is as long as the file has it");
    memory.write(4 * PAGE - 2, b"over").unwrap();
    let mut found = [0; 4];
    client.dma.read(prereg::Iova::new(2 * PAGE - 2), &mut found).unwrap();
    assert_eq!(&found, b"over");
    let hold = client.hold(1, 9);
    assert!(hold.pieces().count() >= 3);
    assert_eq!(hold.pieces().map(|piece| piece.bytes).sum::<u64>(), 9 * PAGE);
    drop(hold);
    drop(client);
    assert_eq!(pinned(&store), 0);
}

#[test]
fn at_first_use_nothing_is_registered_before() {
    let Some(store) = store(MemoryPolicy::FIRST_USE.with_extent(2 * PAGE)) else { return };
    let (_memory, fd) = sealed(8);
    let (one, two) = (Client::new(&store, 1), Client::new(&store, 2));
    one.map(0, 8, &fd, 0).unwrap();
    two.map(0, 8, &fd, 0).unwrap();
    assert_eq!((pinned(&store), store.snapshot().files.len()), (0, 1));
    one.dma.write(iova(3), b"now").unwrap();
    assert_eq!(pinned(&store), 2);
    let mut found = [0; 3];
    two.dma.read(iova(3), &mut found).unwrap();
    assert_eq!((&found, pinned(&store)), (b"now", 2));
    let hold = two.dma.hold(iova(1), 4 * PAGE, Access::Read).unwrap();
    assert_eq!(pinned(&store), 6);
    assert_eq!(hold.pieces().map(|piece| piece.bytes).sum::<u64>(), 4 * PAGE);
    let unmapping = two.space.unmap_all();
    assert!(!unmapping.is_done());
    drop(two);
    drop(one);
    assert!(pinned(&store) > 0, "held");
    drop(hold);
    assert!(unmapping.is_done());
    assert_eq!(pinned(&store), 0);
}

#[test]
fn at_first_use_bad_ranges_are_refused_at_once_and_lost_memory_at_use() {
    let Some(store) = store(MemoryPolicy::FIRST_USE) else { return };
    let Some(file) = unsealed(4) else { return };
    let client = Client::new(&store, 1);
    assert!(client.map(0, 5, &file, 0).is_err());
    assert_eq!(client.space.snapshot().files, 0);
    client.map(0, 4, &file, 0).unwrap();
    file.set_len(PAGE).unwrap();
    let refused = client.dma.hold(iova(2), PAGE, Access::Read).map(|_| ()).unwrap_err();
    assert!(matches!(refused, DmaError::Memory { .. }), "{refused}");
    assert_eq!((pinned(&store), client.space.snapshot().iova.accesses), (0, 0));
    client.unmap(0, 4);
}
