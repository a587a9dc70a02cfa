//! Measurements that stand on their own: each compares us with the machine's own limit in the same run.

pub mod hot_path;
pub mod nvme;
pub mod registration;
pub mod spread;
