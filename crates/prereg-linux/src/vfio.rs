//! The kernel's VFIO as a pin back end: type1 containers ([`VfioType1`]) and SPAPR TCE v2 containers ([`VfioSpaprV2`]).
//!
//! Who builds on whom, lowest first: `bar` (mapped registers), `layout` (structs as bytes), `kernel` (the port: requests,
//! descriptors), `error`; `sysfs`, `presence`, `sys` (the port on this machine), `log` (the port, listened to), `host`; `device`,
//! `container`, `iova`, `info`; the back ends `type1` and `spapr`; `groups`, for reports. Unsafe code is in `sys` and `bar`.
//!
//! What goes wrong here: a kernel that says yes to what it did not do. No positive number is a success, no unmap is believed
//! that does not name the whole size, and what the kernel is known to get wrong it is not asked (see `spapr`).

mod bar;
pub(crate) mod container;
pub(crate) mod device;
pub(crate) mod error;
mod groups;
pub(crate) mod host;
mod ioctl_trace;
pub(crate) mod iova;
pub(crate) mod kernel;
#[cfg(test)]
pub(crate) mod kernel_model;
pub(crate) mod kernel_pins;
mod prefault;
#[cfg(test)]
pub(crate) mod replay;
mod spapr;
mod sys;
mod sysfs;
mod type1;
mod type1_limits;
pub(crate) mod uapi;
#[cfg(test)]
mod uapi_headers;

pub use bar::Bar;
pub use device::VfioDevice;
pub use error::{BoundDriver, VfioError};
pub use groups::{GroupLimits, GroupReport};
pub use host::VfioHost;
pub use ioctl_trace::IoctlTrace;
pub use spapr::{
    RawSpaprContainer, SpaprLimits, SpaprState, SpaprTable, SpaprTableError, VfioSpaprV2, WindowPlace,
};
pub use sysfs::GroupDevice;
#[cfg(test)]
pub(crate) use sysfs::tests::tree;
pub use type1::{Type1State, VfioType1};
pub use type1_limits::Type1Limits;
