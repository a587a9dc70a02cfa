//! The client of the crate `vfio_user`, which cloud-hypervisor uses: each of its requests, and each error.
//!
//! It ignores the errors of DMA_MAP, SET_IRQS and RESET, and waits for ever for the body of a reply without one in all others.
//! Then the test checks the server's counts, and stops it.

use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::Duration;

use prereg::Iova;
use prereg_linux::SharedFile;
use prereg_vfio_user::client::Eventfd;
use prereg_vfio_user::server::{IrqKind, Server, ServerSettings};
use vfio_user::Client;

use crate::fixture::{BAR_BYTES, CONFIG, Fixture, Probes, ROM, memory, until};

const MSIX: u32 = 2;
const ERR: u32 = 3;
/// Eventfds and trigger; nothing and trigger; nothing and unmask.
const TELL: u32 = 0x24;
const TRIGGER: u32 = 0x21;
const UNMASK: u32 = 0x11;

#[test]
fn it_learns_what_the_device_is() {
    let fixture = Fixture::with(Probes::with_doorbells(Vec::new()), ServerSettings::default());
    let mut client = Client::new(&fixture.path).unwrap();
    let sizes: Vec<u64> = (0..9).map(|index| client.region(index).unwrap().size).collect();
    assert_eq!(sizes, [BAR_BYTES, 0, 16, 0, 0x100, 0, 0x800, 0x1000, 0]);
    assert!(client.region(9).is_none());
    let bar = client.region(0).unwrap();
    assert_eq!((bar.sparse_areas[0].offset, bar.sparse_areas[0].size), (0x1000, 0x1000));
    let doorbells = bar.file_offset.as_ref().unwrap();
    let file = doorbells.file().try_clone().unwrap().into();
    let page = SharedFile::of(file).unwrap().map(doorbells.start() + 0x1000, 0x1000).unwrap();
    page.store_u32(0, 7).unwrap();
    assert!(!client.resettable(), "it reads the flag the wrong way round, so this one can be reset");
    for (index, count) in [(0, 1), (1, 4), (2, 64), (3, 1), (4, 1)] {
        let irqs = client.get_irq_info(index).unwrap();
        assert_eq!((irqs.index, irqs.count), (index, count));
    }
    client.shutdown().unwrap();
    fixture.settle();
}

#[test]
fn it_reads_writes_maps_and_gets_interrupts() {
    let fixture = Fixture::new();
    let mut client = Client::new(&fixture.path).unwrap();
    client.region_write(0, 0x10, b"by another client").unwrap();
    let mut back = [0; 17];
    client.region_read(0, 0x10, &mut back).unwrap();
    assert_eq!(&back, b"by another client");
    client.region_read(CONFIG, 0, &mut back[..4]).unwrap();

    let guest = memory(1 << 20);
    guest.write(0x2000, b"guest").unwrap();
    let ram = guest.descriptor().unwrap().as_raw_fd();
    client.dma_map(0x1000, 1 << 30, 0x8000, ram).unwrap();
    let device = fixture.probes.device(0);
    let mut back = [0; 5];
    device.bus.dma.read(Iova::new((1 << 30) + 0x1000), &mut back).unwrap();
    assert_eq!(&back, b"guest");

    let told: Vec<Eventfd> = (0..8).map(|_| Eventfd::new().unwrap()).collect();
    let numbers: Vec<_> = told.iter().map(|eventfd| eventfd.as_fd().as_raw_fd()).collect();
    // Its capabilities say one descriptor, but it sends any number.
    client.set_irqs(MSIX, TELL, 0, 8, &numbers).unwrap();
    assert!(device.bus.interrupts.trigger(IrqKind::Msix, 5));
    assert_eq!(told[5].wait(Duration::from_secs(60)), 1);
    client.set_irqs(MSIX, TRIGGER, 3, 1, &[]).unwrap();
    assert_eq!(told[3].take(), 1);
    client.set_irqs(MSIX, TRIGGER, 0, 0, &[]).unwrap();
    assert!(!device.bus.interrupts.enabled(IrqKind::Msix, 5));
    client.set_irqs(0, TELL, 0, 1, &numbers[..1]).unwrap();
    device.bus.interrupts.set_level(true);
    client.set_irqs(0, UNMASK, 0, 1, &[]).unwrap();
    assert_eq!(told[0].take(), 2);

    client.reset().unwrap();
    assert!(device.said("reset"));
    client.dma_unmap(1 << 30, 0x8000).unwrap();
    client.dma_unmap(0, 1 << 40).unwrap();
    assert!(device.bus.dma.read(Iova::new(1 << 30), &mut back).is_err());
    drop(client);
    fixture.settle();
}

#[test]
fn errors_that_it_does_not_look_at_leave_the_stream_in_step() {
    let fixture = Fixture::new();
    let mut client = Client::new(&fixture.path).unwrap();
    let guest = memory(1 << 20);
    let ram = guest.descriptor().unwrap().as_raw_fd();
    let null = std::fs::File::open("/dev/null").unwrap();
    let socket = std::os::unix::net::UnixStream::pair().unwrap().0;
    client.dma_map(0, 0, 0x1000, ram).unwrap();
    for (offset, address, bytes, descriptor) in [
        (0, 0, 0x1000, ram),
        (0, 1, 0x1000, ram),
        (0, 0x1000, 0, ram),
        (0, u64::MAX - 0xfff, 0x2000, ram),
        (1 << 21, 0x1000, 0x1000, ram),
        (0, 0x1000, 0x1000, null.as_raw_fd()),
        (0, 0x1000, 0x1000, socket.as_raw_fd()),
    ] {
        client.dma_map(offset, address, bytes, descriptor).unwrap();
    }
    client.set_irqs(MSIX, TELL, 0, 1, &[null.as_raw_fd()]).unwrap();
    client.set_irqs(MSIX, TELL, 63, 2, &[null.as_raw_fd(); 2]).unwrap();
    client.set_irqs(ERR, UNMASK, 0, 1, &[]).unwrap();
    client.set_irqs(9, TRIGGER, 0, 0, &[]).unwrap();
    client.set_irqs(MSIX, 0xff, 0, 1, &[]).unwrap();
    let mut back = [0; 4];
    client.region_read(ROM, 0, &mut back).unwrap();
    assert_eq!(back, [6; 4]);
    let requests = fixture.snapshot().clients.remove(0).requests;
    let refused = |command: &str| requests.commands[command].refused.values().sum::<u64>();
    assert_eq!((refused("DMA_MAP"), refused("DEVICE_SET_IRQS")), (7, 5));
    assert_eq!(fixture.snapshot().clients[0].dma.iova.mappings, 1);
}

/// Sends a request whose reply it waits for without end.
fn refused_for_ever(
    command: &str,
    errno: &str,
    ask: impl FnOnce(&mut Client) -> Result<(), vfio_user::Error> + Send + 'static,
) {
    let fixture = Fixture::new();
    let mut other = fixture.client();
    let path = fixture.path.clone();
    let asking = thread::spawn(move || {
        let mut client = Client::new(&path).unwrap();
        let guest = memory(1 << 20);
        client.dma_map(0, 0, 0x4000, guest.descriptor().unwrap().as_raw_fd()).unwrap();
        ask(&mut client)
    });
    until("it is refused", || {
        let state = fixture.snapshot();
        state.requests.commands.get(command).is_some_and(|counts| counts.refused.get(errno) == Some(&1))
    });
    other.device_info().unwrap();
    let Fixture { server, probes, .. } = fixture;
    Server::stop(server);
    assert!(asking.join().unwrap().is_err(), "it found out that something is wrong only now");
    assert!(probes.device(1).said("gone"));
}

#[test]
fn errors_that_it_cannot_read_are_answered_all_the_same() {
    refused_for_ever("REGION_READ", "EINVAL", |client| client.region_read(0, BAR_BYTES, &mut [0; 4]));
    refused_for_ever("REGION_READ", "too-much-data", |client| {
        client.region_read(0, 0, &mut vec![0; 2 << 20])
    });
    refused_for_ever("REGION_WRITE", "EINVAL", |client| client.region_write(ROM, 0, &[0; 4]));
    refused_for_ever("DMA_UNMAP", "EINVAL", |client| client.dma_unmap(0x1000, 0x1000));
    refused_for_ever("DMA_UNMAP", "unaligned", |client| client.dma_unmap(1, 0x1000));
    refused_for_ever("DEVICE_GET_IRQ_INFO", "EINVAL", |client| client.get_irq_info(9).map(|_| ()));
}

#[test]
fn a_place_that_is_taken_is_an_error_and_no_device() {
    let fixture = Fixture::with(Probes::exclusive(), ServerSettings::default());
    let first = Client::new(&fixture.path).unwrap();
    assert!(Client::new(&fixture.path).is_err());
    assert_eq!(fixture.probes.count(), 1);
    drop(first);
    fixture.settle();
    Client::new(&fixture.path).unwrap();
}
