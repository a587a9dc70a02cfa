//! Lookup without a lock: from a user address to a region, and to the host addresses of its pages.

pub(crate) mod holder;
pub(crate) mod index;
pub(crate) mod index_entry;
pub(crate) mod pages;
pub(crate) mod prefetch;
pub(crate) mod region;
pub(crate) mod snapshot;
