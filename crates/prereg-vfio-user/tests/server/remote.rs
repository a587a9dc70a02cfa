//! Memory that only the client can access: DMA_READ and DMA_WRITE.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use prereg::{Access, Errno, Iova};
use prereg_vfio_user::client::{Client, OwnMemory, ServedMemory};
use prereg_vfio_user::server::{DmaError, ServerSettings};
use prereg_vfio_user::wire::{Command, DeviceInfo, Header, MessageType};

use crate::fixture::{Fixture, HOOK, Probes, until};

const START: u64 = 0x10_0000;

fn iova(offset: u64) -> Iova {
    Iova::new(START + offset)
}

/// A client with `bytes` of memory without a descriptor.
fn with_memory(fixture: &Fixture, bytes: usize) -> (Client, Vec<u8>) {
    let data: Vec<u8> = (0..bytes).map(|at| ((at * 31) >> 3) as u8).collect();
    let mut client = fixture.client();
    client.serve_from(OwnMemory::new(iova(0), data.clone()));
    client.dma_map(iova(0), bytes as u64, Access::ReadWrite, None).unwrap();
    (client, data)
}

/// Serves the server's requests until `done` is set.
fn serve(client: &mut Client, done: &mpsc::Receiver<()>) {
    while done.try_recv() == Err(mpsc::TryRecvError::Empty) {
        // Its reply comes after the server's requests meanwhile.
        client.device_info().unwrap();
    }
}

#[test]
fn other_threads_read_and_write_it_in_parts() {
    let fixture = Fixture::new();
    let (mut client, data) = with_memory(&fixture, 1 << 20);
    let dma = fixture.probes.device(0).bus.dma.clone();
    let (say, done) = mpsc::channel();
    let worker = thread::spawn(move || {
        let mut back = vec![0; (1 << 20) - 3];
        dma.read(iova(3), &mut back).unwrap();
        dma.write(iova(0), &back[..300_000]).unwrap();
        let mut again = vec![0; 300_000];
        dma.read(iova(0), &mut again).unwrap();
        say.send(()).unwrap();
        (back, again)
    });
    serve(&mut client, &done);
    let (back, again) = worker.join().unwrap();
    assert_eq!(back, data[3..]);
    assert_eq!(again, back[..300_000]);
    let requests = &fixture.snapshot().clients[0].requests;
    assert!(requests.transfers >= 3 && requests.transferred_bytes >= 1 << 20);
}

#[test]
fn several_threads_wait_at_once_and_each_gets_its_own() {
    let fixture = Fixture::new();
    let (mut client, data) = with_memory(&fixture, 64 << 10);
    let dma = fixture.probes.device(0).bus.dma.clone();
    let (say, done) = mpsc::channel();
    let all = thread::spawn(move || {
        thread::scope(|scope| {
            for worker in 0..8u64 {
                let (dma, data) = (&dma, &data);
                scope.spawn(move || {
                    for round in 0..50 {
                        let offset = (worker * 4096 + round * 64) % (60 << 10);
                        let mut back = [0; 100];
                        dma.read(iova(offset), &mut back).unwrap();
                        assert_eq!(back, data[offset as usize..][..100]);
                    }
                });
            }
        });
        say.send(()).unwrap();
    });
    serve(&mut client, &done);
    all.join().unwrap();
}

#[test]
fn the_clients_own_thread_can_have_it_in_the_middle_of_a_request() {
    let fixture = Fixture::new();
    fixture.probes.hook(|probe, _, from| {
        let mut back = vec![0; 200_000];
        probe.bus.dma.read(iova(0), &mut back).map_err(|error| error.errno())?;
        probe.bus.dma.write(iova(200_000), &back[..1000]).map_err(|error| error.errno())?;
        probe.say(format!("{from:?} {}", back[199_999]));
        Ok(())
    });
    let (mut client, data) = with_memory(&fixture, 1 << 20);
    // Requests that the client sends after it wait.
    let first = client.post(Command::REGION_WRITE, &[], |out| region_write(out, 1)).unwrap();
    let second = client.post(Command::REGION_WRITE, &[], |out| region_write(out, 2)).unwrap();
    client.wait(second).unwrap();
    assert!(client.is_answered(first).unwrap());
    let byte = data[199_999];
    let calls = fixture.probes.device(0).calls.lock().unwrap().clone();
    assert_eq!(calls, [format!("[1] {byte}"), format!("[2] {byte}")]);
}

fn region_write(out: &mut Vec<u8>, byte: u8) {
    use prereg_vfio_user::wire::RegionAccess;
    RegionAccess { offset: 0, region: HOOK, count: 1, data: &[byte] }.write(out);
}

#[test]
fn a_device_that_waits_for_its_workers_does_not_wait_for_ever() {
    // The worker's read needs the client, whose thread waits for the worker.
    let fixture = Fixture::new();
    fixture.probes.hook(|probe, _, _| {
        let dma = probe.bus.dma.clone();
        let worker = thread::spawn(move || dma.read(iova(0), &mut [0; 4096]));
        worker.join().unwrap().map_err(|error| error.errno())
    });
    let (mut client, _) = with_memory(&fixture, 8192);
    client.region_write(HOOK, 0, &[0]).unwrap();
}

/// Refuses each request with another number.
struct Refusing(Arc<AtomicU32>);

impl ServedMemory for Refusing {
    fn read(&mut self, _: Iova, _: &mut [u8]) -> Result<(), Errno> {
        Err(Errno::from_raw(self.0.fetch_add(1, Ordering::Relaxed) as i32 + 1))
    }

    fn write(&mut self, _: Iova, _: &[u8]) -> Result<(), Errno> {
        Err(Errno::ENODEV)
    }
}

#[test]
fn the_clients_errno_is_the_devices() {
    let fixture = Fixture::new();
    fixture.probes.hook(|probe, offset, _| {
        let result = match offset {
            0 => probe.bus.dma.read(iova(0), &mut [0; 16]),
            _ => probe.bus.dma.write(iova(0), &[0; 16]),
        };
        result.map_err(|error| error.errno())
    });
    let (mut client, _) = with_memory(&fixture, 4096);
    client.serve_from(Refusing(Arc::default()));
    for errno in 1..4 {
        assert_eq!(client.region_write(HOOK, 0, &[0]).unwrap_err().errno().raw(), errno);
    }
    assert_eq!(client.region_write(HOOK, 1, &[0]).unwrap_err().errno(), Errno::ENODEV);
}

#[test]
fn waiting_for_a_client_that_disconnects_ends_with_an_error() {
    let fixture = Fixture::new();
    let (mut client, _) = with_memory(&fixture, 4096);
    let workers: Vec<_> = (0..4)
        .map(|_| {
            let dma = fixture.probes.device(0).bus.dma.clone();
            thread::spawn(move || dma.read(iova(0), &mut [0; 4096]))
        })
        .collect();
    // All four requests are sent, and none is answered.
    for _ in 0..4 {
        let (header, _) = client.receive_raw().unwrap();
        assert_eq!((header.command, header.message_type()), (Command::DMA_READ, MessageType::Command));
    }
    drop(client);
    for worker in workers {
        assert_eq!(worker.join().unwrap(), Err(DmaError::Disconnected));
    }
    fixture.settle();
}

#[test]
fn waiting_when_the_server_stops_ends_with_an_error() {
    let fixture = Fixture::new();
    let (mut client, _) = with_memory(&fixture, 4096);
    let dma = fixture.probes.device(0).bus.dma.clone();
    let worker = thread::spawn(move || dma.write(iova(0), &[1; 4096]));
    assert_eq!(client.receive_raw().unwrap().0.command, Command::DMA_WRITE);
    fixture.server.stop();
    assert_eq!(worker.join().unwrap(), Err(DmaError::Disconnected));
}

/// A fixture whose clients are cut off after half a second of waiting.
fn impatient() -> Fixture {
    let mut settings = ServerSettings::default();
    settings.stall_timeout = Some(Duration::from_millis(500));
    Fixture::with(Probes::new(), settings)
}

#[test]
fn a_client_that_does_not_reply_is_cut_off_though_it_sends_other_messages() {
    let fixture = impatient();
    let (mut client, _) = with_memory(&fixture, 4096);
    let dma = fixture.probes.device(0).bus.dma.clone();
    let worker = thread::spawn(move || dma.read(iova(0), &mut [0; 16]));
    assert_eq!(client.receive_raw().unwrap().0.command, Command::DMA_READ);
    while client.post(Command::DEVICE_GET_INFO, &[], DeviceInfo::write_command).is_ok() {
        thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(worker.join().unwrap(), Err(DmaError::Disconnected));
    until("it is cut off", || fixture.snapshot().disconnects.get("stalled") == Some(&1));
}

#[test]
fn a_client_that_does_not_reply_inside_its_own_request_is_cut_off() {
    /// Replies when the test has ended.
    struct Silent(mpsc::Receiver<()>);
    impl ServedMemory for Silent {
        fn read(&mut self, _: Iova, _: &mut [u8]) -> Result<(), Errno> {
            self.0.recv().map_err(|_| Errno::EIO)
        }
        fn write(&mut self, _: Iova, _: &[u8]) -> Result<(), Errno> {
            Err(Errno::EIO)
        }
    }
    let fixture = impatient();
    fixture
        .probes
        .hook(|probe, _, _| probe.bus.dma.read(iova(0), &mut [0; 16]).map_err(|error| error.errno()));
    let (mut client, _) = with_memory(&fixture, 4096);
    let (end, ended) = mpsc::channel();
    client.serve_from(Silent(ended));
    let waiting = thread::spawn(move || client.region_write(HOOK, 0, &[0]).is_err());
    until("it is cut off", || fixture.snapshot().disconnects.get("stalled") == Some(&1));
    drop(end);
    assert!(waiting.join().unwrap());
}

#[test]
fn an_unmap_waits_for_a_transfer_that_is_under_way() {
    let fixture = Fixture::new();
    let (mut client, data) = with_memory(&fixture, 4096);
    let dma = fixture.probes.device(0).bus.dma.clone();
    let worker = thread::spawn(move || {
        let mut back = vec![0; 4096];
        dma.read(iova(0), &mut back).map(|()| back)
    });
    let (header, asked) = client.receive_raw().unwrap();
    let unmap = client.post_dma_unmap(iova(0), 4096).unwrap();
    client.device_info().unwrap();
    assert!(!client.is_answered(unmap).unwrap());
    let state = fixture.snapshot();
    assert_eq!(state.clients[0].unmaps.len(), 1);
    let mut reply = Vec::new();
    Header::reply(header.id, header.command).frame(&mut reply, |out| {
        out.extend_from_slice(&asked.body);
        out.extend_from_slice(&data);
    });
    client.send_raw(&reply, &[]).unwrap();
    client.wait(unmap).unwrap();
    assert_eq!(worker.join().unwrap().unwrap(), data);
    until("the unmap is forgotten", || fixture.snapshot().clients[0].unmaps.is_empty());
}

#[test]
fn replies_to_nothing_are_nothing() {
    let fixture = Fixture::new();
    let mut client = fixture.client();
    let mut bytes = Vec::new();
    for id in 0..200 {
        Header::reply(id, Command::DMA_READ).frame(&mut bytes, |out| out.resize(100, 7));
    }
    client.send_raw(&bytes, &[]).unwrap();
    client.device_info().unwrap();
}
