//! The report itself: plain data, for whoever prints it.

use prereg::{AddressKind, Errno};

use crate::error::BackendError;
use crate::proc_status::KernelCount;
use crate::vfio::groups::GroupReport;

/// The capabilities in effect that matter here.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capabilities {
    /// CAP_IPC_LOCK: passes the limit on locked memory.
    pub ipc_lock: bool,
    /// CAP_SYS_ADMIN: sees page frames.
    pub sys_admin: bool,
    /// CAP_SYS_RESOURCE: raises hard limits.
    pub sys_resource: bool,
}

/// Limits on locked memory and what counts against them, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Memlock {
    /// The limit in effect; `None` is unlimited.
    pub soft: Option<u64>,
    /// How far the process may raise it; `None` is unlimited.
    pub hard: Option<u64>,
    /// Whether this process may pass the limit.
    pub privileged: bool,
    /// What the kernel counts for this process; `None` without `/proc`.
    pub counted: Option<KernelCount>,
}

impl Memlock {
    /// The bytes that this user may pin; `None` is as many as there are.
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
    /// Pages of them that nobody uses.
    pub free: u64,
}

/// What `/proc/self/pagemap` shows to this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PagemapAccess {
    /// Page frames: host addresses can be physical.
    Frames,
    /// Which pages are there, but not where.
    Hidden,
    /// Nothing.
    Denied(Errno),
}

/// io_uring on this host.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UringAccess {
    /// `/proc/sys/kernel/io_uring_disabled`: 0 allowed, 1 for privileged ones, 2 for nobody; `None` before Linux 6.6.
    pub disabled: Option<u64>,
    /// What came of trying, with the bytes that one slot may hold when it worked.
    pub probe: Result<u64, BackendError>,
    /// What its host addresses are, when it worked.
    pub addresses: Option<AddressKind>,
}

/// All that is known of the host.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct HostReport {
    /// `uname -r`.
    pub kernel: Option<String>,
    /// The real user.
    pub uid: u32,
    /// The effective user.
    pub euid: u32,
    /// Whether this is the initial user namespace, where capabilities mean what they say.
    pub initial_user_namespace: bool,
    /// Capabilities in effect.
    pub capabilities: Capabilities,
    /// Locked memory.
    pub memlock: Memlock,
    /// The system page in bytes.
    pub page_bytes: u64,
    /// Memory in all, in bytes.
    pub memory_total: Option<u64>,
    /// Memory that could be had now, in bytes.
    pub memory_available: Option<u64>,
    /// Pools of huge pages, smallest page first.
    pub huge_pools: Vec<HugePool>,
    /// Transparent huge pages: `always`, `madvise` or `never`.
    pub transparent_huge_pages: Option<String>,
    /// `/proc/sys/vm/compact_unevictable_allowed`: with 1, compaction moves locked pages.
    pub compact_unevictable_allowed: Option<u64>,
    /// What the page map shows.
    pub pagemap: PagemapAccess,
    /// io_uring.
    pub io_uring: UringAccess,
    /// Numbers of the IOMMU groups, ascending.
    pub iommu_groups: Vec<u32>,
    /// Whether `/dev/vfio/vfio` is there.
    pub vfio: bool,
    /// Groups with a device node in `/dev/vfio`, ascending.
    pub vfio_groups: Vec<u32>,
    /// Whether `/dev/iommu` is there.
    pub iommufd: bool,
    /// The IOMMU groups, each with its devices and what could be mapped for it, or why it cannot be had.
    pub groups: Vec<GroupReport>,
    /// Mappings that one type1 container may hold; `None` when its driver is not loaded.
    pub type1_mappings: Option<u64>,
    /// The back ends, each with a verdict.
    pub backends: Vec<BackendReport>,
}

/// The verdict on one back end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendReport {
    /// Its name, as in [`Pin::name`](prereg::Pin::name).
    pub name: &'static str,
    /// Whether this process can make one now.
    pub usable: bool,
    /// Whether its pages are really pinned.
    pub pins: bool,
    /// What its host addresses are, when it is usable.
    pub addresses: Option<AddressKind>,
    /// The bytes that it may take in all; `None` is as many as there are. Means nothing when it is not usable.
    pub allowance: Option<u64>,
    /// Why it is usable or not, in a sentence.
    pub why: String,
    /// What would make it usable, or allow it more; `None` when nothing is missing.
    pub remedy: Option<String>,
}

impl HostReport {
    /// The verdict on one back end.
    #[must_use]
    pub fn backend(&self, name: &str) -> Option<&BackendReport> {
        self.backends.iter().find(|backend| backend.name == name)
    }
}
