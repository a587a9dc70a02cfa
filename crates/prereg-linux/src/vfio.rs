//! The kernel's VFIO as a pin back end: type1 containers ([`VfioType1`]) and SPAPR TCE v2 containers ([`VfioSpaprV2`]).
//!
//! Who builds on whom, lowest first: `bar` (mapped registers), `layout` (structs as bytes), `kernel` (the port: requests,
//! descriptors), `error`; `sysfs`, `presence`, `sys` (the port on this machine), `log` (the port, listened to), `host`; `device`,
//! `container`, `iova`, `info`; the back ends `type1` and `spapr`; `groups`, for reports. Unsafe code is in `sys` and `bar`.
//!
//! What goes wrong here: a kernel that says yes to what it did not do. No positive number is a success, no unmap is believed
//! that does not name the whole size, and what the kernel is known to get wrong it is not asked (see `spapr`).

pub(crate) mod bar;
pub(crate) mod container;
pub(crate) mod device;
pub(crate) mod error;
pub(crate) mod groups;
pub(crate) mod host;
pub(crate) mod ioctl_trace;
pub(crate) mod iova;
pub(crate) mod kernel;
#[cfg(test)]
pub(crate) mod kernel_model;
pub(crate) mod kernel_pins;
mod prefault;
#[cfg(test)]
pub(crate) mod replay;
pub(crate) mod spapr;
mod sys;
pub(crate) mod sysfs;
pub(crate) mod type1;
pub(crate) mod type1_limits;
pub(crate) mod uapi;
#[cfg(test)]
mod uapi_headers;

#[cfg(test)]
pub(crate) use sysfs::tests::tree;
