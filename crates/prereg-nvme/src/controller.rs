//! The controller as a vfio-user device: threads, interrupts, disks and guest memory for the engine.
//!
//! A server makes a controller from an [`NvmeModel`] for each client: an admin thread, and a few I/O threads that start when
//! I/O queues are created. All submission queues of a completion queue are served by the same I/O thread.
//!
//! Ownership:
//! - the model owns the disks and what outlives a client (counters, settings); the server owns the controllers;
//! - a controller owns the state that its threads share and the admin thread, which owns the I/O threads and the state of admin
//!   commands; an I/O thread owns its queues and its disk queues;
//! - the shared state has the registers, doorbells, message channels and interrupts.
//!
//! The client's thread only performs register accesses and sends messages. It waits in [`Device::reset`] and
//! [`Device::client_gone`] alone, until requests in flight are done.
//!
//! Errors: the engine answers whatever a guest does. Before a client's memory is unmapped, holds of queues in it are released.
//! When a disk queue fails, its commands end with an error; it is made anew after the next reset.
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
//! assert!(model.snapshot().is_empty(), "no client yet");
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
mod event;
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

pub use event::NvmeEvent;
pub use model::{NvmeDisk, NvmeModel};
pub use settings::{DoorbellMode, InterruptKinds, NvmeError, NvmeSettings};
pub use stats::NvmeState;
