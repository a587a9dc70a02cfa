//! A `DmaTarget` in the shape of openvmm's, which its memory manager notifies of every piece of guest memory.
//!
//! openvmm does not publish the crate that the trait is in. The trait here has the same two calls and the same request, with
//! types of the standard library; the adapter inside openvmm is the few lines that pass one on to the other.

use std::fmt;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use prereg::{Access, AddressSpace, Errno, Holder, HolderKind, Iova, OutOfMemory, UserAddr};

use crate::attached::Attached;
use crate::container::DmaContainer;
use crate::dma_mapping::MemoryKind;
use crate::error::DmaMapError;
use crate::persistent_mappings::PersistentMappings;

/// The kind of memory in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MappingType {
    /// Guest memory.
    Ram,
    /// A device's own memory. That it cannot be mapped only keeps other devices from it.
    Device,
}

/// A piece of guest memory to be mapped.
#[derive(Clone, Debug)]
pub struct DmaMapRequest<'a> {
    /// The guest addresses, which are the device's too.
    pub range: Range<u64>,
    /// The address of the memory in this process: given to targets that were added with `needs_va`. [`PinnedTarget`] pins memory
    /// by this address.
    pub host_va: Option<*const u8>,
    /// The file that backs the memory, where that is known. Without `host_va` the piece is mapped by it, if the container
    /// can (iommufd, [`DmaContainer::map_file`]).
    pub mappable: Option<BorrowedFd<'a>>,
    /// The offset of the piece in `mappable`.
    pub file_offset: u64,
    /// Whether the device may write. Memory that is read-only in this process can be mapped without.
    pub writable: bool,
    /// The kind of memory.
    pub mapping_type: MappingType,
}

/// Notified of every piece of guest memory that devices may reach.
pub trait DmaTarget: Send + Sync {
    /// The reason of a refused request.
    type Error;

    /// Maps one piece.
    ///
    /// # Errors
    /// The implementer's; nothing of it is mapped then.
    ///
    /// # Safety
    /// Memory at `host_va` stays mapped, and the same memory, until [`unmap_dma`](Self::unmap_dma) has removed the mapping; and
    /// no Rust reference into it, or into that part of `mappable`, exists so long.
    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    unsafe fn map_dma(&self, request: DmaMapRequest<'_>) -> Result<(), Self::Error>;

    /// Unmaps everything that is mapped in `range`, which may be several pieces with gaps between them, or nothing. It
    /// never cuts a piece.
    ///
    /// # Errors
    /// The implementer's.
    fn unmap_dma(&self, range: Range<u64>) -> Result<(), Self::Error>;
}

/// The reason of a refused request.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DmaTargetError {
    /// A range that ends before it begins. EINVAL.
    #[error("the range {start:#x}..{end:#x} ends before it begins, or is empty")]
    Range {
        /// Its start.
        start: u64,
        /// Its end.
        end: u64,
    },
    /// Neither an address in this process nor a file. EINVAL.
    #[error("the request has no host address and no file; add this target with `needs_va` set")]
    NoMemory,
    /// The mappings refused. Their errno.
    #[error(transparent)]
    Mappings(#[from] DmaMapError),
}

prereg::debug_as_display!(DmaTargetError);

impl DmaTargetError {
    /// EINVAL, or the errno of the mappings' refusal.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Range { .. } | Self::NoMemory => Errno::EINVAL,
            Self::Mappings(error) => error.errno(),
        }
    }
}

/// A target whose mappings hold their memory pinned, and are made again when the container lost them.
pub struct PinnedTarget {
    mappings: Arc<PersistentMappings>,
}

impl PinnedTarget {
    /// A target that maps into `inner`. Its mappings are reported as held by `container`; 0 for none.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        space: Arc<AddressSpace>,
        inner: Arc<dyn DmaContainer>,
        container: u64,
    ) -> Result<Self, OutOfMemory> {
        let holder = Holder { container, kind: HolderKind::TableEntry };
        Ok(Self { mappings: Arc::new(PersistentMappings::new(space, inner, holder)?) })
    }

    /// Opens a device, counts it, and makes the mappings again if the container may have lost them.
    ///
    /// # Errors
    /// The error of `open`; or the container's refusal, and the device is closed then.
    pub fn attach<D, E: From<DmaTargetError>>(
        &self,
        open: impl FnOnce() -> Result<D, E>,
    ) -> Result<Attached<D>, E> {
        self.mappings.attach(open, |error| E::from(DmaTargetError::Mappings(error)))
    }

    /// The mappings.
    #[must_use]
    pub fn mappings(&self) -> &Arc<PersistentMappings> {
        &self.mappings
    }
}

fn bytes_of(range: &Range<u64>) -> Result<u64, DmaTargetError> {
    match range.end.checked_sub(range.start) {
        Some(bytes) if bytes > 0 => Ok(bytes),
        _ => Err(DmaTargetError::Range { start: range.start, end: range.end }),
    }
}

impl DmaTarget for PinnedTarget {
    type Error = DmaTargetError;

    #[expect(unsafe_code, reason = "the trait's promise is the one of the mappings")]
    unsafe fn map_dma(&self, request: DmaMapRequest<'_>) -> Result<(), DmaTargetError> {
        let bytes = bytes_of(&request.range)?;
        let iova = Iova::new(request.range.start);
        let access = if request.writable { Access::ReadWrite } else { Access::Read };
        let kind = match request.mapping_type {
            MappingType::Ram => MemoryKind::Ram,
            MappingType::Device => MemoryKind::Device,
        };
        match (request.host_va, request.mappable) {
            (Some(host), _) => {
                let ua = UserAddr::new(host.expose_provenance() as u64);
                // SAFETY: the caller has promised the same of the memory.
                unsafe { self.mappings.map(iova, ua, bytes, access, kind) }?;
            }
            (None, Some(file)) => {
                // SAFETY: as above.
                unsafe { self.mappings.map_file(iova, file, request.file_offset, bytes, access) }?;
            }
            (None, None) => return Err(DmaTargetError::NoMemory),
        }
        Ok(())
    }

    fn unmap_dma(&self, range: Range<u64>) -> Result<(), DmaTargetError> {
        let bytes = bytes_of(&range)?;
        self.mappings.unmap(Iova::new(range.start), bytes)?;
        Ok(())
    }
}

impl fmt::Debug for PinnedTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedTarget").field("mappings", &self.mappings).finish()
    }
}
