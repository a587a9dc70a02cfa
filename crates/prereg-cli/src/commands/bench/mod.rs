//! `prereg bench`: measurements of tests/bench, printed as tables or as JSON.

pub mod hot_path;
pub mod nvme;
pub mod registration;
