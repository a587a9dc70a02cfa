//! The smallest device: `cargo run -p prereg-vfio-user --example adder -- /run/adder.sock`. docs/writing-a-device.md explains it.

use std::sync::Arc;

use prereg::{AddressSpace, Iova};
use prereg_linux::IoUring;
use prereg_vfio_user::pci::Identity;
use prereg_vfio_user::server::{MemoryPolicy, MemoryStore, Server, ServerSettings};
use prereg_vfio_user::{PciContext, PciFunction, PciFunctionFactory};

/// A write of an address to register 0 adds up the 4096 bytes there; register 8 is the sum, or all ones if they cannot be read.
pub(crate) struct Adder(pub(crate) PciContext, pub(crate) u64);

impl PciFunction for Adder {
    fn read(&mut self, offset: u64, _bytes: u32) -> u64 {
        if offset == 8 { self.1 } else { 0 }
    }

    fn write(&mut self, offset: u64, value: u64, _bytes: u32) {
        if offset == 0 {
            let mut page = [0; 4096];
            let read = self.0.read(Iova::new(value), &mut page);
            self.1 = read.map_or(u64::MAX, |()| page.iter().map(|byte| u64::from(*byte)).sum());
            self.0.interrupt();
        } else {
            self.0.deassert();
        }
    }

    fn reset(&mut self) {
        self.1 = 0;
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args_os().nth(1).ok_or("usage: adder SOCKET")?;
    let identity = Identity { vendor: 0x1234, device: 0x11ea, class: 0x0b_40_00, ..Identity::default() };
    let adder = PciFunctionFactory::new("adder", identity, 16, |context| Adder(context, 0))?;
    let store = MemoryStore::new(AddressSpace::builder(IoUring::new()?).build()?, MemoryPolicy::BACKGROUND);
    let server = Server::new(Arc::new(store), ServerSettings::default());
    let listening = server.listen(std::path::Path::new(&path), Arc::new(adder))?;
    println!("serving on {}; end my input to stop me", listening.path().display());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    server.stop();
    Ok(())
}
