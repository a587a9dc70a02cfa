//! An NVMe controller as a vfio-user device, on pre-registered memory.
//!
//! - [`controller`]: the device. [`NvmeModel`](controller::NvmeModel) makes a controller for each client of a vfio-user
//!   [`Server`](prereg_vfio_user::server::Server).
//! - [`disk`]: storage. [`FileDisk`](disk::FileDisk) is a file or block device through io_uring.
//! - [`engine`]: registers, commands and queues, without I/O, threads and clocks.
//! - [`spec`]: the numbers and layouts of NVM Express 1.4.
//!
//! A module uses only those below it in this list; of `disk`, the engine uses the types of requests and faults, and does no I/O.
//!
//! A controller offers: Read, Write, Flush, Compare, Write Zeroes and Dataset Management (deallocate); all mandatory admin
//! commands and Doorbell Buffer Config; PRPs and SGLs; up to 511 pairs of I/O queues; MSI-X, MSI and INTx; up to 256 namespaces
//! of 512 or 4096 byte blocks, some of which may be write protected. It does not offer fused commands, metadata, reservations,
//! formatting, firmware update and namespace management.
#![cfg(target_os = "linux")]

pub mod controller;
pub mod disk;
pub mod engine;
pub mod spec;
