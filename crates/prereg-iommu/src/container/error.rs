//! Why a container refused. Every kind has one errno; nothing has changed but what its text says.

use prereg::{BusAddr, ChargeError, Errno, MapError, OutOfMemory, RangeError, RegisterError, UserAddr};

use crate::hw_table::EntryError;

/// Why a container call failed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// Another process used the container first. EPERM.
    #[error("the container belongs to the process that used it first; use one of your own")]
    OtherOwner,
    /// Nothing was registered through this container yet, or (first version) it is not enabled. EPERM.
    #[error("the container is not enabled; register memory through it first (first version: enable it)")]
    NotEnabled,
    /// No process has used the container yet. EPERM.
    #[error("nobody has used the container yet, so nothing is registered through it")]
    NotBound,
    /// No such request, or one of the container's other version. ENOTTY.
    #[error("request {command:#x} is not one of this container")]
    NotARequest {
        /// The request's number.
        command: u32,
    },
    /// The argument cannot be read or written as far as the request needs. EFAULT.
    #[error("the argument has {found} readable bytes and the request needs {needed}")]
    Argument {
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        found: usize,
    },
    /// `argsz` is smaller than the request's struct. EINVAL.
    #[error("argsz {argsz} is smaller than the {needed} bytes of the request")]
    ArgSize {
        /// What the caller said.
        argsz: u32,
        /// What the request needs.
        needed: u32,
    },
    /// A flag that the request does not have. EINVAL.
    #[error("flags {flags:#x} are not all known to the request")]
    Flags {
        /// The flags.
        flags: u32,
    },
    /// No group, or the wrong moment for this request. EINVAL.
    #[error("the container has no group, or no IOMMU was set; attach a group, then set the IOMMU")]
    NoIommu,
    /// An IOMMU is set already. EINVAL.
    #[error("the container's IOMMU is set already")]
    IommuSet,
    /// No such kind of IOMMU. ENODEV.
    #[error("there is no IOMMU of kind {kind}")]
    UnknownIommu {
        /// The kind asked for.
        kind: u64,
    },
    /// A kind that can be asked about but not set, or that the platform lacks. EINVAL.
    #[error("an IOMMU of kind {kind} cannot be set on this platform")]
    UnfitIommu {
        /// The kind asked for.
        kind: u64,
    },
    /// The group is in the container, or (first version) another one is. EBUSY.
    #[error("group {number} cannot join: it is here already, or the container takes one group only")]
    GroupTaken {
        /// The group.
        number: u32,
    },
    /// The group's IOMMU is of another kind than that of the groups here. EPERM.
    #[error("group {number} has another kind of IOMMU than the container's groups")]
    OtherPlatform {
        /// The group.
        number: u32,
    },
    /// No group is attached. ENXIO, ENODEV for enabling.
    #[error("no group is attached")]
    NoGroup {
        /// Which of the two numbers.
        errno: Errno,
    },
    /// The group's hardware refused a window. Its errno.
    #[error("group {number} could not be programmed: {errno}")]
    Hardware {
        /// The group.
        number: u32,
        /// What it said.
        errno: Errno,
    },
    /// Not a range of whole system pages. EINVAL.
    #[error(transparent)]
    Range(#[from] RangeError),
    /// This container has the very range registered. EBUSY.
    #[error("{bytes:#x} bytes at {ua} are registered through this container already")]
    Registered {
        /// The start.
        ua: UserAddr,
        /// The length.
        bytes: u64,
    },
    /// There is no memory of the caller's that could be pinned. EFAULT.
    #[error("there is no memory at {ua} that could be pinned")]
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
    /// It is the last registration of memory that is mapped. EBUSY; the registration stays.
    #[error("{bytes:#x} bytes at {ua} are still mapped {mapped} times; unmap first, then unregister again")]
    Mapped {
        /// The start.
        ua: UserAddr,
        /// The length.
        bytes: u64,
        /// Live mappings.
        mapped: u64,
    },
    /// No window holds that bus address. ENXIO.
    #[error("no window holds {ioba}")]
    NoWindow {
        /// The address.
        ioba: BusAddr,
    },
    /// The length or the user address is not a multiple of the window's page. EINVAL.
    #[error("{what:#x} is not a multiple of the window's {page:#x} byte pages")]
    Misaligned {
        /// The number.
        what: u64,
        /// The page.
        page: u64,
    },
    /// The bus address is not the start of a page. EINVAL.
    #[error("{ioba} is not the start of one of the window's {page:#x} byte pages")]
    MisalignedBus {
        /// The address.
        ioba: BusAddr,
        /// The page.
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
    /// Neither reading nor writing was asked for. EINVAL.
    #[error("a mapping needs a permission: read, write or both")]
    NoPermission,
    /// A page could not be mapped: EINVAL when no region holds it or its pages are too small, ENXIO when the region is
    /// going, ENOMEM without memory for the table. What the call had mapped is cleared again.
    #[error("{ioba} was not mapped: {error}")]
    Map {
        /// The page's bus address.
        ioba: BusAddr,
        /// Why.
        error: EntryError,
    },
    /// All windows are in use. ENOSPC.
    #[error("the container has as many windows as it may; remove one first")]
    NoWindowLeft,
    /// The platform does not offer that page size. EINVAL.
    #[error("windows with pages of 2^{shift} bytes are not offered")]
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
    /// One level of the table is larger than memory comes in. ENOMEM.
    #[error("a level of the table is larger than memory comes in; use more levels")]
    TablePiece,
    /// The table is over the owner's limit. ENOMEM.
    #[error("the window's table: {0}")]
    Charge(ChargeError),
    /// No memory for our own tables. ENOMEM.
    #[error("no memory for the container's tables")]
    OutOfMemory,
    /// No window starts there. EINVAL.
    #[error("no window starts at {start}")]
    NotAWindow {
        /// The address asked for.
        start: BusAddr,
        /// Whether a window holds it.
        inside: bool,
    },
    /// Enabled already. EBUSY.
    #[error("the container is enabled already")]
    Enabled,
}

impl From<OutOfMemory> for ContainerError {
    fn from(OutOfMemory: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl ContainerError {
    /// The number that the request answers, as said at each kind.
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
            Self::TablePiece | Self::Charge(_) | Self::OutOfMemory => Errno::ENOMEM,
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
