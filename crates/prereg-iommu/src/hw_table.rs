//! The hardware half of a TCE table: the translations that devices use. Each live entry is one counted mapping.
//!
//! An entry lives in a [`prereg::EntryBlock`], which owns the mapping and releases its unit when the entry is replaced, cleared
//! or dropped. So every address here is pinned, a region with live entries cannot be unregistered, and dropping the table
//! releases every unit.
//!
//! A block is created by the first mapping in it; clearing visits existing blocks only.

use alloc::sync::Arc;

use prereg::{
    Access, AddressSpace, EntryBlock, EntryView, Errno, Holder, HolderKind, MapError, Mapping, OutOfMemory,
    Translator, UserAddr,
};

use crate::geometry::Geometry;
use crate::sparse::{Sparse, TableError};

const BLOCK_BITS: u32 = 8;

type Blocks = Sparse<EntryBlock, BLOCK_BITS>;

/// Errors of changing an entry.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The memory could not be mapped, or the entry was contended. The mapping's errno.
    #[error(transparent)]
    Map(#[from] MapError),
    /// No such entry, or no memory for its block. EINVAL or ENOMEM.
    #[error(transparent)]
    Table(#[from] TableError),
}

prereg::debug_as_display!(EntryError);

impl EntryError {
    /// EFAULT, ENXIO, EAGAIN, EINVAL or ENOMEM.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Map(error) => error.errno(),
            Self::Table(error) => error.errno(),
        }
    }

    /// Whether another thread was changing the entry, so that a retry may succeed at once.
    #[must_use]
    pub const fn is_contended(&self) -> bool {
        matches!(self, Self::Map(MapError::Contended))
    }

    /// Whether the memory cannot be mapped, now or ever; other errors are about the table or the caller.
    #[must_use]
    pub const fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Map(
                MapError::Unregistered { .. }
                    | MapError::TooLarge { .. }
                    | MapError::Misaligned { .. }
                    | MapError::Closing { .. }
            )
        )
    }
}

/// A table of counted mappings of one address space.
///
/// Threads may set and clear entries concurrently, each with its own translator.
#[derive(Debug)]
pub struct HwTable {
    geometry: Geometry,
    holder: Holder,
    blocks: Blocks,
    space: Arc<AddressSpace>,
}

impl HwTable {
    /// An empty table, whose mappings are reported as held by `container`.
    ///
    /// # Errors
    /// [`OutOfMemory`] for its root, which takes at most 8 KiB.
    pub fn new(space: Arc<AddressSpace>, geometry: Geometry, container: u64) -> Result<Self, OutOfMemory> {
        let holder = Holder { container, kind: HolderKind::TableEntry };
        Ok(Self { geometry, holder, blocks: Blocks::new(geometry.entries())?, space })
    }

    /// Start, page size and length of the window.
    #[must_use]
    #[inline]
    pub const fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// The holder of the entries' mappings. Counts are right if the translators used here have the same holder
    /// (`AddressSpace::translator_for`).
    #[must_use]
    pub const fn holder(&self) -> Holder {
        self.holder
    }

    /// The address space whose memory this table maps.
    #[must_use]
    pub const fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Maps the page at `ua` into entry `index`. The previous mapping is released, its page marked dirty if the device
    /// could write it, and its access returned.
    ///
    /// # Errors
    /// [`EntryError`]; the entry is unchanged then.
    #[inline]
    pub fn set(
        &self,
        translator: &mut Translator,
        index: u64,
        ua: UserAddr,
        access: Access,
    ) -> Result<Option<Access>, EntryError> {
        let block = match self.blocks.block(index) {
            Some(block) => block,
            None => self.make_block(index)?,
        };
        Ok(block.set(translator, Blocks::offset(index), ua, access)?)
    }

    /// Maps `count` consecutive pages from `ua` on into the entries from `first` on: all or none.
    ///
    /// # Errors
    /// [`EntryError`]. If the first page cannot be mapped nothing has changed; if a later one cannot, all `count` entries are
    /// cleared and their units released, including those of the replaced mappings (docs/specification.md 3.8, B9).
    pub fn set_run(
        &self,
        translator: &mut Translator,
        first: u64,
        count: u64,
        ua: UserAddr,
        access: Access,
    ) -> Result<(), EntryError> {
        self.blocks.check(first, count)?;
        for step in 0..count {
            let mapped = match ua.checked_add(step << self.geometry.shift().get()) {
                Some(ua) => self.set(translator, first + step, ua, access).map(drop),
                None => Err(MapError::Unregistered { ua, shift: self.geometry.shift() }.into()),
            };
            if let Err(refused) = mapped {
                if step > 0 {
                    self.clear_range(translator, first, count)?;
                }
                return Err(refused);
            }
        }
        Ok(())
    }

    /// Creates the blocks of `count` entries from `first` on, so that mapping there neither allocates nor takes a lock.
    ///
    /// # Errors
    /// [`TableError`]. Blocks created before a failure stay, empty.
    pub fn prepare(&self, first: u64, count: u64) -> Result<(), TableError> {
        self.blocks.check(first, count)?;
        let mut index = first;
        while index < first + count {
            self.make_block(index)?;
            index = ((index >> BLOCK_BITS) + 1) << BLOCK_BITS;
        }
        Ok(())
    }

    #[cold]
    fn make_block(&self, index: u64) -> Result<&EntryBlock, TableError> {
        let shift = self.geometry.shift();
        self.blocks.block_or_make(index, || {
            // The other error is for pages below 4 KiB, which no geometry has.
            EntryBlock::new(&self.space, shift, Blocks::BLOCK_LEN, self.holder).map_err(|_| OutOfMemory)
        })
    }

    /// Clears entry `index`, releases its unit and returns its access.
    ///
    /// # Errors
    /// [`EntryError`]; the entry is unchanged then.
    #[inline]
    pub fn clear(&self, translator: &mut Translator, index: u64) -> Result<Option<Access>, EntryError> {
        match self.blocks.block(index) {
            Some(block) => Ok(block.clear(translator, Blocks::offset(index))?),
            None => Ok(self.blocks.check(index, 1).map(|()| None)?),
        }
    }

    /// Clears `count` entries from `first` on; returns how many were live. Visits existing blocks only.
    ///
    /// # Errors
    /// [`TableError::OutOfRange`] with nothing changed. Any other error ends the walk with the entries before it cleared;
    /// repeating the call goes on from there.
    pub fn clear_range(
        &self,
        translator: &mut Translator,
        first: u64,
        count: u64,
    ) -> Result<u64, EntryError> {
        self.blocks.check(first, count)?;
        let mut cleared = 0;
        self.blocks.visit(first, count, |_, part, block| {
            for offset in part {
                cleared += u64::from(block.clear(translator, offset)?.is_some());
            }
            Ok::<(), EntryError>(())
        })?;
        Ok(cleared)
    }

    /// Checks whether [`set`](Self::set) of the page at `ua` would find and translate it in this table's page size. Nothing
    /// is counted or changed.
    ///
    /// # Errors
    /// [`MapError`].
    #[inline]
    pub fn check(&self, translator: &mut Translator, ua: UserAddr) -> Result<(), MapError> {
        let shift = self.geometry.shift();
        if ua.is_aligned(shift) {
            translator.check(ua, shift)
        } else {
            Err(MapError::Misaligned { ua, shift })
        }
    }

    /// The access that entry `index` allows, or `None` if it is not live.
    #[must_use]
    #[inline]
    pub fn access(&self, index: u64) -> Option<Access> {
        self.blocks.block(index)?.access(Blocks::offset(index))
    }

    /// The entry at `index`, or `None` if it is not live. A host address comes only with a unit, from [`hold_mapping`](Self::hold_mapping).
    #[must_use]
    #[inline]
    pub fn view(&self, index: u64) -> Option<EntryView> {
        self.blocks.block(index)?.view(Blocks::offset(index))
    }

    /// One more mapping of the page of entry `index`, for a device's access. `None` if it is not live.
    ///
    /// # Errors
    /// [`MapError::Closing`] if the region takes no new mappings, [`MapError::Contended`], [`MapError::Foreign`].
    #[inline]
    pub fn hold_mapping(
        &self,
        translator: &mut Translator,
        index: u64,
    ) -> Result<Option<(Mapping, Access)>, MapError> {
        match self.blocks.block(index) {
            Some(block) => block.hold_mapping(translator, Blocks::offset(index)),
            None => Ok(None),
        }
    }

    /// Calls `look` with the number of each live entry in `[first, first + count)`, ascending.
    pub fn for_each_live(&self, first: u64, count: u64, mut look: impl FnMut(u64, Access)) {
        let Ok(()) = self.blocks.visit(first, count, |base, part, block| {
            for offset in part {
                if let Some(access) = block.access(offset) {
                    look(base + offset as u64, access);
                }
            }
            Ok::<(), core::convert::Infallible>(())
        });
    }

    /// Counts the live entries.
    #[must_use]
    pub fn live(&self) -> u64 {
        let mut live = 0;
        let Ok(()) = self.blocks.visit(0, u64::MAX, |_, _, block| {
            live += block.live();
            Ok::<(), core::convert::Infallible>(())
        });
        live
    }

    /// Bytes of memory this table takes now.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        self.blocks.memory_bytes(|block| size_of_val(block) as u64 + block.memory_bytes())
    }
}
