//! The controller without I/O, threads and clocks: what registers, commands and queues do.
//!
//! The caller lends it guest memory ([`memory::GuestMemory`]), disks ([`storage::Storage`]), doorbells
//! ([`queue_table::Doorbells`]) and the time, and executes what it asks for.
//!
//! Modules, lowest first: `memory`, `storage` and `queue_table` (the interfaces to the caller), `sg_list`, `prp`, `sgl` (where
//! data are), `namespace`, `decode` (what an I/O command means), `ring_memory`, `shadow`, `doorbell`, `submission`,
//! `completion`, `backoff` (queues in guest memory), `in_flight`, `counters`, `error_log`, `async_event`, `shared`; then
//! `poll_group` (I/O queues from doorbell to completion), `identify`, `feature`, `log_page`, `admin` (admin commands),
//! `admin_queue`, and `registers`.

pub(crate) mod admin;
pub mod admin_queue;
pub mod async_event;
pub(crate) mod backoff;
pub(crate) mod completion;
pub mod counters;
pub(crate) mod decode;
pub mod doorbell;
pub(crate) mod error_log;
pub(crate) mod feature;
pub mod identify;
pub(crate) mod in_flight;
pub mod log_page;
pub mod memory;
pub mod namespace;
pub mod poll_group;
pub(crate) mod prp;
pub mod queue_table;
pub mod registers;
pub(crate) mod ring_memory;
pub(crate) mod sg_list;
pub(crate) mod sgl;
pub(crate) mod shadow;
pub mod shared;
pub mod storage;
pub(crate) mod submission;
