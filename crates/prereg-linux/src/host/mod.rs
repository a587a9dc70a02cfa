//! What this host, this user and these limits allow: the facts behind `prereg doctor`, as plain data.
//!
//! Every fact that cannot be had is `None` or an empty list, never an error: a report about a strange host is the one
//! that is needed most. `probe` asks the system, `parse` reads texts, `backends` and `vfio` judge, `report` is what comes out.

mod backends;
mod parse;
mod probe;
pub(crate) mod report;
mod vfio;
