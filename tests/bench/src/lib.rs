//! Measurements of prereg. Each compares prereg with baselines in the same run.
//!
//! - [`hot_path`]: time of a counted translation; [`registration`]: time of registering memory; [`nvme`]: IOPS and processor
//!   time of the NVMe server. `prereg bench` prints them.
//! - [`guarantees`]: instruction counts, memory per page, and mapping without faults, allocations and system calls. The
//!   programs of this package print them.
//! - [`stats`]: medians and ratios of repetitions.

pub mod error;
pub mod guarantees;
pub mod hot_path;
pub mod nvme;
pub mod registration;
pub mod stats;
