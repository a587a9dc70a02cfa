//! Measures the server's cost of a DMA_MAP and a DMA_UNMAP of 4 KiB: `cargo run --release -p prereg-vfio-user --example
//! map_cost`.
//!
//! A client maps and unmaps single pages, as for a guest's IOMMU, with 64 and with 65,279 other mappings alive. The processor
//! time is that of the server's thread, as the kernel counts it. For comparison, a thread makes the system calls for these
//! messages and nothing else; the difference is the server's own work.

use std::error::Error;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use prereg::{Access, AddressSpace, Errno, Iova};
use prereg_linux::{GuestMemory, IoUring};
use prereg_vfio_user::client::Client;
use prereg_vfio_user::server::{
    Device, DeviceContext, DeviceFactory, Interest, Layout, MemoryPolicy, MemoryStore, Server,
    ServerSettings, Socket, Transport,
};
use prereg_vfio_user::wire::Header;

const PAGE: u64 = 4096;
/// Maps and unmaps in a round, rounds in a repeat; the best repeat counts.
const BATCH: u64 = 255;
const ROUNDS: u64 = 40;
const REPEATS: u64 = 20;

/// A device that does nothing.
struct Idle;

impl Device for Idle {
    fn layout(&self) -> Layout {
        Layout::pci()
    }
    fn read(&self, _: u32, _: u64, _: &mut [u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn write(&self, _: u32, _: u64, _: &[u8]) -> Result<(), Errno> {
        Ok(())
    }
    fn reset(&self) -> Result<(), Errno> {
        Ok(())
    }
    fn client_gone(&self) {}
}

impl DeviceFactory for Idle {
    fn name(&self) -> &str {
        "idle"
    }
    fn attach(&self, _: DeviceContext) -> Result<Arc<dyn Device>, Errno> {
        Ok(Arc::new(Idle))
    }
}

/// Nanoseconds that the thread called `name` has run.
fn processor_time(name: &str) -> Result<u64, Box<dyn Error>> {
    for task in fs::read_dir("/proc/self/task")? {
        let task = task?.path();
        if fs::read_to_string(task.join("comm"))?.trim() == name {
            let times = fs::read_to_string(task.join("schedstat"))?;
            return Ok(times.split_whitespace().next().ok_or("no time")?.parse()?);
        }
    }
    Err("no such thread".into())
}

/// The cost of a map and of an unmap, in nanoseconds of the server's thread.
fn measure(client: &mut Client, guest: &GuestMemory, thread: &str) -> Result<[f64; 2], Box<dyn Error>> {
    let ram = guest.descriptor().ok_or("a memfd has a descriptor")?;
    let place = |page: u64| Iova::new((1 << 40) + page * PAGE);
    let mut best = [f64::MAX; 2];
    for _ in 0..REPEATS {
        let mut spent = [0; 2];
        for _ in 0..ROUNDS {
            // The first message also ensures that the thread has its name.
            client.dma_map(place(BATCH), PAGE, Access::ReadWrite, Some((ram, 0)))?;
            client.dma_unmap(place(BATCH), PAGE)?;
            let start = processor_time(thread)?;
            for page in 0..BATCH {
                client.dma_map(place(page), PAGE, Access::ReadWrite, Some((ram, page * PAGE)))?;
            }
            let mapped = processor_time(thread)?;
            for page in 0..BATCH {
                client.dma_unmap(place(page), PAGE)?;
            }
            spent[0] += mapped - start;
            spent[1] += processor_time(thread)? - mapped;
        }
        for (best, spent) in best.iter_mut().zip(spent) {
            *best = best.min(spent as f64 / (ROUNDS * BATCH) as f64);
        }
    }
    Ok(best)
}

/// Receives these messages and replies without any work.
fn echo(stream: UnixStream) -> Result<(), Errno> {
    let socket = Socket::new(stream)?;
    let mut buffer = vec![0; 64 << 10];
    let mut descriptors: Vec<OwnedFd> = Vec::new();
    loop {
        socket.wait(Interest { readable: true, writable: false, eventfd: None, time: None })?;
        let received = socket.receive(&mut buffer, &mut descriptors)?;
        let Some(head) = buffer[..received.bytes].first_chunk() else { return Ok(()) };
        let header = Header::read(head);
        for descriptor in descriptors.drain(..) {
            // The server requests the peer's credentials.
            fs::File::from(descriptor).metadata().map_err(|_| Errno::EIO)?;
        }
        let mut reply = Vec::new();
        Header::reply(header.id, header.command).frame(&mut reply, |_| ());
        socket.send(&reply, &[])?;
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let guest = GuestMemory::memfd("guest", 1 << 20)?;
    let (ours, theirs) = UnixStream::pair()?;
    let bare = thread::Builder::new().name("bare".to_owned()).spawn(move || echo(theirs))?;
    let mut client = Client::over(ours);
    let calls = measure(&mut client, &guest, "bare")?;
    drop(client);
    bare.join().map_err(|_| "the thread panicked")?.map_err(|errno| errno.to_string())?;
    let [map, unmap] = calls;
    println!("system calls alone:   a map {map:6.0} ns, an unmap {unmap:6.0} ns");

    let space = AddressSpace::builder(IoUring::new()?).build()?;
    let store = Arc::new(MemoryStore::new(space, MemoryPolicy::EAGER));
    let server = Server::new(store.clone(), ServerSettings::default());
    let (ours, theirs) = UnixStream::pair()?;
    let model: Arc<dyn DeviceFactory> = Arc::new(Idle);
    let number = server.adopt(theirs, &model)?;
    let mut client = Client::over(ours);
    client.negotiate()?;
    let ram = guest.descriptor().ok_or("a memfd has a descriptor")?;
    let mut alive = 0;
    for mappings in [64, 65_535 - BATCH - 1] {
        for page in alive..mappings {
            client.dma_map(
                Iova::new(page * PAGE),
                PAGE,
                Access::ReadWrite,
                Some((ram, page % 256 * PAGE)),
            )?;
        }
        alive = mappings;
        let [map, unmap] = measure(&mut client, &guest, &format!("vfio-user-{number}"))?;
        let (own_map, own_unmap) = (map - calls[0], unmap - calls[1]);
        println!(
            "with {mappings:6} others:   a map {map:6.0} ns, an unmap {unmap:6.0} ns; the server's own {own_map:5.0} and {own_unmap:5.0}"
        );
    }
    println!("registrations: {}", store.snapshot().registrations);
    Ok(())
}
