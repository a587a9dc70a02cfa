//! Pin back ends on the kernel's VFIO: type1 containers ([`VfioType1`](type1::VfioType1)) and SPAPR TCE v2 containers
//! ([`VfioSpaprV2`](spapr::VfioSpaprV2)).
//!
//! Modules, lowest first: `bar` (mapped registers), `uapi` (structs as bytes), `kernel` (the port), `error`; `sysfs`,
//! `prefault`, `sys` (the port on this machine), `ioctl_trace` (the port, recorded), `host`; `device`, `container`,
//! `iova`, `type1_limits`; `kernel_pins` (shared by the back ends); the back ends `type1` and `spapr`; `groups`
//! (reports).
//!
//! Kernels report success for requests that they did not carry out. So a positive return value is a failure, an unmap
//! counts only if the kernel confirms the whole size, and requests that current kernels mishandle are not made (see
//! `spapr`).

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
