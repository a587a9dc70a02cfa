//! Scenarios 1 to 60 of docs/specification.md, section 6A, by number, on the simulated host with 4 KiB and with
//! 64 KiB system pages.
//!
//! Region A is 16 pages at `a`, B the 16 pages after it; the limit is 64 pages unless a scenario changes it. After
//! every scenario and full teardown nothing may be pinned or charged.

mod charging;
mod counters;
mod fixture;
mod lookup;
mod memory;
mod owners;
