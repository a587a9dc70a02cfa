//! How an address space is made: which back end pins, and what each can be told.

use std::ffi::{c_char, c_int, c_void};

use crate::ports::{prereg_charge_ops, prereg_pin_ops};
use crate::record::records;

/// Pins with io_uring: FOLL_LONGTERM, for any user within RLIMIT_MEMLOCK. What 0 chooses.
pub const PREREG_BACKEND_IO_URING: u32 = 0;
/// Locks with mlock(2). Locked pages still move: for comparison, not for devices.
pub const PREREG_BACKEND_MLOCK: u32 = 1;
/// Device memory: host address = `fixed_host` + offset; nothing is pinned or charged.
pub const PREREG_BACKEND_FIXED: u32 = 2;
/// The caller pins: see `prereg_pin_ops`.
pub const PREREG_BACKEND_CALLBACKS: u32 = 3;

/// A VFIO container of type1 version 2: a region is mapped into it once, and that pins it; host addresses are I/O addresses. The
/// container is made here with the group of `device` in it; or, where `device` is NULL, it is one that the caller opened and gave a
/// group to (`container_fd`), and the caller keeps a group in it.
pub const PREREG_BACKEND_VFIO_TYPE1: u32 = 4;
/// A VFIO container of SPAPR TCE version 2, on POWER, made here with the group of `device` in it: memory is registered with it
/// once, and devices reach it through windows (`prereg_window`). Host addresses are user addresses.
pub const PREREG_BACKEND_VFIO_SPAPR_V2: u32 = 5;
/// iommufd with `device` attached: memory is pinned once in a space of its own and shown to devices as `placement` says. Host
/// addresses are I/O addresses.
pub const PREREG_BACKEND_IOMMUFD: u32 = 6;

/// Devices reach all that is registered, at the host addresses of its mappings.
pub const PREREG_PLACEMENT_SHARED: u32 = 0;
/// Devices reach what a `prereg_io_table` maps, where it says. Host addresses are no device's.
pub const PREREG_PLACEMENT_HELD: u32 = 1;

/// How a space is made. Set all of it to zero, then `size`, then what is wanted. An option that the back end does not use is refused
/// with -EINVAL unless it is zero.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_options {
    /// sizeof(struct prereg_options).
    pub size: usize,
    /// A `PREREG_BACKEND_...`.
    pub backend: u32,
    /// The required kind of host addresses, for `PREREG_BACKEND_IO_URING`: ANY, PHYSICAL (fails with -EPERM where they are
    /// hidden) or SLOT_OFFSET.
    pub addresses: u32,
    /// Threads that bring memory in before it is pinned (io_uring); 0: one for each processor, up to 8.
    pub fault_threads: u32,
    /// The page of `PREREG_BACKEND_FIXED` as a power of two; 0 for this system's.
    pub granule_shift: u32,
    /// The most bytes that one slot takes (io_uring); 0: what the kernel allows.
    pub slot_limit: u64,
    /// Bytes that may be locked, rounded down to pages; 0: RLIMIT_MEMLOCK, as the kernel has it. Not with `charge`.
    pub locked_limit: u64,
    /// The descriptor of the container of `PREREG_BACKEND_VFIO_TYPE1`; duplicated. 0 or -1 for the other back ends and beside
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
    /// Called while much memory is brought in (io_uring), from the threads that do it: bytes done, bytes in all. Anything
    /// but 0 stops it: the registration fails with -EINTR and nothing is pinned. May be NULL.
    pub progress: Option<unsafe extern "C" fn(context: *mut c_void, done: u64, total: u64) -> c_int>,
    /// Passed to `progress`; must stay good as long as the space or anything made from it.
    pub progress_context: *mut c_void,
    /// For `PREREG_BACKEND_CALLBACKS`.
    pub pin: *const prereg_pin_ops,
    /// The caller's account, or NULL.
    pub charge: *const prereg_charge_ops,
    /// For the back ends of VFIO and iommufd: a PCI device as /sys/bus/pci/devices names it, "0000:00:04.0".
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
