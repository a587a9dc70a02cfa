//! Capabilities of this host and user: the facts of `prereg doctor`, as plain data.
//!
//! A fact that cannot be determined is `None` or an empty list, not an error, so that unusual hosts are reported too.
//! `probe` queries the system, `parse` parses files, `backends` and `vfio` assess the back ends, `report` has the
//! result.

mod backends;
mod parse;
mod probe;
pub(crate) mod report;
mod vfio;
