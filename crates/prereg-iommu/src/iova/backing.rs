//! Memory behind a mapping.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;

use prereg::{PageShift, UserAddr};

use super::error::ProviderError;

/// Memory behind a mapping.
#[derive(Clone)]
#[non_exhaustive]
pub enum Backing {
    /// Registered memory in one region.
    Local(UserAddr),
    /// One segment of registered memory, as long as the mapping, with an owner.
    Segment(LocalSegment),
    /// Segments of registered memory, in the order of their I/O virtual addresses; together as long as the mapping.
    Segments(Vec<LocalSegment>),
    /// Memory that is provided, registered, at each access.
    PerAccess(Arc<dyn MemoryProvider>),
    /// Memory that is provided, registered, at its first access in whole blocks, and kept as long as the mapping.
    OnDemand {
        /// Called once for each accessed block; more often only by threads that access it concurrently.
        provider: Arc<dyn MemoryProvider>,
        /// The size of a block. A mapping has at most 2^24 of them.
        block: PageShift,
        /// The offset of the mapping in its first block; bits above the block size are ignored.
        skip: u64,
    },
    /// Memory that the user of the map reaches by other means.
    Remote,
}

/// A value of any type that is kept with memory.
pub type Owner = dyn Any + Send + Sync;

/// A segment of registered memory, inside one region.
#[derive(Clone)]
pub struct LocalSegment {
    /// The start.
    pub ua: UserAddr,
    /// The length.
    pub bytes: u64,
    /// Kept as long as the mapping or an access to it; accesses can borrow it.
    pub owner: Option<Arc<Owner>>,
}

/// The port that registers memory when it is used.
pub trait MemoryProvider: Send + Sync {
    /// The registered memory behind `bytes` bytes at `offset` in the mapping, which lie inside it; the segments add up to
    /// `bytes`. Called with no lock held, on the thread of the access.
    ///
    /// # Errors
    /// [`ProviderError`].
    fn provide(&self, offset: u64, bytes: u64) -> Result<Vec<LocalSegment>, ProviderError>;
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(ua) => f.debug_tuple("Local").field(ua).finish(),
            Self::Segment(piece) => f.debug_tuple("Segment").field(piece).finish(),
            Self::Segments(pieces) => f.debug_tuple("Segments").field(pieces).finish(),
            Self::PerAccess(_) => f.write_str("PerAccess"),
            Self::OnDemand { block, .. } => {
                f.debug_struct("OnDemand").field("block", block).finish_non_exhaustive()
            }
            Self::Remote => f.write_str("Remote"),
        }
    }
}

impl fmt::Debug for LocalSegment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalSegment")
            .field("ua", &self.ua)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
