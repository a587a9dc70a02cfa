//! Devices on the scaffold: the smallest example, and accesses that it must not let through.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prereg::{Access, Iova};
use prereg_vfio_user::client::{Client, Eventfd};
use prereg_vfio_user::pci::{Identity, PciError};
use prereg_vfio_user::server::{MemoryPolicy, Server, ServerSettings};
use prereg_vfio_user::{PciContext, PciFunction, PciFunctionFactory};

use crate::fixture::{memory, store};

#[expect(dead_code, reason = "its main")]
#[path = "../../examples/adder.rs"]
mod adder;

fn serve<F, T>(factory: PciFunctionFactory<F>) -> (tempfile::TempDir, Server, Client)
where
    F: Fn(PciContext) -> T + Send + Sync + 'static,
    T: PciFunction,
{
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("device.sock");
    let server = Server::new(store(MemoryPolicy::EAGER), ServerSettings::default());
    server.listen(&path, Arc::new(factory)).unwrap();
    let client = Client::connect(&path).unwrap();
    (folder, server, client)
}

fn register(client: &mut Client, offset: u64) -> u64 {
    let mut value = [0; 8];
    client.region_read(0, offset, &mut value).unwrap();
    u64::from_le_bytes(value)
}

#[test]
fn the_smallest_example_adds_up_a_page_and_interrupts() {
    let identity = Identity { vendor: 0x1234, device: 0x11ea, class: 0x0b_40_00, ..Identity::default() };
    let create = |context| adder::Adder(context, 0);
    let (_folder, _server, mut client) =
        serve(PciFunctionFactory::new("adder", identity, 16, create).unwrap());
    let mut ids = [0; 4];
    client.region_read(7, 0, &mut ids).unwrap();
    assert_eq!(ids, [0x34, 0x12, 0xea, 0x11]);
    let guest = memory(1 << 16);
    let data: Vec<u8> = (0..4096u32).map(|at| (at * 7) as u8).collect();
    guest.write(0x2000, &data).unwrap();
    client.dma_map(Iova::new(0), 1 << 16, Access::Read, Some((guest.descriptor().unwrap(), 0))).unwrap();

    let event = Eventfd::new().unwrap();
    client.set_eventfds(2, 0, &[event.as_fd()]).unwrap();
    client.region_write(0, 0, &0x2000u64.to_le_bytes()).unwrap();
    assert_eq!(event.wait(Duration::from_secs(60)), 1);
    assert_eq!(register(&mut client, 8), u64::MAX, "the driver has not enabled bus mastering");
    client.region_write(7, 4, &[0b110, 0]).unwrap();
    client.region_write(0, 0, &0x2000u64.to_le_bytes()).unwrap();
    assert_eq!(event.wait(Duration::from_secs(60)), 1);
    assert_eq!(register(&mut client, 8), data.iter().map(|byte| u64::from(*byte)).sum::<u64>());
    client.region_write(0, 0, &0x10_0000u64.to_le_bytes()).unwrap();
    assert_eq!(register(&mut client, 8), u64::MAX, "nothing is mapped there");
    client.reset().unwrap();
    assert_eq!(register(&mut client, 8), 0);
}

/// Notes every call.
#[derive(Clone, Default)]
struct Calls(Arc<Mutex<Vec<String>>>, Arc<Mutex<Option<PciContext>>>);

impl PciFunction for Calls {
    fn read(&mut self, offset: u64, bytes: u32) -> u64 {
        self.0.lock().unwrap().push(format!("read {bytes} at {offset}"));
        0x1122_3344_5566_7788
    }

    fn write(&mut self, offset: u64, value: u64, bytes: u32) {
        self.0.lock().unwrap().push(format!("write {bytes} at {offset}: {value:#x}"));
    }

    fn reset(&mut self) {
        self.0.lock().unwrap().push("reset".into());
    }
}

impl Calls {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }

    fn factory(&self) -> PciFunctionFactory<impl Fn(PciContext) -> Calls + Send + Sync + 'static> {
        let calls = self.clone();
        let create = move |context| {
            *calls.1.lock().unwrap() = Some(context);
            calls.clone()
        };
        PciFunctionFactory::new("calls", Identity::default(), 64, create).unwrap()
    }
}

#[test]
fn only_aligned_accesses_to_registers_reach_the_function() {
    let calls = Calls::default();
    let (_folder, _server, mut client) = serve(calls.factory());
    for (offset, bytes) in [(0, 1), (62, 2), (4, 4), (56, 8)] {
        let mut into = vec![0; bytes];
        client.region_read(0, offset, &mut into).unwrap();
        assert_eq!(into, 0x1122_3344_5566_7788u64.to_le_bytes()[..bytes]);
        client.region_write(0, offset, &[0x81; 8][..bytes]).unwrap();
        let value = u64::MAX >> (64 - 8 * bytes) & 0x8181_8181_8181_8181;
        let seen = [format!("read {bytes} at {offset}"), format!("write {bytes} at {offset}: {value:#x}")];
        assert_eq!(calls.take(), seen);
    }
    for (offset, bytes) in [(1, 2), (2, 4), (4, 8), (0, 3), (0, 16), (63, 2)] {
        assert!(client.region_read(0, offset, &mut vec![0; bytes]).is_err(), "{bytes} at {offset}");
        assert!(client.region_write(0, offset, &vec![0; bytes]).is_err(), "{bytes} at {offset}");
    }
    // Behind the registers, as far as the end of the BAR.
    let mut rest = [1; 8];
    client.region_read(0, 64, &mut rest).unwrap();
    assert_eq!(rest, [0; 8]);
    client.region_write(0, 8184, &[1; 8]).unwrap();
    assert!(client.region_write(0, 8192, &[1; 8]).is_err());
    assert_eq!(calls.take(), [""; 0]);
}

#[test]
fn intx_stays_asserted_and_visible_until_it_is_deasserted() {
    let calls = Calls::default();
    let (_folder, _server, mut client) = serve(calls.factory());
    let context = calls.1.lock().unwrap().clone().unwrap();
    let intx = Eventfd::new().unwrap();
    client.set_eventfds(0, 0, &[intx.as_fd()]).unwrap();
    let status = |client: &mut Client| {
        let mut status = [0; 2];
        client.region_read(7, 6, &mut status).unwrap();
        status[0] >> 3 & 1
    };
    context.interrupt();
    assert_eq!((intx.wait(Duration::from_secs(60)), status(&mut client)), (1, 1));
    context.deassert();
    assert_eq!(status(&mut client), 0);
    context.interrupt();
    client.reset().unwrap();
    assert_eq!((status(&mut client), calls.take()), (0, vec!["reset".to_owned()]));
}

#[test]
fn registers_have_a_possible_size() {
    for (bytes, possible) in
        [(0, false), (8, false), (16, true), (24, false), (1 << 20, true), (2 << 30, false)]
    {
        let made =
            PciFunctionFactory::new("adder", Identity::default(), bytes, |context| adder::Adder(context, 0));
        match made {
            Ok(_) => assert!(possible, "{bytes}"),
            Err(error) => {
                assert!(!possible, "{bytes}");
                assert!(matches!(error, PciError::Bar { index: 0, .. }), "{error}");
            }
        }
    }
}
