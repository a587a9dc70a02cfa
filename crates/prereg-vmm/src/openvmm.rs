//! A `DmaTarget` in the shape of openvmm's: what its memory manager tells of every piece of guest memory.
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
use crate::error::KeptError;
use crate::kept::{Gaps, KeptMappings, What};

/// What the memory of a request is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum MappingType {
    /// Guest memory.
    Ram,
    /// A device's own memory; that it cannot be mapped only keeps other devices from it.
    Device,
}

/// A piece of guest memory to be mapped.
#[derive(Clone, Debug)]
pub struct DmaMapRequest<'a> {
    /// The guest addresses, which are the device's too.
    pub range: Range<u64>,
    /// Where the memory is in this process. Only targets that asked for it get it; this one needs it.
    pub host_va: Option<*const u8>,
    /// What backs the memory, where that is known.
    pub mappable: Option<BorrowedFd<'a>>,
    /// Where in `mappable` the piece begins.
    pub file_offset: u64,
    /// Whether the device may write.
    pub writable: bool,
    /// What the memory is.
    pub mapping_type: MappingType,
}

/// Who is told of every piece of guest memory that devices may reach.
pub trait DmaTarget: Send + Sync {
    /// Why a request was refused.
    type Error;

    /// Maps one piece.
    ///
    /// # Errors
    /// The implementer's; nothing of it is mapped then.
    ///
    /// # Safety
    /// Memory at `host_va` stays mapped, and the same memory, until [`unmap_dma`](Self::unmap_dma) has taken the mapping away.
    #[expect(unsafe_code, reason = "the promise about the memory can only be the caller's")]
    unsafe fn map_dma(&self, request: DmaMapRequest<'_>) -> Result<(), Self::Error>;

    /// Takes away everything that is mapped in `range`, which may be several pieces with gaps between them, or nothing. It
    /// never cuts a piece.
    ///
    /// # Errors
    /// The implementer's.
    fn unmap_dma(&self, range: Range<u64>) -> Result<(), Self::Error>;
}

/// Why a request was refused.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
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
    /// No address in this process. EINVAL.
    #[error("the request has no host address; register this target with `needs_va` set")]
    NoHostAddress,
    /// The mappings refused. Their errno.
    #[error(transparent)]
    Kept(#[from] KeptError),
}

impl DmaTargetError {
    /// EINVAL, or what the mappings said.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Range { .. } | Self::NoHostAddress => Errno::EINVAL,
            Self::Kept(error) => error.errno(),
        }
    }
}

/// A target whose mappings hold their memory pinned, and come back when the container lost them.
pub struct PinnedTarget {
    kept: Arc<KeptMappings>,
}

impl PinnedTarget {
    /// A target that maps into `inner`. `container` is who its mappings are reported as held by; 0 for nobody.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        space: Arc<AddressSpace>,
        inner: Arc<dyn DmaContainer>,
        container: u64,
    ) -> Result<Self, OutOfMemory> {
        let holder = Holder { container, kind: HolderKind::TableEntry };
        Ok(Self { kept: Arc::new(KeptMappings::new(space, inner, holder)?) })
    }

    /// Opens a device, counts it, and puts the mappings into the container if it has lost them.
    ///
    /// # Errors
    /// What `open` says; or the container's refusal, and the device is closed then.
    pub fn attach<D, E: From<DmaTargetError>>(
        &self,
        open: impl FnOnce() -> Result<D, E>,
    ) -> Result<Attached<D>, E> {
        self.kept.attach(open, |error| E::from(DmaTargetError::Kept(error)))
    }

    /// The mappings, and who holds what.
    #[must_use]
    pub fn kept(&self) -> &Arc<KeptMappings> {
        &self.kept
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
        let host = request.host_va.ok_or(DmaTargetError::NoHostAddress)?;
        let ua = UserAddr::new(host.expose_provenance() as u64);
        let access = if request.writable { Access::ReadWrite } else { Access::Read };
        let what = match request.mapping_type {
            MappingType::Ram => What::Ram,
            MappingType::Device => What::Device,
        };
        // SAFETY: the caller has promised the same of the memory.
        unsafe { self.kept.map(Iova::new(request.range.start), ua, bytes, access, what) }?;
        Ok(())
    }

    fn unmap_dma(&self, range: Range<u64>) -> Result<(), DmaTargetError> {
        let bytes = bytes_of(&range)?;
        self.kept.unmap(Iova::new(range.start), bytes, Gaps::Allowed)?;
        Ok(())
    }
}

impl fmt::Debug for PinnedTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PinnedTarget").field("kept", &self.kept).finish()
    }
}
