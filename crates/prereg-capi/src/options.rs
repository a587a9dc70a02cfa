//! Options of an address space: the pin back end and its parameters.

use std::ffi::{c_char, c_int, c_void};

use crate::ports::{prereg_charge_ops, prereg_pin_ops};
use crate::record::records;

/// Pins with io_uring: FOLL_LONGTERM, for any user within RLIMIT_MEMLOCK. The default.
pub const PREREG_BACKEND_IO_URING: u32 = 0;
/// Locks with mlock(2). Locked pages can move: for comparison, not for devices.
pub const PREREG_BACKEND_MLOCK: u32 = 1;
/// Device memory: host address = `fixed_host` + offset; nothing is pinned or charged.
pub const PREREG_BACKEND_FIXED: u32 = 2;
/// The caller's functions pin: see `prereg_pin_ops`.
pub const PREREG_BACKEND_CALLBACKS: u32 = 3;

/// A VFIO container of type1 version 2: a region is mapped into it once, which pins it; host addresses are I/O addresses. The
/// container is opened with the group of `device`; or, if `device` is NULL, it is the caller's own (`container_fd`), in which the caller
/// keeps a group.
pub const PREREG_BACKEND_VFIO_TYPE1: u32 = 4;
/// A VFIO container of SPAPR TCE version 2, on POWER, opened with the group of `device`: memory is registered with it
/// once, and devices reach it through windows (`prereg_window`). Host addresses are user addresses.
pub const PREREG_BACKEND_VFIO_SPAPR_V2: u32 = 5;
/// iommufd with `device` attached: memory is pinned once in a staging IOAS and mapped for devices according to `placement`. Host
/// addresses are I/O addresses.
pub const PREREG_BACKEND_IOMMUFD: u32 = 6;

/// Devices reach all registered memory, at the host addresses of its mappings.
pub const PREREG_PLACEMENT_SHARED: u32 = 0;
/// Devices reach memory that a `prereg_io_table` maps, at its addresses. No device can use host addresses.
pub const PREREG_PLACEMENT_HELD: u32 = 1;

/// Options of a space. Set all of it to zero, then `size`, then the options. An option that the back end does not use is refused
/// with -EINVAL unless it is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_options {
    /// sizeof(struct prereg_options).
    pub size: usize,
    /// A `PREREG_BACKEND_...`.
    pub backend: u32,
    /// The required kind of host addresses, for `PREREG_BACKEND_IO_URING`: ANY, PHYSICAL (fails with -EPERM if they are
    /// hidden) or SLOT_OFFSET.
    pub addresses: u32,
    /// Threads that prefault memory before it is pinned (io_uring); 0: one for each processor, up to 8.
    pub fault_threads: u32,
    /// The page size of `PREREG_BACKEND_FIXED` as a power of two; 0 for the system's.
    pub granule_shift: u32,
    /// The most bytes of one slot (io_uring); 0: the kernel's limit.
    pub slot_limit: u64,
    /// Bytes that may be locked, rounded down to pages; 0: RLIMIT_MEMLOCK. Not with `charge`.
    pub locked_limit: u64,
    /// The descriptor of the container of `PREREG_BACKEND_VFIO_TYPE1`; duplicated. 0 or -1 for the other back ends and with
    /// `device`.
    pub container_fd: c_int,
    /// Zero.
    pub reserved: u32,
    /// The window of `PREREG_BACKEND_FIXED`: its first user address.
    pub fixed_ua: u64,
    /// Its length.
    pub fixed_bytes: u64,
    /// The host address of its first byte.
    pub fixed_host: u64,
    /// Called during the prefault of large memory (io_uring), by the threads that do it: bytes done, bytes in total. A result
    /// other than 0 cancels it: the registration fails with -EINTR and nothing is pinned. May be NULL.
    pub progress: Option<unsafe extern "C" fn(context: *mut c_void, done: u64, total: u64) -> c_int>,
    /// Passed to `progress`; must stay valid as long as the space and everything created from it.
    pub progress_context: *mut c_void,
    /// For `PREREG_BACKEND_CALLBACKS`.
    pub pin: *const prereg_pin_ops,
    /// The caller's account, or NULL.
    pub charge: *const prereg_charge_ops,
    /// For the back ends of VFIO and iommufd: a PCI address as in /sys/bus/pci/devices, "0000:00:04.0".
    pub device: *const c_char,
    /// The placement of memory for devices, for `PREREG_BACKEND_IOMMUFD`: a `PREREG_PLACEMENT_...`.
    pub placement: u32,
    /// Zero.
    pub reserved_too: u32,
}

records!(prereg_options);

impl Default for prereg_options {
    fn default() -> Self {
        Self {
            size: size_of::<Self>(),
            backend: PREREG_BACKEND_IO_URING,
            addresses: 0,
            fault_threads: 0,
            granule_shift: 0,
            slot_limit: 0,
            locked_limit: 0,
            container_fd: 0,
            reserved: 0,
            fixed_ua: 0,
            fixed_bytes: 0,
            fixed_host: 0,
            progress: None,
            progress_context: std::ptr::null_mut(),
            pin: std::ptr::null(),
            charge: std::ptr::null(),
            device: std::ptr::null(),
            placement: PREREG_PLACEMENT_SHARED,
            reserved_too: 0,
        }
    }
}
