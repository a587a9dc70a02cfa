//! The controller as a vfio-user device: threads, interrupts, disks and a client's memory around the engine.
//!
//! A [`NvmeModel`] is what a socket serves. For each client it makes a controller: a thread for the admin queue (the admin_thread)
//! and, as soon as I/O queues need them, a few threads that serve I/O queues (the workers). All queues whose completions
//! go to the same completion queue are served by the same worker.
//!
//! Who owns whom:
//! - the model owns the disks and what outlives a client (counters, settings); controllers are the server's;
//! - a controller owns its hub and its admin_thread; the admin_thread owns the workers and whatever admin commands change; a worker owns its
//!   queues and its way to the disks;
//! - the hub is what they share: registers, doorbells, mailboxes, interrupts.
//!
//! The client's thread only takes register accesses and leaves word; it waits in [`Device::reset`] and
//! [`Device::client_gone`] alone, until the disks are done with what they began.
//!
//! What goes wrong: what a guest does is answered by the engine. A client that unmaps queues that are in use finds their holds
//! given back; a disk queue that broke ends its commands with an error and is made anew with the next reset.
//!
//! ```
//! use std::sync::Arc;
//!
//! use prereg_nvme::controller::{NvmeDisk, NvmeModel, NvmeSettings};
//! use prereg_nvme::disk::MemoryDisk;
//!
//! let disk = Arc::new(MemoryDisk::new(64 << 20, 9)?);
//! let model = NvmeModel::new("scratch", vec![NvmeDisk::new(disk)], NvmeSettings::new("SCRATCH0"))?;
//! // `server.listen(path, Arc::new(model))` makes a controller for each client that connects to `path`.
//! assert!(model.snapshot().is_empty(), "nobody is there yet");
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Device::reset`]: prereg_vfio_user::server::Device::reset
//! [`Device::client_gone`]: prereg_vfio_user::server::Device::client_gone

mod admin_channel;
mod admin_thread;
mod device;
mod disks;
mod doorbells;
mod guest;
mod io_channel;
mod io_thread;
mod irq;
mod model;
mod poll_schedule;
mod settings;
mod shared;
mod stats;
mod subsystem;
mod unmap_watch;

pub use model::{NvmeDisk, NvmeModel};
pub use settings::{DoorbellMode, InterruptKinds, NvmeError, NvmeSettings};
pub use stats::NvmeState;
