//! DMA_MAP and DMA_UNMAP: mappings, waiting unmaps, and memory shared by two clients.

use std::os::fd::AsFd;

use prereg::{Access, Errno, Iova};
use prereg_vfio_user::client::{Client, ClientError};
use prereg_vfio_user::server::DmaError;

use crate::fixture::{Fixture, memory, until, wrong_descriptors};

const MIB: u64 = 1 << 20;
const BOTH: Access = Access::ReadWrite;

fn iova(raw: u64) -> Iova {
    Iova::new(raw)
}

fn errno(result: Result<(), ClientError>) -> i32 {
    match result {
        Ok(()) => 0,
        Err(ClientError::Refused { errno, .. }) => errno.raw(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn a_device_reads_and_writes_what_its_client_mapped() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let guest = memory(MIB);
    guest.write(0x5000, b"from the guest").unwrap();
    client.dma_map(iova(0x10_0000), MIB, BOTH, Some((guest.descriptor().unwrap(), 0))).unwrap();
    let dma = fixture.probes.device(0).bus.dma.clone();
    let mut back = [0; 14];
    dma.read(iova(0x10_5000), &mut back).unwrap();
    assert_eq!(&back, b"from the guest");
    dma.write(iova(0x10_7ffe), b"from the device").unwrap();
    let mut back = [0; 15];
    guest.read(0x7ffe, &mut back).unwrap();
    assert_eq!(&back, b"from the device");
    client.dma_unmap(iova(0x10_0000), MIB).unwrap();
    assert!(fixture.probes.device(0).said("unmapping 0x100000 0x100000"));
    assert!(matches!(dma.read(iova(0x10_5000), &mut back), Err(DmaError::Unmapped { .. })));
}

#[test]
fn an_unmap_covers_no_one_and_many_mappings_and_splits_none() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let guest = memory(MIB);
    let ram = guest.descriptor().unwrap();
    for page in 0..16 {
        client.dma_map(iova(page * 0x1_0000), 0x1_0000, BOTH, Some((ram, page * 0x1_0000))).unwrap();
    }
    assert_eq!(errno(client.dma_unmap(iova(1 << 40), MIB)), 0, "nothing is there");
    assert_eq!(errno(client.dma_unmap(iova(0x1000), 0x1_0000)), 22);
    assert_eq!(errno(client.dma_unmap(iova(0x1_0000), 0x1000)), 22);
    assert_eq!(fixture.snapshot().clients[0].dma.iova.mappings, 16);
    assert_eq!(errno(client.dma_unmap(iova(0), 0x8_0000)), 0);
    assert_eq!(fixture.snapshot().clients[0].dma.iova.mappings, 8);
    // QEMU's unmap when a guest disables its IOMMU: the end is exactly 2^64.
    assert_eq!(errno(client.dma_unmap(iova(0x1000), u64::MAX - 0xfff)), 0);
    assert_eq!(fixture.snapshot().clients[0].dma.iova.mappings, 0);
    client.dma_map(iova(0), MIB, BOTH, Some((ram, 0))).unwrap();
    client.dma_unmap_all().unwrap();
    client.dma_unmap_all().unwrap();
    assert_eq!(fixture.snapshot().clients[0].dma.iova.mappings, 0);
}

#[test]
fn maps_that_cannot_be_are_refused_and_change_nothing() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let guest = memory(MIB);
    let ram = guest.descriptor().unwrap();
    client.dma_map(iova(MIB), MIB, BOTH, Some((ram, 0))).unwrap();
    let before = fixture.snapshot();
    for (at, bytes) in
        [(MIB, MIB), (0, 2 * MIB), (2 * MIB - 0x1000, MIB), (MIB + 0x1000, 0x1000), (0, !0xfff)]
    {
        let result = errno(client.dma_map(iova(at), bytes, BOTH, Some((ram, 0))));
        assert!([17, 22].contains(&result), "{at:#x} {bytes:#x}: {result}");
    }
    assert_eq!(errno(client.dma_map(iova(MIB), 0x1000, BOTH, Some((ram, 0)))), 17);
    assert_eq!(errno(client.dma_map(iova(MIB), 0x1000, BOTH, None)), 17);
    for (at, bytes, offset) in
        [(1, 0x1000, 0), (0, 1, 0), (0, 0, 0), (0, 0x1000, 1), (u64::MAX - 0xfff, 0x2000, 0)]
    {
        assert_eq!(errno(client.dma_map(iova(at), bytes, BOTH, Some((ram, offset)))), 22);
    }
    for offset in [MIB, MIB - 0x1000, u64::MAX - 0x1fff, 1 << 62] {
        assert_ne!(
            errno(client.dma_map(iova(8 * MIB), 0x2000, BOTH, Some((ram, offset)))),
            0,
            "past the end"
        );
    }
    let after = fixture.snapshot();
    assert_eq!(after.clients[0].dma.iova, before.clients[0].dma.iova);
    assert_eq!(after.store.space.regions, before.store.space.regions);
}

#[test]
fn descriptors_that_are_no_memory_are_refused() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    for (kind, wrong) in wrong_descriptors(fixture.folder.path()) {
        let result = errno(client.dma_map(iova(0), 0x1000, BOTH, Some((wrong.as_fd(), 0))));
        assert_ne!(result, 0, "{kind}");
        client.dma_unmap(iova(0), 0x1000).unwrap();
    }
    assert!(fixture.snapshot().store.files.is_empty());
}

#[test]
fn two_clients_with_the_same_memory_share_one_registration() {
    let fixture = Fixture::new();
    let guest = memory(MIB);
    let ram = guest.descriptor().unwrap();
    let mut clients = [fixture.client(), fixture.client(), fixture.client()];
    for (at, client) in (0..).zip(&mut clients) {
        client.dma_map(iova(at * MIB), MIB, BOTH, Some((ram, 0))).unwrap();
        for page in 0..64 {
            let place = (1 << 30) + page * 0x2000;
            client.dma_map(iova(place), 0x1000, Access::Read, Some((ram, page * 0x1000))).unwrap();
        }
    }
    let state = fixture.snapshot();
    assert_eq!((state.store.files.len(), state.store.space.regions.len()), (1, 1));
    assert_eq!(state.store.registrations, 1);
    assert_eq!(state.clients.iter().map(|client| client.dma.iova.mappings).sum::<u64>(), 3 * 65);
    let [first, second, third] = clients;
    drop((first, second));
    until("two of them leave", || fixture.snapshot().clients.len() == 1);
    let dma = fixture.probes.device(2).bus.dma.clone();
    dma.write(iova(2 * MIB), b"still here").unwrap();
    assert_eq!(fixture.snapshot().store.space.regions.len(), 1);
    drop(third);
    fixture.settle();
}

#[test]
fn an_unmap_is_answered_after_the_last_access_and_no_thread_waits_meanwhile() {
    let fixture = Fixture::new();
    let (mut client, mut other) = (fixture.client(), fixture.client());
    let guest = memory(MIB);
    let ram = guest.descriptor().unwrap();
    for client in [&mut client, &mut other] {
        client.dma_map(iova(0), MIB, BOTH, Some((ram, 0))).unwrap();
    }
    let probe = fixture.probes.device(0);
    let holds: Vec<_> =
        (0..3).map(|at| probe.bus.dma.hold(iova(at * 0x1000), 0x1000, BOTH).unwrap()).collect();
    let unmap = client.post_dma_unmap(iova(0), MIB).unwrap();
    client.region_write(0, 0, &[1]).unwrap();
    assert!(!client.is_answered(unmap).unwrap());
    assert!(matches!(
        probe.bus.dma.hold(iova(0), 1, BOTH),
        Err(DmaError::Closing { .. } | DmaError::Unmapped { .. })
    ));

    let state = fixture.snapshot();
    let waits = &state.clients[0].unmaps;
    assert_eq!((waits.len(), waits[0].mappings.len(), waits[0].mappings[0].accesses), (1, 1, 3));

    // The range is free at once, for both clients.
    client.dma_map(iova(0), 0x1000, BOTH, Some((ram, 0x4000))).unwrap();
    other.dma_unmap(iova(0), MIB).unwrap();
    probe.bus.dma.write(iova(0), b"new").unwrap();
    holds[0].write(0, b"old").unwrap();
    let (mut old, mut new) = ([0; 3], [0; 3]);
    guest.read(0, &mut old).unwrap();
    guest.read(0x4000, &mut new).unwrap();
    assert_eq!((&old, &new), (b"old", b"new"));

    let mut holds = holds;
    while holds.len() > 1 {
        holds.pop();
        client.region_write(0, 0, &[1]).unwrap();
        assert!(!client.is_answered(unmap).unwrap(), "{} are left", holds.len());
    }
    drop(holds);
    client.wait(unmap).unwrap();
    assert!(fixture.snapshot().clients[0].unmaps.is_empty());
}

#[test]
fn holds_released_by_the_device_on_unmap_do_not_delay_the_client() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let guest = memory(MIB);
    client.dma_map(iova(0), MIB, BOTH, Some((guest.descriptor().unwrap(), 0))).unwrap();
    let probe = fixture.probes.device(0);
    let hold = probe.bus.dma.hold(iova(0), 0x1000, BOTH).unwrap();
    probe.holds.lock().unwrap().push(hold);
    // The device drops them only when its client is gone; so the unmap waits, but the disconnect does not.
    let unmap = client.post_dma_unmap(iova(0), MIB).unwrap();
    assert!(!client.is_answered(unmap).unwrap());
    drop(client);
    fixture.settle();
}

#[test]
fn a_client_has_as_many_maps_as_were_agreed_on() {
    let fixture = Fixture::new();
    let mut client = Client::over(std::os::unix::net::UnixStream::connect(&fixture.path).unwrap());
    client.version(0, 1, r#"{"capabilities":{"max_dma_maps":3}}"#).unwrap();
    let guest = memory(MIB);
    let ram = guest.descriptor().unwrap();
    for page in 0..3 {
        client.dma_map(iova(page << 12), 0x1000, BOTH, Some((ram, 0))).unwrap();
    }
    let full = client.dma_map(iova(3 << 12), 0x1000, BOTH, Some((ram, 0))).unwrap_err();
    assert_eq!(full.errno(), Errno::ENOSPC);
    client.dma_unmap(iova(1 << 12), 0x1000).unwrap();
    client.dma_map(iova(3 << 12), 0x1000, BOTH, Some((ram, 0))).unwrap();
}

#[test]
fn a_device_keeps_to_what_the_mapping_allows() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let guest = memory(MIB);
    let ram = guest.descriptor().unwrap();
    client.dma_map(iova(0), 0x1000, Access::Read, Some((ram, 0))).unwrap();
    client.dma_map(iova(0x1000), 0x1000, Access::Write, Some((ram, 0x1000))).unwrap();
    let dma = fixture.probes.device(0).bus.dma.clone();
    dma.read(iova(0), &mut [0; 4096]).unwrap();
    dma.write(iova(0x1000), &[0; 4096]).unwrap();
    assert!(matches!(dma.write(iova(0), &[0]), Err(DmaError::Protected { .. })));
    assert!(matches!(dma.read(iova(0x1000), &mut [0]), Err(DmaError::Protected { .. })));
    assert!(matches!(dma.write(iova(0xfff), &[0; 2]), Err(DmaError::Protected { .. })));
}

#[test]
fn a_hundred_thousand_maps_are_too_many_and_leave_nothing() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let guest = memory(MIB);
    let ram = guest.descriptor().unwrap();
    let (mut good, mut full) = (0u32, 0u32);
    let mut posted = std::collections::VecDeque::new();
    for page in 0..100_000u64 {
        posted.push_back(client.post_dma_map(iova(page << 12), 0x1000, BOTH, Some((ram, 0))).unwrap());
        if posted.len() > 64 || page == 99_999 {
            for map in posted.drain(..) {
                match client.wait(map) {
                    Ok(_) => good += 1,
                    Err(error) => {
                        assert_eq!(error.errno(), Errno::ENOSPC);
                        full += 1;
                    }
                }
            }
        }
    }
    assert_eq!((good, full), (65_535, 100_000 - 65_535));
    assert_eq!(fixture.snapshot().store.registrations, 1, "however many maps");
    drop(client);
    fixture.settle();
}
