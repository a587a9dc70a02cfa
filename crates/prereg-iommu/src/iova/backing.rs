//! What a mapping can lead to.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::any::Any;
use core::fmt;

use prereg::{PageShift, UserAddr};

use super::error::SupplyError;

/// What a mapping leads to.
#[derive(Clone)]
#[non_exhaustive]
pub enum Backing {
    /// Registered memory in one region.
    Local(UserAddr),
    /// The same, with what is kept with it; as long as the mapping.
    Piece(LocalPiece),
    /// Registered memory in pieces, in the order of the addresses they appear at; together as long as the mapping.
    Pieces(Vec<LocalPiece>),
    /// Memory that is supplied, registered, at each access.
    Supplied(Arc<dyn Supply>),
    /// Memory that is supplied, registered, at its first access, and kept as long as the mapping: whole pieces of it at a time.
    OnDemand {
        /// Asked once for each piece that is accessed, more often only by threads that access it at the same time.
        supply: Arc<dyn Supply>,
        /// The size of a piece. A mapping has at most 2^24.
        piece: PageShift,
        /// Where in its first piece the mapping begins; only the bits below the size of a piece count.
        skip: u64,
    },
    /// Memory that the owner of this map reaches by other means.
    Remote,
}

/// What a caller wants kept with memory, of any type.
pub type Owner = dyn Any + Send + Sync;

/// Registered memory: a part of one region.
#[derive(Clone)]
pub struct LocalPiece {
    /// Where it begins.
    pub ua: UserAddr,
    /// How long it is.
    pub bytes: u64,
    /// Kept as long as the mapping or an access of it, and shown to whoever accesses it.
    pub owner: Option<Arc<Owner>>,
}

/// The port of whoever registers memory only when it is used.
pub trait Supply: Send + Sync {
    /// The registered memory behind `bytes` bytes from `offset` on of the mapping, which lie inside it; called with no lock
    /// held, on the thread of the access. What it answers adds up to `bytes`.
    ///
    /// # Errors
    /// [`SupplyError`].
    fn supply(&self, offset: u64, bytes: u64) -> Result<Vec<LocalPiece>, SupplyError>;
}

impl fmt::Debug for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(ua) => f.debug_tuple("Local").field(ua).finish(),
            Self::Piece(piece) => f.debug_tuple("Piece").field(piece).finish(),
            Self::Pieces(pieces) => f.debug_tuple("Pieces").field(pieces).finish(),
            Self::Supplied(_) => f.write_str("Supplied"),
            Self::OnDemand { piece, .. } => {
                f.debug_struct("OnDemand").field("piece", piece).finish_non_exhaustive()
            }
            Self::Remote => f.write_str("Remote"),
        }
    }
}

impl fmt::Debug for LocalPiece {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalPiece").field("ua", &self.ua).field("bytes", &self.bytes).finish_non_exhaustive()
    }
}
