//! Reads and writes: across mappings, in remote memory, numbers, bounds.

use prereg::{Access, Errno, Iova};
use prereg_vfio_user::server::{DmaError, MemoryPolicy, RemoteError};

use crate::fixture::{Client, PAGE, byte_of, iova, sealed, store, unsealed};

#[test]
fn copies_go_across_mappings_files_and_to_the_far_side() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let Some(file) = unsealed(2) else { return };
    let (memory, fd) = sealed(2);
    let client = Client::new(&store, 1);
    client.map(0, 1, &fd, 1).unwrap();
    client.map(1, 2, &file, 0).unwrap();
    client.space.map(iova(3), 2 * PAGE, Access::ReadWrite, None).unwrap();
    let sent: Vec<u8> = (0..4 * PAGE).map(|n| (n % 251) as u8).collect();
    let start = Iova::new(0x123);
    client.dma.write(start, &sent).unwrap();
    let mut found = vec![0; sent.len()];
    client.dma.read(start, &mut found).unwrap();
    assert_eq!(found, sent);
    let mut byte = [0];
    memory.read(PAGE + 0x123, &mut byte).unwrap();
    assert_eq!(byte[0], sent[0]);
    assert_eq!(byte_of(&file, 0), sent[(PAGE - 0x123) as usize]);
    assert_eq!(client.far.bytes.lock().unwrap()[3 * PAGE as usize], sent[(3 * PAGE - 0x123) as usize]);
    let hold = client.dma.hold(start, 4 * PAGE, Access::Read).unwrap();
    assert!(!hold.is_local());
    let local: u64 = hold.pieces().map(|piece| piece.bytes).sum();
    assert_eq!(local, 3 * PAGE - 0x123);
    let mut part = vec![0; PAGE as usize];
    hold.read(2 * PAGE + 17, &mut part).unwrap();
    assert_eq!(part, sent[2 * PAGE as usize + 17..][..PAGE as usize]);
}

#[test]
fn numbers_are_little_endian_and_aligned() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let Some(file) = unsealed(1) else { return };
    let (_memory, fd) = sealed(1);
    let client = Client::new(&store, 1);
    client.map(0, 1, &fd, 0).unwrap();
    client.map(1, 1, &file, 0).unwrap();
    client.space.map(iova(2), PAGE, Access::ReadWrite, None).unwrap();
    for page in 0..3 {
        let hold = client.hold(page, 1);
        hold.store_u64(8, 0x0102_0304_0506_0708).unwrap();
        let mut bytes = [0; 8];
        hold.read(8, &mut bytes).unwrap();
        assert_eq!(bytes, [8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(hold.load_u32(12), Ok(0x0102_0304));
        hold.store_u32(12, 0xa0b0_c0d0).unwrap();
        assert_eq!(hold.load_u64(8), Ok(0xa0b0_c0d0_0506_0708));
        for offset in [1, 2, 6, PAGE - 2] {
            assert_eq!(hold.load_u32(offset), Err(DmaError::Range { offset, bytes: 4 }));
        }
        assert_eq!(hold.store_u64(4, 1), Err(DmaError::Range { offset: 4, bytes: 8 }));
        let at = Iova::new(page * PAGE + 8);
        assert_eq!(client.dma.load_u32(at), Ok(0x0506_0708));
        client.dma.store_u32(at, 1).unwrap();
        assert_eq!(client.dma.load_u32(at), Ok(1));
    }
}

#[test]
fn bounds_and_rights_of_a_hold_are_kept() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let (_memory, fd) = sealed(2);
    let client = Client::new(&store, 1);
    client.map(0, 2, &fd, 0).unwrap();
    let hold = client.dma.hold(iova(0), PAGE, Access::Read).unwrap();
    assert_eq!(hold.read(PAGE - 1, &mut [0; 2]), Err(DmaError::Range { offset: PAGE - 1, bytes: 2 }));
    assert_eq!(hold.read(u64::MAX, &mut [0; 2]).unwrap_err().errno(), Errno::EINVAL);
    assert_eq!(hold.read(PAGE, &mut []), Ok(()));
    assert_eq!(hold.load_u32(PAGE), Err(DmaError::Range { offset: PAGE, bytes: 4 }));
    assert_eq!(hold.write(0, &[1]).unwrap_err().errno(), Errno::EACCES);
    assert_eq!(hold.store_u32(0, 1), Err(DmaError::Protected { iova: iova(0) }));
    let hold = client.dma.hold(iova(0), PAGE, Access::Write).unwrap();
    assert!(hold.read(0, &mut [0]).is_err() && hold.write(0, &[1]).is_ok());
    assert!(matches!(client.dma.read(iova(1), &mut [0; 5000]), Err(DmaError::Unmapped { .. })));
    assert_eq!(client.dma.read(iova(0), &mut []).unwrap_err().errno(), Errno::EINVAL);
}

#[test]
fn the_far_side_says_why_not() {
    let Some(store) = store(MemoryPolicy::EAGER) else { return };
    let client = Client::new(&store, 1);
    client.space.map(iova(0), PAGE, Access::ReadWrite, None).unwrap();
    for (answer, error) in [
        (RemoteError::Refused(Errno::ENODEV), DmaError::Remote(Errno::ENODEV)),
        (RemoteError::WouldDeadlock, DmaError::WouldDeadlock),
        (RemoteError::Disconnected, DmaError::Disconnected),
    ] {
        *client.far.answer.lock().unwrap() = Err(answer);
        assert_eq!(client.dma.read(iova(0), &mut [0; 8]), Err(error));
        assert_eq!(client.dma.write(iova(0), &[0; 8]), Err(error));
        assert_eq!(client.dma.load_u32(iova(0)), Err(error));
    }
    assert_eq!(DmaError::WouldDeadlock.errno().raw(), libc::EDEADLK);
}
