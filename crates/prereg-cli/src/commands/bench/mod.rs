//! `prereg bench`: measurements of tests/bench, printed as tables or as JSON.

pub(crate) mod hot_path;
pub(crate) mod nvme;
pub(crate) mod registration;
