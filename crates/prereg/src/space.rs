//! The address space: the owner of a set of regions. One per process, or one per guest.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use crate::addr::{Granule, HostAddr, UserAddr};
use crate::engine::{Engine, OutOfMemory};
use crate::port::{AddressKind, Barrier, Charge, Memory, Pin};
use crate::register::{Backing, RegisterError, Wish};
use crate::registration::Registration;
use crate::state::{RegionState, SpaceState};
use crate::tables::{HeapTables, TableMemory};
use crate::tally::Holder;
use crate::translator::Translator;

/// What every address space keeps its tables in that was given nothing else.
fn heap() -> Arc<dyn TableMemory> {
    Arc::new(HeapTables::new())
}

/// The owner of a set of regions.
///
/// Shared between threads by reference or `Arc`. Dropping it gives every registration up, whoever holds it: what nobody
/// maps is unpinned at once, what somebody maps when he lets go.
pub struct AddressSpace {
    engine: Arc<Engine>,
}

impl AddressSpace {
    /// An empty address space. How pages are pinned and charged is chosen here, once.
    ///
    /// # Panics
    /// Without memory for its own tables, some KiB; so do the next two. See [`with_tables`](Self::with_tables).
    pub fn new(host: impl Pin + Charge + 'static) -> Self {
        let host = Arc::new(host);
        Self::with_ports(host.clone(), host)
    }

    /// The same with pins and charges from two hands.
    pub fn with_ports(pins: impl Pin + 'static, charges: impl Charge + 'static) -> Self {
        let (barrier, tables) = (pins.barrier(), pins.tables().unwrap_or_else(heap));
        let engine = Engine::new(Box::new(pins), Box::new(charges), barrier, tables);
        Self { engine: engine.expect("memory for an address space") }
    }

    /// The same with a fence that the back end does not bring along.
    pub fn with_barrier(host: impl Pin + Charge + 'static, barrier: Arc<dyn Barrier>) -> Self {
        let tables = host.tables().unwrap_or_else(heap);
        Self::with_tables(host, Some(barrier), tables).expect("memory for an address space")
    }

    /// The same with memory for tables that the back end does not bring along, and the back end's fence or another one.
    ///
    /// # Errors
    /// [`OutOfMemory`] when `tables` has none.
    pub fn with_tables(
        host: impl Pin + Charge + 'static,
        barrier: Option<Arc<dyn Barrier>>,
        tables: Arc<dyn TableMemory>,
    ) -> Result<Self, OutOfMemory> {
        let host = Arc::new(host);
        let barrier = barrier.or_else(|| host.barrier());
        Ok(Self { engine: Engine::new(Box::new(host.clone()), Box::new(host), barrier, tables)? })
    }

    pub(crate) fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The system page size.
    #[must_use]
    pub fn granule(&self) -> Granule {
        self.engine.granule()
    }

    /// What the host addresses of mappings mean.
    #[must_use]
    pub fn address_kind(&self) -> AddressKind {
        self.engine.pins().address_kind()
    }

    /// The name of the pin back end.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        self.engine.pins().name()
    }

    /// Registers `memory`: pins and charges it, or shares the region of just this range if there is one (no new pin, no
    /// new charge).
    ///
    /// Order: range, overlap, charge, pin. A thread that finds the same range just being registered waits and shares it.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is pinned, charged or listed then.
    pub fn register(&self, memory: &(impl Memory + ?Sized)) -> Result<Registration, RegisterError> {
        self.register_for(memory, Holder::default())
    }

    /// [`register`](Self::register), labelled with whose registration it is.
    ///
    /// # Errors
    /// As `register`.
    pub fn register_for(
        &self,
        memory: &(impl Memory + ?Sized),
        holder: Holder,
    ) -> Result<Registration, RegisterError> {
        self.register_as(memory, Wish::ShareOrNew, holder)
    }

    /// Registers `memory` as a new region.
    ///
    /// # Errors
    /// As `register`; [`RegisterError::Exists`] (EINVAL) when its range is registered already.
    pub fn register_new(&self, memory: &(impl Memory + ?Sized)) -> Result<Registration, RegisterError> {
        self.register_as(memory, Wish::New, Holder::default())
    }

    fn register_as(
        &self,
        memory: &(impl Memory + ?Sized),
        wish: Wish,
        holder: Holder,
    ) -> Result<Registration, RegisterError> {
        let backing = || Backing::Pinned(memory.keep());
        let claim = self.engine.register(memory.ua(), memory.bytes(), wish, holder, backing)?;
        claim.map(|claim| Registration::new(self.engine.clone(), claim)).ok_or(RegisterError::Gone)
    }

    /// One more registration of the region of exactly `[ua, ua + bytes)`; `None` when there is none. The memory is not
    /// looked at: after an unmap and a new map at the same address this is still the old memory (specification scenario
    /// 48).
    #[must_use = "dropping a registration gives it up"]
    pub fn share(&self, ua: UserAddr, bytes: u64) -> Option<Registration> {
        self.share_for(ua, bytes, Holder::default())
    }

    /// [`share`](Self::share), labelled with whose registration it is.
    #[must_use = "dropping a registration gives it up"]
    pub fn share_for(&self, ua: UserAddr, bytes: u64, holder: Holder) -> Option<Registration> {
        let claim = self.engine.register(ua, bytes, Wish::Share, holder, || Backing::Pinned(None)).ok()??;
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
        let claim = self.engine.register(ua, bytes, Wish::New, Holder::default(), backing)?;
        claim.map(|claim| Registration::new(self.engine.clone(), claim)).ok_or(RegisterError::Gone)
    }

    /// A reader handle for one thread.
    ///
    /// # Panics
    /// Without memory for it; see [`try_translator`](Self::try_translator).
    #[must_use]
    pub fn translator(&self) -> Translator {
        self.translator_for(Holder::default())
    }

    /// [`translator`](Self::translator), labelled with whose mappings it makes.
    ///
    /// # Panics
    /// Without memory for it.
    #[must_use]
    pub fn translator_for(&self, holder: Holder) -> Translator {
        self.try_translator(holder).expect("memory for a translator's counts")
    }

    /// [`translator_for`](Self::translator_for) that reports.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn try_translator(&self, holder: Holder) -> Result<Translator, OutOfMemory> {
        Ok(Translator::new(self.engine.clone(), self.engine.station(holder)?))
    }

    /// The one region that holds all of `[ua, ua + bytes)`. Neighbours are not stitched together; zero bytes lie nowhere.
    #[must_use]
    pub fn find(&self, ua: UserAddr, bytes: u64) -> Option<RegionState> {
        self.engine.find(ua, bytes)
    }

    /// The device region that holds the host address `host`, and how many of the `bytes` from there on it covers
    /// (specification 1.4, `is_devmem`).
    #[must_use]
    pub fn device_at(&self, host: HostAddr, bytes: u64) -> Option<u64> {
        self.engine.device_at(host, bytes)
    }

    /// Whether anything is registered.
    #[must_use]
    pub fn is_preregistered(&self) -> bool {
        self.engine.is_preregistered()
    }

    /// Everything there is to see, as plain data.
    #[must_use]
    pub fn snapshot(&self) -> SpaceState {
        self.engine.snapshot()
    }

    /// Releases regions that were drained by [`Translator::unmap`] or a table, which only queue them. Register and
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
