//! The address space: the owner of a set of regions, one for each process or guest.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use crate::addr::{Granule, HostAddr, UserAddr};
use crate::engine::register::{Backing, RegisterError, RegisterMode};
use crate::engine::{Engine, OutOfMemory};
use crate::lookup::holder::Holder;
use crate::port::{AddressKind, Barrier, Charge, Memory, Pin};
use crate::registration::Registration;
use crate::state::{RegionState, SpaceState};
use crate::table_memory::{HeapTables, TableMemory};
use crate::translator::Translator;

/// The owner of a set of regions.
///
/// Shared between threads by reference or `Arc`. Dropping it releases every registration, also those held elsewhere:
/// unmapped regions are unpinned immediately, others when their last mapping is dropped.
pub struct AddressSpace {
    engine: Arc<Engine>,
}

/// A builder: how the [`AddressSpace`] pins, charges, fences and keeps its tables.
///
/// ```
/// use prereg::{AddressSpace, Granule, HeapTables};
/// # use std::sync::Arc;
/// # let host = prereg_sim::SimHost::new(Granule::K4);
/// let space = AddressSpace::builder(host).tables(Arc::new(HeapTables::new())).build()?;
/// # Ok::<(), prereg::OutOfMemory>(())
/// ```
#[must_use = "call build()"]
pub struct AddressSpaceBuilder {
    pins: Box<dyn Pin>,
    charges: Box<dyn Charge>,
    barrier: Option<Arc<dyn Barrier>>,
    tables: Option<Arc<dyn TableMemory>>,
}

impl AddressSpaceBuilder {
    /// An address space whose pages are pinned by `pins` and charged to `charges`.
    pub fn new(pins: impl Pin + 'static, charges: impl Charge + 'static) -> Self {
        Self { pins: Box::new(pins), charges: Box::new(charges), barrier: None, tables: None }
    }

    /// The fence on every thread of the process, which spares mapping its own. Default: the back end's
    /// ([`Pin::barrier`]), if it has one.
    pub fn barrier(mut self, barrier: Arc<dyn Barrier>) -> Self {
        self.barrier = Some(barrier);
        self
    }

    /// Memory for the tables that translators touch. Default: the back end's ([`Pin::tables`]), else [`HeapTables`].
    pub fn tables(mut self, tables: Arc<dyn TableMemory>) -> Self {
        self.tables = Some(tables);
        self
    }

    /// Builds the empty address space.
    ///
    /// # Errors
    /// [`OutOfMemory`] without memory for its own tables, some KiB.
    pub fn build(self) -> Result<AddressSpace, OutOfMemory> {
        let Self { pins, charges, barrier, tables } = self;
        let barrier = barrier.or_else(|| pins.barrier());
        let tables = tables.or_else(|| pins.tables()).unwrap_or_else(|| Arc::new(HeapTables::new()));
        Ok(AddressSpace { engine: Engine::new(pins, charges, barrier, tables)? })
    }
}

impl fmt::Debug for AddressSpaceBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpaceBuilder").field("backend", &self.pins.name()).finish_non_exhaustive()
    }
}

impl AddressSpace {
    /// Starts an address space whose pages `host` pins and charges, both fixed for its life.
    pub fn builder(host: impl Pin + Charge + 'static) -> AddressSpaceBuilder {
        let host = Arc::new(host);
        AddressSpaceBuilder::new(host.clone(), host)
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The system page size.
    #[must_use]
    pub fn granule(&self) -> Granule {
        self.engine.granule()
    }

    /// The kind of the host addresses of mappings.
    #[must_use]
    pub fn address_kind(&self) -> AddressKind {
        self.engine.pins().address_kind()
    }

    /// The name of the pin back end.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.engine.pins().name()
    }

    /// Registers `memory`: pins and charges it, or shares the region of exactly this range if there is one (no new pin,
    /// no new charge).
    ///
    /// Order: range, overlap, charge, pin. A thread that finds the same range being registered waits and shares it.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is pinned, charged or listed then.
    pub fn register(&self, memory: &(impl Memory + ?Sized)) -> Result<Registration, RegisterError> {
        self.register_for(memory, Holder::default())
    }

    /// [`register`](Self::register) for a holder.
    ///
    /// # Errors
    /// As `register`.
    pub fn register_for(
        &self,
        memory: &(impl Memory + ?Sized),
        holder: Holder,
    ) -> Result<Registration, RegisterError> {
        self.register_as(memory, RegisterMode::ShareOrNew, holder)
    }

    /// Registers `memory` as a new region.
    ///
    /// # Errors
    /// As `register`; [`RegisterError::Exists`] (EINVAL) when its range is registered already.
    pub fn register_new(&self, memory: &(impl Memory + ?Sized)) -> Result<Registration, RegisterError> {
        self.register_as(memory, RegisterMode::New, Holder::default())
    }

    fn register_as(
        &self,
        memory: &(impl Memory + ?Sized),
        mode: RegisterMode,
        holder: Holder,
    ) -> Result<Registration, RegisterError> {
        let backing = || Backing::Pinned(memory.keep());
        let claim = self.engine.register(memory.ua(), memory.bytes(), mode, holder, backing)?;
        Ok(Registration::new(self.engine.clone(), claim))
    }

    /// One more registration of the region of exactly `[ua, ua + bytes)`; `None` when there is none. The memory is not
    /// examined: after an unmap and a new map at this address the region is still the old memory (docs/specification.md
    /// scenario 48).
    #[must_use = "dropping a registration releases it"]
    pub fn share(&self, ua: UserAddr, bytes: u64) -> Option<Registration> {
        self.share_for(ua, bytes, Holder::default())
    }

    /// [`share`](Self::share) for a holder.
    #[must_use = "dropping a registration releases it"]
    pub fn share_for(&self, ua: UserAddr, bytes: u64, holder: Holder) -> Option<Registration> {
        let claim = self.engine.share(ua, bytes, holder)?;
        Some(Registration::new(self.engine.clone(), claim))
    }

    /// Registers device memory that lies at `host`: nothing is pinned, charged or marked dirty. Always a new region.
    ///
    /// # Errors
    /// [`RegisterError::Range`], [`Overlap`](RegisterError::Overlap), [`Exists`](RegisterError::Exists), or
    /// [`Wraps`](crate::RangeError::Wraps) when `host + bytes` passes 2^64.
    pub fn register_device(
        &self,
        ua: UserAddr,
        bytes: u64,
        host: HostAddr,
    ) -> Result<Registration, RegisterError> {
        if host.checked_add(bytes).is_none() {
            return Err(RegisterError::Range(crate::addr::RangeError::Wraps { ua, bytes }));
        }
        let backing = || Backing::Device(host);
        let claim = self.engine.register(ua, bytes, RegisterMode::New, Holder::default(), backing)?;
        Ok(Registration::new(self.engine.clone(), claim))
    }

    /// A reader handle for one thread.
    ///
    /// # Panics
    /// Without memory for it; see [`try_translator`](Self::try_translator).
    #[must_use]
    pub fn translator(&self) -> Translator {
        self.translator_for(Holder::default())
    }

    /// [`translator`](Self::translator) for a holder.
    ///
    /// # Panics
    /// Without memory for it.
    #[must_use]
    pub fn translator_for(&self, holder: Holder) -> Translator {
        self.try_translator(holder).expect("memory for a translator's counts")
    }

    /// [`translator_for`](Self::translator_for) that returns an error.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn try_translator(&self, holder: Holder) -> Result<Translator, OutOfMemory> {
        Ok(Translator::new(self.engine.clone(), self.engine.add_reader(holder)?))
    }

    /// The region that holds all of `[ua, ua + bytes)`; `None` for ranges across regions and for zero bytes.
    #[must_use]
    pub fn find(&self, ua: UserAddr, bytes: u64) -> Option<RegionState> {
        self.engine.find(ua, bytes)
    }

    /// The number of the `bytes` from host address `host` on that the device region holding `host` covers; `None`
    /// without one (docs/specification.md 1.4, `is_devmem`).
    #[must_use]
    pub fn device_at(&self, host: HostAddr, bytes: u64) -> Option<u64> {
        self.engine.device_at(host, bytes)
    }

    /// Whether any memory is registered.
    #[must_use]
    pub fn is_preregistered(&self) -> bool {
        self.engine.is_preregistered()
    }

    /// The state of the address space, as plain data.
    #[must_use]
    pub fn snapshot(&self) -> SpaceState {
        self.engine.snapshot()
    }

    /// Releases regions that were drained by [`Translator::unmap`] or a table, which do not release them. Register and
    /// unregister do it too.
    pub fn reap(&self) {
        self.engine.reap();
    }
}

impl Drop for AddressSpace {
    fn drop(&mut self) {
        self.engine.close();
    }
}

impl fmt::Debug for AddressSpace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressSpace")
            .field("backend", &self.backend())
            .field("granule", &self.granule())
            .finish()
    }
}
