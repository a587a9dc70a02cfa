//! Errors of container requests. Each has one errno; nothing has changed except where documented.

use prereg::{BusAddr, ChargeError, Errno, MapError, OutOfMemory, RangeError, RegisterError, UserAddr};

use crate::hw_table::EntryError;

/// Errors of container requests.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// Another process used the container first. EPERM.
    #[error("the container belongs to the process that used it first; use one of your own")]
    OtherOwner,
    /// Nothing was registered through this container yet (version 1: it is not enabled). EPERM.
    #[error("the container is not enabled; register memory through it first (version 1: enable it)")]
    NotEnabled,
    /// The container has no owner yet. EPERM.
    #[error("no process has used the container yet, so nothing is registered through it")]
    NotBound,
    /// Not a request, or one of the container's other version. ENOTTY.
    #[error("{command:#x} is not a request of this container")]
    NotARequest {
        /// The request's number.
        command: u32,
    },
    /// The argument is not accessible for the length of the request. EFAULT.
    #[error("the argument has {found} readable bytes and the request needs {needed}")]
    Argument {
        /// Bytes needed.
        needed: usize,
        /// Bytes accessible.
        found: usize,
    },
    /// `argsz` is smaller than the request's struct. EINVAL.
    #[error("argsz {argsz} is smaller than the {needed} bytes of the request")]
    ArgSize {
        /// The given size.
        argsz: u32,
        /// The size of the struct.
        needed: u32,
    },
    /// Unknown flags. EINVAL.
    #[error("the request does not know all of the flags {flags:#x}")]
    Flags {
        /// The flags.
        flags: u32,
    },
    /// No group, or no IOMMU set yet. EINVAL.
    #[error("the container has no group, or no IOMMU was set; attach a group, then set the IOMMU")]
    NoIommu,
    /// An IOMMU is set already. EINVAL.
    #[error("the container's IOMMU is set already")]
    IommuSet,
    /// An unknown kind of IOMMU. ENODEV.
    #[error("{kind} is no kind of IOMMU")]
    UnknownIommu {
        /// The kind.
        kind: u64,
    },
    /// A kind that can be queried but not set, or that the platform lacks. EINVAL.
    #[error("an IOMMU of kind {kind} cannot be set on this platform")]
    UnfitIommu {
        /// The kind.
        kind: u64,
    },
    /// The group is in the container already, or (version 1) another one is. EBUSY.
    #[error("group {number} cannot join: it has joined already, or the container takes one group only")]
    GroupTaken {
        /// The group.
        number: u32,
    },
    /// The group's platform differs from that of the other groups. EPERM.
    #[error("group {number} has another kind of IOMMU than the container's groups")]
    OtherPlatform {
        /// The group.
        number: u32,
    },
    /// No group is attached. ENXIO; ENODEV for enabling.
    #[error("no group is attached")]
    NoGroup {
        /// The errno.
        errno: Errno,
    },
    /// The group's hardware refused a window. Its errno.
    #[error("group {number} could not be programmed: {errno}")]
    Hardware {
        /// The group.
        number: u32,
        /// Its errno.
        errno: Errno,
    },
    /// Not a range of whole system pages. EINVAL.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// This container has registered exactly this range. EBUSY.
    #[error("{bytes:#x} bytes at {ua} are registered through this container already")]
    Registered {
        /// The start.
        ua: UserAddr,
        /// The length.
        bytes: u64,
    },
    /// The caller has no memory there that could be pinned. EFAULT.
    #[error("the caller has no memory at {ua} that could be pinned")]
    NoMemory {
        /// The start.
        ua: UserAddr,
    },
    /// The address space refused the registration. Its errno.
    #[error(transparent)]
    Register(#[from] RegisterError),
    /// This container did not register that range. ENOENT.
    #[error(
        "{bytes:#x} bytes at {ua} are not registered through this container; name a range as it was registered"
    )]
    Unregistered {
        /// The start.
        ua: UserAddr,
        /// The length.
        bytes: u64,
    },
    /// The last registration of memory that is mapped. EBUSY; the registration stays.
    #[error("{bytes:#x} bytes at {ua} are still mapped {mapped} times; unmap first, then unregister again")]
    Mapped {
        /// The start.
        ua: UserAddr,
        /// The length.
        bytes: u64,
        /// Live mappings.
        mapped: u64,
    },
    /// No window contains the bus address. ENXIO.
    #[error("no window contains {ioba}")]
    NoWindow {
        /// The address.
        ioba: BusAddr,
    },
    /// Length or user address is not a multiple of the window's page size. EINVAL.
    #[error("{what:#x} is not a multiple of the window's page size, {page:#x} bytes")]
    Misaligned {
        /// The number.
        what: u64,
        /// The page size.
        page: u64,
    },
    /// The bus address is not page-aligned. EINVAL.
    #[error("{ioba} is not aligned to the window's pages of {page:#x} bytes")]
    MisalignedBus {
        /// The address.
        ioba: BusAddr,
        /// The page size.
        page: u64,
    },
    /// The range starts in a window and ends outside it. EINVAL.
    #[error("{bytes:#x} bytes at {ioba} pass the end of the window")]
    PastWindow {
        /// The start.
        ioba: BusAddr,
        /// The length.
        bytes: u64,
    },
    /// Neither read nor write access. EINVAL.
    #[error("a mapping needs a permission: read, write or both")]
    NoPermission,
    /// A page could not be mapped: EINVAL if it is not registered or its pages are too small, ENXIO if the region is
    /// closing, ENOMEM without memory for the table. Entries that the request had mapped are cleared.
    #[error("{ioba} was not mapped: {error}")]
    Map {
        /// The page's bus address.
        ioba: BusAddr,
        /// The cause.
        error: EntryError,
    },
    /// All windows are in use. ENOSPC.
    #[error("all windows of the container are in use; remove one first")]
    NoWindowLeft,
    /// The platform does not offer that page size. EINVAL.
    #[error("the platform has no windows with pages of 2^{shift} bytes")]
    PageSize {
        /// The shift asked for.
        shift: u32,
    },
    /// No table has that shape. EINVAL.
    #[error(
        "no table of {levels} levels serves a window of {bytes:#x} bytes; use a power of two, and 1 to 5 levels"
    )]
    TableShape {
        /// The length of the window.
        bytes: u64,
        /// The levels.
        levels: u32,
    },
    /// A level of the table exceeds the largest allocation. ENOMEM.
    #[error("a level of the table exceeds the largest allocation; use more levels")]
    LevelTooLarge,
    /// The table exceeds the owner's limit. ENOMEM.
    #[error("the window's table: {0}")]
    Charge(ChargeError),
    /// No memory for prereg's own tables. ENOMEM.
    #[error("no memory for the container's tables")]
    OutOfMemory,
    /// No window starts there. EINVAL.
    #[error("no window starts at {start}")]
    NotAWindow {
        /// The address asked for.
        start: BusAddr,
        /// Whether a window contains it.
        inside: bool,
    },
    /// Enabled already. EBUSY.
    #[error("the container is enabled already")]
    Enabled,
}

prereg::debug_as_display!(ContainerError);

impl From<OutOfMemory> for ContainerError {
    fn from(OutOfMemory: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl ContainerError {
    /// The errno of the request, as documented at each variant.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::OtherOwner | Self::NotEnabled | Self::NotBound | Self::OtherPlatform { .. } => Errno::EPERM,
            Self::NotARequest { .. } => Errno::ENOTTY,
            Self::Argument { .. } | Self::NoMemory { .. } => Errno::EFAULT,
            Self::UnknownIommu { .. } => Errno::ENODEV,
            Self::GroupTaken { .. } | Self::Registered { .. } | Self::Mapped { .. } | Self::Enabled => {
                Errno::EBUSY
            }
            Self::NoGroup { errno } | Self::Hardware { errno, .. } => *errno,
            Self::Range(error) => error.errno(),
            Self::Register(error) => error.errno(),
            Self::Unregistered { .. } => Errno::ENOENT,
            Self::NoWindow { .. } => Errno::ENXIO,
            Self::Map { error, .. } => match error {
                EntryError::Map(MapError::Unregistered { .. } | MapError::TooLarge { .. }) => Errno::EINVAL,
                _ => error.errno(),
            },
            Self::NoWindowLeft => Errno::ENOSPC,
            Self::LevelTooLarge | Self::Charge(_) | Self::OutOfMemory => Errno::ENOMEM,
            Self::ArgSize { .. }
            | Self::Flags { .. }
            | Self::NoIommu
            | Self::IommuSet
            | Self::UnfitIommu { .. }
            | Self::Misaligned { .. }
            | Self::MisalignedBus { .. }
            | Self::PastWindow { .. }
            | Self::NoPermission
            | Self::PageSize { .. }
            | Self::TableShape { .. }
            | Self::NotAWindow { .. } => Errno::EINVAL,
        }
    }
}
