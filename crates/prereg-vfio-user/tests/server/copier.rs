//! The example, from the first register to the last byte.

use std::os::fd::AsFd;
use std::time::Duration;

use prereg::{Access, Iova};
use prereg_vfio_user::client::{Client, Eventfd, OwnMemory};
use prereg_vfio_user::server::{MemoryPolicy, Server, ServerSettings};

use crate::fixture::{memory, store};

#[path = "../../examples/copier/device.rs"]
mod device;

fn command(client: &mut Client, source: u64, destination: u64, length: u64, command: u64) {
    for (register, value) in [source, destination, length, command].into_iter().enumerate() {
        client.region_write(0, 8 * register as u64, &value.to_le_bytes()).unwrap();
    }
}

fn register(client: &mut Client, offset: u64) -> u64 {
    let mut value = [0; 8];
    client.region_read(0, offset, &mut value).unwrap();
    u64::from_le_bytes(value)
}

#[test]
fn the_example_copies_and_adds_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copier.sock");
    let server = Server::new(store(MemoryPolicy::EAGER), ServerSettings::default());
    server.listen(&path, std::sync::Arc::new(device::Copiers)).unwrap();
    let mut client = Client::connect(&path).unwrap();

    let mut numbers = [0; 4];
    client.region_read(7, 0, &mut numbers).unwrap();
    assert_eq!(numbers, [0x34, 0x12, 0xe9, 0x11]);

    let guest = memory(1 << 20);
    let data: Vec<u8> = (0..300_000u32).map(|at| (at >> 5) as u8).collect();
    guest.write(0x1000, &data).unwrap();
    let ram = guest.descriptor().unwrap();
    client.dma_map(Iova::new(0), 1 << 20, Access::ReadWrite, Some((ram, 0))).unwrap();
    let told = Eventfd::new().unwrap();
    client.set_eventfds(2, 0, &[told.as_fd()]).unwrap();

    command(&mut client, 0x1000, 0x8_0000, 300_000, 1);
    assert_eq!(told.wait(Duration::from_secs(60)), 1);
    assert_eq!(register(&mut client, 0x20), 2, "it may not reach memory before the driver allows it");
    client.region_write(7, 4, &[0b110, 0]).unwrap();
    command(&mut client, 0x1000, 0x8_0000, 300_000, 1);
    assert_eq!(told.wait(Duration::from_secs(60)), 1);
    assert_eq!(register(&mut client, 0x20), 1);
    let sum = data.iter().map(|byte| u64::from(*byte)).sum::<u64>();
    assert_eq!(register(&mut client, 0x28), sum);
    let mut copy = vec![0; data.len()];
    guest.read(0x8_0000, &mut copy).unwrap();
    assert_eq!(copy, data);

    // From remote memory into mapped memory; signalled by INTx.
    client.serve_from(OwnMemory::new(Iova::new(1 << 32), data.clone()));
    client.dma_map(Iova::new(1 << 32), 299_008, Access::Read, None).unwrap();
    client.clear_irqs(2).unwrap();
    client.set_eventfds(0, 0, &[told.as_fd()]).unwrap();
    command(&mut client, 1 << 32, 0, 4096, 1);
    assert_eq!((told.wait(Duration::from_secs(60)), register(&mut client, 0x20)), (1, 1));
    let mut page = vec![0; 4096];
    guest.read(0, &mut page).unwrap();
    assert_eq!(page, data[..4096]);
    client.region_write(0, 0x20, &[0; 8]).unwrap();

    // An unmapped address, and one that is read-only.
    command(&mut client, 1 << 20, 0, 4096, 2);
    assert_eq!(register(&mut client, 0x20), 2);
    command(&mut client, 0, 1 << 32, 4096, 1);
    assert_eq!(register(&mut client, 0x20), 2);
    client.reset().unwrap();
    assert_eq!(register(&mut client, 0x20), 0);
}
