//! The controller without I/O, threads and clocks: what registers, commands and queues mean.
//!
//! Whoever drives it lends it guest memory ([`memory::GuestMemory`]), disks ([`storage::Storage`]), doorbells
//! ([`board::Doorbells`]) and the time, and carries out what it asks for.
//!
//! Lowest first: `memory`, `storage` and `board` (the ports), `runs`, `prp`, `sgl` (where data are), `namespace`, `plan` (what an
//! I/O command means), `window`, `shadow`, `doorbell`, `submission`, `completion`, `outage` (queues in guest memory), `flying`, `counters`,
//! `error_log`, `event`, `shared`; then `lane` (I/O queues from doorbell to completion), `identity`, `feature`, `log_page`, `admin`
//! (admin commands), `desk` (the admin queue pair), and `registers`.

pub mod admin;
pub mod board;
pub mod completion;
pub mod counters;
pub mod desk;
pub mod doorbell;
pub mod error_log;
pub mod event;
pub mod feature;
pub mod flying;
pub mod identity;
pub mod lane;
pub mod log_page;
pub mod memory;
pub mod namespace;
pub mod outage;
pub mod plan;
pub mod prp;
pub mod registers;
pub mod runs;
pub mod sgl;
pub mod shadow;
pub mod shared;
pub mod storage;
pub mod submission;
pub mod window;
