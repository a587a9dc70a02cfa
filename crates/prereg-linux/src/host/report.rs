//! The report, as plain data.

use prereg::{AddressKind, Errno};

use crate::error::BackendError;
use crate::proc_status::KernelCount;
use crate::vfio::groups::GroupReport;

/// Relevant effective capabilities.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// CAP_IPC_LOCK: may exceed the limit on locked memory.
    pub ipc_lock: bool,
    /// CAP_SYS_ADMIN: may see page frames.
    pub sys_admin: bool,
    /// CAP_SYS_RESOURCE: may raise hard limits.
    pub sys_resource: bool,
}

/// Limits on locked memory and the usage that counts against them, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memlock {
    /// The soft limit; `None` is unlimited.
    pub soft: Option<u64>,
    /// The hard limit; `None` is unlimited.
    pub hard: Option<u64>,
    /// Whether this process may exceed the limit.
    pub privileged: bool,
    /// The usage of this process; `None` without `/proc`.
    pub counted: Option<KernelCount>,
}

impl Memlock {
    /// The bytes that this user may pin; `None` is unlimited.
    #[must_use]
    pub const fn allowance(&self) -> Option<u64> {
        if self.privileged { None } else { self.soft }
    }
}

/// A pool of huge pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HugePool {
    /// The size of one page in bytes.
    pub page_bytes: u64,
    /// Pages in the pool.
    pub total: u64,
    /// Unused pages in the pool.
    pub free: u64,
}

/// Visibility of page frames in `/proc/self/pagemap`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PagemapAccess {
    /// Page frames are visible: host addresses can be physical.
    Frames,
    /// Only the presence of pages is visible.
    Hidden,
    /// The file cannot be read.
    Denied(Errno),
}

/// io_uring on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UringAccess {
    /// `/proc/sys/kernel/io_uring_disabled`: 0 allowed, 1 for privileged users only, 2 forbidden; `None` before Linux
    /// 6.6.
    pub disabled: Option<u64>,
    /// Result of initialising the back end: the bytes that one slot can hold, or the error.
    pub probe: Result<u64, BackendError>,
    /// The kind of its host addresses, if it could be initialised.
    pub addresses: Option<AddressKind>,
}

/// Facts about the host.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct HostReport {
    /// `uname -r`.
    pub kernel: Option<String>,
    /// The real user.
    pub uid: u32,
    /// The effective user.
    pub euid: u32,
    /// Whether this is the initial user namespace, where capabilities are effective.
    pub initial_user_namespace: bool,
    /// Relevant effective capabilities.
    pub capabilities: Capabilities,
    /// Locked memory.
    pub memlock: Memlock,
    /// The system page size in bytes.
    pub page_bytes: u64,
    /// Total memory in bytes.
    pub memory_total: Option<u64>,
    /// Available memory in bytes.
    pub memory_available: Option<u64>,
    /// Pools of huge pages, smallest page first.
    pub huge_pools: Vec<HugePool>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// `/proc/sys/vm/compact_unevictable_allowed`: with 1, compaction moves locked pages.
    pub compact_unevictable_allowed: Option<u64>,
    /// Visibility of page frames.
    pub pagemap: PagemapAccess,
    /// io_uring.
    pub io_uring: UringAccess,
    /// Numbers of the IOMMU groups, ascending.
    pub iommu_groups: Vec<u32>,
    /// Whether `/dev/vfio/vfio` exists.
    pub vfio: bool,
    /// Groups with a node in `/dev/vfio`, ascending.
    pub vfio_groups: Vec<u32>,
    /// Whether `/dev/iommu` exists.
    pub iommufd: bool,
    /// The IOMMU groups with their devices and limits.
    pub groups: Vec<GroupReport>,
    /// The most mappings of one type1 container; `None` when its driver is not loaded.
    pub type1_mappings: Option<u64>,
    /// A report on each back end.
    pub backends: Vec<BackendReport>,
}

/// A report on a back end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendReport {
    /// Its name, as in [`Pin::name`](prereg::Pin::name).
    pub name: &'static str,
    /// Whether this process can initialise it now.
    pub usable: bool,
    /// Whether it really pins pages.
    pub pins: bool,
    /// The kind of its host addresses, if it is usable.
    pub addresses: Option<AddressKind>,
    /// The most bytes that it can pin; `None` is unlimited. Meaningless if it is not usable.
    pub allowance: Option<u64>,
    /// A sentence that says why it is usable or not.
    pub why: String,
    /// How to make it usable, or to raise its limit; `None` when nothing is missing.
    pub remedy: Option<String>,
}

impl HostReport {
    /// The report on the back end `name`.
    #[must_use]
    pub fn backend(&self, name: &str) -> Option<&BackendReport> {
        self.backends.iter().find(|backend| backend.name == name)
    }
}
