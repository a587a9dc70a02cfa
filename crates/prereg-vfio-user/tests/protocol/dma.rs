//! DMA_MAP and DMA_UNMAP.

use prereg::{Access, Errno, Iova};
use prereg_vfio_user::wire::{Command, MapMemory, UnmapMemory};
use prereg_vfio_user::{Action, Settings};

use crate::client::{Client, body, command};

fn map_bytes(argsz: u32, flags: u32, offset: u64, iova: u64, bytes: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend([argsz, flags].iter().flat_map(|word| word.to_ne_bytes()));
    out.extend([offset, iova, bytes].iter().flat_map(|word| word.to_ne_bytes()));
    command(1, Command::DMA_MAP, &out)
}

fn unmap_bytes(argsz: u32, flags: u32, iova: u64, bytes: u64) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend([argsz, flags].iter().flat_map(|word| word.to_ne_bytes()));
    out.extend([iova, bytes].iter().flat_map(|word| word.to_ne_bytes()));
    command(1, Command::DMA_UNMAP, &out)
}

#[test]
fn a_map_brings_its_memory_and_is_answered_with_a_header() {
    let mut client = Client::new();
    let Action::MapMemory { map, memory, token } =
        client.action(&map_bytes(32, 3, 0x4000, 0x1000, 0x2000), 1)
    else {
        panic!()
    };
    let expected =
        MapMemory { access: Access::ReadWrite, offset: 0x4000, iova: Iova::new(0x1000), bytes: 0x2000 };
    assert_eq!(map, expected);
    assert_eq!(memory.unwrap().number, 0);
    assert_eq!(token.id(), 1);
    client.session.reply(token, Ok(()));
    let frame = client.frame();
    assert_eq!((frame.header.size, frame.header.flags, frame.header.error), (16, 1, 0));
    assert_eq!(client.pool.held(), 0);
}

#[test]
fn memory_without_a_descriptor_is_memory_too() {
    let mut client = Client::new();
    let action = client.action(&map_bytes(32, 1, 0, 0xfffc_0000, 0x4_0000), 0);
    assert!(matches!(action, Action::MapMemory { memory: None, map, .. } if map.access == Access::Read));
}

#[test]
fn a_failed_map_carries_its_errno() {
    let mut client = Client::new();
    for (said, sent) in
        [(Errno::EEXIST, 17), (Errno::ENOSPC, 28), (Errno::from_raw(0), 5), (Errno::from_raw(-3), 5)]
    {
        let Action::MapMemory { token, .. } = client.action(&map_bytes(32, 3, 0, 0, 0x1000), 1) else {
            panic!()
        };
        client.session.reply(token, Err(said));
        let frame = client.frame();
        assert_eq!((frame.header.size, frame.header.flags, frame.header.error), (16, 0x21, sent));
    }
}

#[test]
fn a_map_may_end_at_the_top() {
    let mut client = Client::new();
    let action = client.action(&map_bytes(32, 3, 0, u64::MAX - 0xfff, 0x1000), 1);
    assert!(matches!(action, Action::MapMemory { .. }));
}

#[test]
fn wrong_maps_are_refused() {
    let mut client = Client::new();
    for (bytes, why) in [
        (map_bytes(31, 3, 0, 0, 0x1000), "argsz"),
        (map_bytes(32, 0, 0, 0, 0x1000), "neither read nor write"),
        (map_bytes(32, 4, 0, 0, 0x1000), "neither read nor write, to be mapped"),
        (map_bytes(32, 1 << 31, 0, 0, 0x1000), "an unknown flag"),
        (map_bytes(32, 3, 0, 0, 0), "nothing"),
        (map_bytes(32, 3, 0, u64::MAX - 0xfff, 0x2000), "past the top"),
        (map_bytes(32, 3, 0, 0x2000, u64::MAX - 0xfff), "far past the top"),
        (map_bytes(32, 3, 0, 0x800, 0x1000), "an unaligned address"),
        (map_bytes(32, 3, 0, 0, 0x1001), "an unaligned length"),
        (map_bytes(32, 3, 0x10, 0, 0x1000), "an unaligned offset"),
        (map_bytes(32, 3, u64::MAX - 0xfff, 0, 0x1000), "an offset that wraps"),
        (command(1, Command::DMA_MAP, &[]), "no body"),
        (command(1, Command::DMA_MAP, &[0; 31]), "a short body"),
    ] {
        assert_eq!(client.refusal(&bytes, 1), 22, "{why}");
    }
    for flags in [3 | 4, 3 | 8] {
        assert_eq!(client.refusal(&map_bytes(32, flags, 0, 0, 0x1000), 0), 22, "no descriptor");
    }
}

#[test]
fn alignment_is_to_the_smallest_page_agreed_on() {
    let mut client = Client::with(Settings::default(), r#"{"capabilities":{"pgsizes":65536}}"#);
    assert_eq!(client.refusal(&map_bytes(32, 3, 0, 0x1000, 0x1000), 1), 22);
    assert_eq!(client.refusal(&unmap_bytes(24, 0, 0x1000, 0x1_0000), 0), 22);
    assert!(matches!(client.action(&map_bytes(32, 3, 0, 0x1_0000, 0x1_0000), 1), Action::MapMemory { .. }));
}

#[test]
fn an_unmap_is_answered_with_itself() {
    let mut client = Client::new();
    for (iova, bytes) in [
        (0, 0x1000),
        (0x1000, u64::MAX - 0xfff),
        (0xfef0_0000, 0xffff_ffff_0110_0000),
        (0, 1 << 63),
        (1 << 63, 1 << 63),
    ] {
        let sent = unmap_bytes(24, 0, iova, bytes);
        let Action::UnmapMemory { unmap, token } = client.action(&sent, 0) else { panic!() };
        assert_eq!(unmap, UnmapMemory::Range { iova: Iova::new(iova), bytes });
        client.session.reply(token, Ok(()));
        let frame = client.frame();
        assert_eq!(frame.header.flags, 1);
        assert_eq!(frame.body, sent[16..]);
    }
}

#[test]
fn everything_is_unmapped_at_once_by_its_flag() {
    let mut client = Client::new();
    let sent = command(1, Command::DMA_UNMAP, &body(|out| UnmapMemory::All.write(out)));
    assert_eq!(sent, unmap_bytes(24, 2, 0, 0));
    let Action::UnmapMemory { unmap: UnmapMemory::All, token } = client.action(&sent, 0) else { panic!() };
    client.session.reply(token, Ok(()));
    assert_eq!(client.frame().body, sent[16..]);
}

#[test]
fn wrong_unmaps_are_refused() {
    let mut client = Client::new();
    for (bytes, why) in [
        (unmap_bytes(23, 0, 0, 0x1000), "argsz"),
        (unmap_bytes(24, 4, 0, 0x1000), "an unknown flag"),
        (unmap_bytes(24, 2, 0x1000, 0), "all, from somewhere"),
        (unmap_bytes(24, 2, 0, 0x1000), "all, of some length"),
        (unmap_bytes(24, 0, 0, 0), "nothing"),
        (unmap_bytes(24, 0, 0x2000, u64::MAX - 0xfff), "past the top"),
        (unmap_bytes(24, 0, 1, 0x1000), "an unaligned address"),
        (unmap_bytes(24, 0, 0, 0xfff), "an unaligned length"),
        (command(1, Command::DMA_UNMAP, &[0; 23]), "a short body"),
    ] {
        assert_eq!(client.refusal(&bytes, 0), 22, "{why}");
    }
}

#[test]
fn a_dirty_bitmap_is_not_supported() {
    let mut client = Client::new();
    let plain = unmap_bytes(24, 1, 0, 0x1000);
    assert_eq!(client.refusal(&plain, 0), 95);
    for tail in [16, 24] {
        let mut described = plain[16..].to_vec();
        described.extend(vec![0; tail]);
        assert_eq!(client.refusal(&command(1, Command::DMA_UNMAP, &described), 0), 95);
    }
}

#[test]
fn requests_are_answered_in_any_order() {
    let mut client = Client::new();
    let mut tokens = Vec::new();
    for id in 0..100_u16 {
        let mut bytes = unmap_bytes(24, 0, u64::from(id) << 12, 0x1000);
        bytes[..2].copy_from_slice(&id.to_ne_bytes());
        let Action::UnmapMemory { token, .. } = client.action(&bytes, 0) else { panic!() };
        tokens.push(token);
    }
    for token in tokens.into_iter().rev() {
        client.session.reply(token, Ok(()));
    }
    for (frame, id) in client.frames().iter().zip((0..100_u16).rev()) {
        assert_eq!(frame.header.id, id);
        let expected = UnmapMemory::Range { iova: Iova::new(u64::from(id) << 12), bytes: 0x1000 };
        assert_eq!(UnmapMemory::read(&frame.body), Ok(expected));
    }
}
