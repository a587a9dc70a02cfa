//! A complete device server: `cargo run -p prereg-vfio-user --example copier -- /run/copier.sock`.
//!
//! Serves the device of `device.rs` until its standard input ends.

mod device;

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;

use prereg::AddressSpace;
use prereg_linux::IoUring;
use prereg_vfio_user::server::{MemoryPolicy, MemoryStore, Server, ServerSettings};

fn main() -> Result<(), Box<dyn Error>> {
    let path: PathBuf = std::env::args_os().nth(1).ok_or("usage: copier SOCKET")?.into();
    let store = MemoryStore::new(AddressSpace::builder(IoUring::new()?).build()?, MemoryPolicy::EAGER);
    let server = Server::new(Arc::new(store), ServerSettings::default());
    let listening = server.listen(&path, Arc::new(device::Copiers))?;
    println!("serving on {}; end my input to stop me", listening.path().display());
    std::io::copy(&mut std::io::stdin(), &mut std::io::sink())?;
    server.stop();
    Ok(())
}
