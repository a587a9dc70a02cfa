//! The binary requests of `linux/vfio.h`: numbers, structs, `argsz`.
//!
//! Numbers are in native byte order. Bytes beyond the size of a struct are ignored, as those of a longer struct of a later
//! version.

use prereg::{BusAddr, UserAddr};

use super::error::ContainerError;

/// A request of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the names are those of linux/vfio.h")]
pub enum Command {
    GetApiVersion,
    CheckExtension,
    SetIommu,
    SpaprTceGetInfo,
    MapDma,
    UnmapDma,
    Enable,
    Disable,
    SpaprRegisterMemory,
    SpaprUnregisterMemory,
    SpaprTceCreate,
    SpaprTceRemove,
}

impl Command {
    /// The number's type and base: `';'`, 100.
    const TYPE: u32 = (b';' as u32) << 8;
    /// POWER's mark of an ioctl number without direction and size (`_IOC_NONE`); zeros on other machines.
    const POWER_NONE: u32 = 1 << 29;

    /// The request of number `raw`, in this machine's encoding or POWER's.
    #[must_use]
    pub const fn from_raw(raw: u32) -> Option<Self> {
        match (raw & !Self::POWER_NONE).wrapping_sub(Self::TYPE) {
            100 => Some(Self::GetApiVersion),
            101 => Some(Self::CheckExtension),
            102 => Some(Self::SetIommu),
            112 => Some(Self::SpaprTceGetInfo),
            113 => Some(Self::MapDma),
            114 => Some(Self::UnmapDma),
            115 => Some(Self::Enable),
            116 => Some(Self::Disable),
            117 => Some(Self::SpaprRegisterMemory),
            118 => Some(Self::SpaprUnregisterMemory),
            119 => Some(Self::SpaprTceCreate),
            120 => Some(Self::SpaprTceRemove),
            _ => None,
        }
    }

    /// The number, without POWER's mark.
    #[must_use]
    pub const fn raw(self) -> u32 {
        Self::TYPE
            + match self {
                Self::GetApiVersion => 100,
                Self::CheckExtension => 101,
                Self::SetIommu => 102,
                Self::SpaprTceGetInfo => 112,
                Self::MapDma => 113,
                Self::UnmapDma => 114,
                Self::Enable => 115,
                Self::Disable => 116,
                Self::SpaprRegisterMemory => 117,
                Self::SpaprUnregisterMemory => 118,
                Self::SpaprTceCreate => 119,
                Self::SpaprTceRemove => 120,
            }
    }

    /// The size of the struct that the argument points at; 0 if it is a plain number or absent. Copy that many bytes in
    /// (fewer if fewer are readable) and out again.
    #[must_use]
    pub const fn argument_bytes(self) -> usize {
        match self {
            Self::GetApiVersion | Self::CheckExtension | Self::SetIommu | Self::Enable | Self::Disable => 0,
            Self::SpaprTceGetInfo => Info::FULL,
            Self::MapDma => MapDma::LEAST,
            Self::UnmapDma => UnmapDma::LEAST,
            Self::SpaprRegisterMemory | Self::SpaprUnregisterMemory => RegisterMemory::LEAST,
            Self::SpaprTceCreate => TceCreate::LEAST,
            Self::SpaprTceRemove => TceRemove::LEAST,
        }
    }
}

/// The argument of a request.
#[derive(PartialEq, Eq, Debug)]
pub enum Argument<'a> {
    /// The number itself.
    Value(u64),
    /// The accessible bytes it points at; writable where the request writes its result.
    Bytes(&'a mut [u8]),
}

impl Argument<'_> {
    pub(super) fn value(&self) -> u64 {
        match self {
            Self::Value(value) => *value,
            // No request takes this number.
            Self::Bytes(_) => u64::MAX,
        }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        match self {
            Self::Value(_) => &mut [],
            Self::Bytes(bytes) => bytes,
        }
    }
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_ne_bytes(word)
}

/// The first `least` bytes, after checking that `argsz` covers them and `flags` has only `known` bits.
fn head(bytes: &[u8], least: usize, known: u32) -> Result<&[u8], ContainerError> {
    let bytes = bytes.get(..least).ok_or(ContainerError::Argument { needed: least, found: bytes.len() })?;
    let (argsz, flags) = (u32_at(bytes, 0), u32_at(bytes, 4));
    if (argsz as usize) < least {
        return Err(ContainerError::ArgSize { argsz, needed: least as u32 });
    }
    if flags & !known != 0 {
        return Err(ContainerError::Flags { flags });
    }
    Ok(bytes)
}

/// `vfio_iommu_spapr_register_memory`.
pub(super) struct RegisterMemory {
    pub(super) ua: UserAddr,
    pub(super) bytes: u64,
}

impl RegisterMemory {
    const LEAST: usize = 24;

    pub(super) fn read(bytes: &[u8]) -> Result<Self, ContainerError> {
        let bytes = head(bytes, Self::LEAST, 0)?;
        Ok(Self { ua: UserAddr::new(u64_at(bytes, 8)), bytes: u64_at(bytes, 16) })
    }
}

/// `vfio_iommu_type1_dma_map`.
pub(super) struct MapDma {
    /// Bit 0 read, bit 1 write.
    pub(super) permissions: u64,
    pub(super) ua: UserAddr,
    pub(super) ioba: BusAddr,
    pub(super) bytes: u64,
}

impl MapDma {
    const LEAST: usize = 32;

    pub(super) fn read(bytes: &[u8]) -> Result<Self, ContainerError> {
        let bytes = head(bytes, Self::LEAST, 3)?;
        Ok(Self {
            permissions: u64::from(u32_at(bytes, 4)),
            ua: UserAddr::new(u64_at(bytes, 8)),
            ioba: BusAddr::new(u64_at(bytes, 16)),
            bytes: u64_at(bytes, 24),
        })
    }
}

/// `vfio_iommu_type1_dma_unmap`.
pub(super) struct UnmapDma {
    pub(super) ioba: BusAddr,
    pub(super) bytes: u64,
}

impl UnmapDma {
    const LEAST: usize = 24;

    pub(super) fn read(bytes: &[u8]) -> Result<Self, ContainerError> {
        let bytes = head(bytes, Self::LEAST, 0)?;
        Ok(Self { ioba: BusAddr::new(u64_at(bytes, 8)), bytes: u64_at(bytes, 16) })
    }
}

/// `vfio_iommu_spapr_tce_create`.
pub(super) struct TceCreate {
    pub(super) shift: u32,
    pub(super) bytes: u64,
    pub(super) levels: u32,
}

impl TceCreate {
    const LEAST: usize = 40;

    pub(super) fn read(bytes: &[u8]) -> Result<Self, ContainerError> {
        let bytes = head(bytes, Self::LEAST, 0)?;
        Ok(Self { shift: u32_at(bytes, 8), bytes: u64_at(bytes, 16), levels: u32_at(bytes, 24) })
    }

    /// Writes the start of the window into the struct.
    pub(super) fn write(bytes: &mut [u8], start: BusAddr) {
        bytes[32..40].copy_from_slice(&start.raw().to_ne_bytes());
    }
}

/// `vfio_iommu_spapr_tce_remove`.
pub(super) struct TceRemove {
    pub(super) start: BusAddr,
}

impl TceRemove {
    const LEAST: usize = 16;

    pub(super) fn read(bytes: &[u8]) -> Result<Self, ContainerError> {
        let bytes = head(bytes, Self::LEAST, 0)?;
        Ok(Self { start: BusAddr::new(u64_at(bytes, 8)) })
    }
}

/// The result of GET_INFO: `vfio_iommu_spapr_tce_info`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Info {
    /// The start of the default window.
    pub dma32_start: u32,
    /// The length of the default window in bytes.
    pub dma32_bytes: u32,
    /// Limits of created windows; `None` if none can be created.
    pub dynamic: Option<DynamicWindows>,
}

/// Limits of created windows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DynamicWindows {
    /// Bit `k` stands for pages of `2^k` bytes.
    pub page_sizes: u64,
    /// Windows at a time.
    pub max_windows: u32,
    /// Levels of a table.
    pub max_levels: u32,
}

impl Info {
    const LEAST: usize = 16;
    const FULL: usize = 32;
    const DYNAMIC: u32 = 1;

    /// Writes the struct as far as `argsz` covers it. The request's flags are ignored.
    pub(super) fn write(&self, bytes: &mut [u8]) -> Result<(), ContainerError> {
        let found = bytes.len();
        let lacking = |needed| ContainerError::Argument { needed, found };
        let argsz = u32_at(bytes.get(..Self::LEAST).ok_or(lacking(Self::LEAST))?, 0);
        if (argsz as usize) < Self::LEAST {
            return Err(ContainerError::ArgSize { argsz, needed: Self::LEAST as u32 });
        }
        let length = if argsz as usize >= Self::FULL { Self::FULL } else { Self::LEAST };
        let out = bytes.get_mut(..length).ok_or(lacking(length))?;
        let flags = if self.dynamic.is_some() { Self::DYNAMIC } else { 0 };
        out[4..8].copy_from_slice(&flags.to_ne_bytes());
        out[8..12].copy_from_slice(&self.dma32_start.to_ne_bytes());
        out[12..16].copy_from_slice(&self.dma32_bytes.to_ne_bytes());
        if length == Self::FULL {
            let none = DynamicWindows { page_sizes: 0, max_windows: 0, max_levels: 0 };
            let dynamic = self.dynamic.unwrap_or(none);
            out[16..24].copy_from_slice(&dynamic.page_sizes.to_ne_bytes());
            out[24..28].copy_from_slice(&dynamic.max_windows.to_ne_bytes());
            out[28..32].copy_from_slice(&dynamic.max_levels.to_ne_bytes());
        }
        Ok(())
    }
}
