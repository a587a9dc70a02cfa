//! The pin back end on io_uring: memory in a slot of a buffer table is pinned until the slot is emptied.
//!
//! These are `FOLL_LONGTERM` pins for any user within RLIMIT_MEMLOCK, without a driver: pages survive compaction, swap,
//! `fork` and the merging of equal pages. A region takes one slot, or several adjacent ones of one ring if it is larger
//! than a slot can hold (see `buffer_limit`). When no ring has enough free slots, another one is made, up to 512.
//!
//! Pages are pinned first and their frames read afterwards, because pinning may move a page. A pin that fails part-way
//! is undone before it returns. `unpin` returns when the kernel has confirmed that the pages are released. I/O rings
//! ([`IoRing`](crate::IoRing)) use clones of the slots; see `buffer_clones`.
//!
//! While the kernel faults pages in or pins them no lock of this back end is held, except that threads which release on
//! one ring share the wait for its completions. (The kernel pins on one ring one call at a time, which is why memory is
//! prefaulted.)

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use prereg::{
    AddressKind, Barrier, DirtyPages, Errno, Granule, PageSink, Pin, PinError, PinId, UserAddr, UserRange,
};

use crate::account::{MemlockAccount, impl_charge};
use crate::barrier::Membarrier;
use crate::buffer_clones::{self, AttachedRings, CloneMode, CloneTable};
use crate::buffer_limit;
use crate::counter::Counter;
use crate::error::{BackendError, pinned_by_parent};
use crate::frames;
use crate::io_uring_state::IoUringState;
use crate::options::Options;
use crate::pagemap::{Pagemap, system_granule};
use crate::pin_ring::{PartialFill, PinRing};
use crate::prefault::{self, Fallback, Prefault, PrefaultError};
use crate::proc_maps;
use crate::slot_table::{RINGS, SLOTS, SlotRange, SlotTable};
use crate::sys::{self, Buffer};

/// Pins with io_uring's registered buffers.
///
/// ```no_run
/// use prereg::{AddressSpace, PageShift};
/// use prereg_linux::{GuestMemory, IoUring};
///
/// let space = AddressSpace::builder(IoUring::new()?).build()?;
/// let ram = GuestMemory::memfd("guest", 64 << 20)?;
/// let registration = space.register(&ram)?;
/// let mut translator = space.translator();
/// let mapping = translator.map(registration.ua(), PageShift::K4)?;
/// println!("{}", mapping.hpa());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct IoUring {
    rings: RwLock<Vec<Arc<BufferSlots>>>,
    pagemap: Option<Pagemap>,
    granule: Granule,
    kind: AddressKind,
    /// Bytes per slot: the limit that the kernel is assumed to have.
    slot_bytes: AtomicU64,
    account: MemlockAccount,
    options: Options,
    /// The process that made the back end: a child of `fork` has neither the rings' memory nor the pins.
    process: u32,
    counters: PinCounters,
    attached: AttachedRings,
    clone_mode: OnceLock<Result<CloneMode, (&'static str, Errno)>>,
}

#[derive(Debug)]
struct BufferSlots {
    ring: Arc<PinRing>,
    table: Mutex<SlotTable>,
}

#[derive(Debug, Default)]
struct PinCounters {
    pins: Counter,
    unpins: Counter,
    pinned: Counter,
    stray: Counter,
    stuck: Counter,
}

/// How to react to a refused pin.
enum Refusal {
    Retry,
    Smaller(u64),
    Final(PinError),
}

impl IoUring {
    /// The constructor behind [`IoUringBuilder`](crate::IoUringBuilder).
    pub(crate) fn with_options(options: Options) -> Result<Self, BackendError> {
        let granule = system_granule()?;
        let pagemap = Pagemap::open();
        let shown = match &pagemap {
            Ok(map) => map.shows_frames()?,
            Err(_) => false,
        };
        let kind = match options.addresses {
            None if shown => AddressKind::Physical,
            Some(AddressKind::Physical) => {
                if !shown {
                    return Err(pagemap.err().map_or(BackendError::FramesHidden, BackendError::from));
                }
                AddressKind::Physical
            }
            _ => AddressKind::SlotOffset,
        };
        // The kernel reads the privilege when a ring is made.
        let account = MemlockAccount::with_current_privilege(granule);
        let ring = BufferSlots::new(0).map_err(|(during, errno)| BackendError::of_ring(during, errno))?;
        let slot_bytes = match options.slot_limit {
            Some(bytes) => bytes,
            None => buffer_limit::probe(ring.ring.fd(), 0)
                .map_err(|errno| BackendError::Os { during: "probing the limit of a slot", errno })?,
        };
        Ok(Self {
            rings: RwLock::new(vec![Arc::new(ring)]),
            pagemap: pagemap.ok(),
            granule,
            kind,
            slot_bytes: AtomicU64::new(slot_bytes),
            account,
            options,
            process: std::process::id(),
            counters: PinCounters::default(),
            attached: AttachedRings::default(),
            clone_mode: OnceLock::new(),
        })
    }

    /// The most bytes per slot: 1 GiB, or more where the kernel allows it. Larger regions take several slots.
    #[must_use]
    pub fn slot_limit(&self) -> u64 {
        // Relaxed: a size to try; it orders no other memory.
        self.slot_bytes.load(Ordering::Relaxed)
    }

    /// A sentence that says what the host addresses are.
    #[must_use]
    pub fn address_note(&self) -> &'static str {
        match self.kind {
            AddressKind::Physical => {
                "host addresses are physical, read from /proc/self/pagemap after the pin"
            }
            _ if self.options.addresses.is_some() => {
                "host addresses are (slot, offset) of io_uring's fixed buffers, as requested"
            }
            _ => {
                "host addresses are (slot, offset) of io_uring's fixed buffers: physical ones are hidden from this user \
                 (they need CAP_SYS_ADMIN)"
            }
        }
    }

    /// The account that charges go to.
    #[must_use]
    pub const fn account(&self) -> &MemlockAccount {
        &self.account
    }

    /// A snapshot of the counters.
    #[must_use]
    pub fn state(&self) -> IoUringState {
        let rings = self.rings();
        let free = rings.iter().map(|ring| ring.table().free()).sum();
        let count = rings.len() as u32;
        IoUringState {
            rings: count,
            slots_used: count * SLOTS - free,
            slots_free: free,
            pin_calls: self.counters.pins.get(),
            unpin_calls: self.counters.unpins.get(),
            pinned_bytes: self.counters.pinned.get(),
            overdue_seconds: rings.iter().map(|ring| ring.ring.overdue()).sum(),
            stray_unpins: self.counters.stray.get(),
            stuck_slots: self.counters.stuck.get(),
            io_rings: self.attached.rings() as u32,
        }
    }

    /// How slots can be cloned into I/O rings on this kernel; determined at the first call.
    pub(crate) fn clone_mode(&self) -> Result<CloneMode, (&'static str, Errno)> {
        *self.clone_mode.get_or_init(buffer_clones::probe)
    }

    /// Keeps the slots cloned in the I/O ring of `table` from now on.
    pub(crate) fn attach(&self, table: &Arc<CloneTable>) {
        self.attached.attach(table);
    }

    /// Removes the I/O ring of `table`.
    pub(crate) fn detach(&self, table: &Arc<CloneTable>) {
        self.attached.detach(table);
    }

    fn rings(&self) -> Vec<Arc<BufferSlots>> {
        self.rings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ring(&self, index: u32) -> Option<Arc<BufferSlots>> {
        self.rings.read().unwrap_or_else(PoisonError::into_inner).get(index as usize).cloned()
    }

    /// Allocates `count` adjacent slots, in a new ring if necessary.
    fn alloc_slots(&self, count: u32, ua: UserAddr) -> Result<(Arc<BufferSlots>, SlotRange), PinError> {
        let find = |rings: &[Arc<BufferSlots>]| {
            rings.iter().find_map(|ring| ring.table().alloc(count).map(|slots| (Arc::clone(ring), slots)))
        };
        if count > SLOTS {
            return Err(PinError::NoSlot { need: count, free: SLOTS });
        }
        if let Some(found) = find(&self.rings.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(found);
        }
        let mut rings = self.rings.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have made a ring in the meantime.
        if let Some(found) = find(&rings) {
            return Ok(found);
        }
        let index = rings.len() as u32;
        if index >= RINGS {
            let free = rings.iter().map(|ring| ring.table().free()).sum();
            return Err(PinError::NoSlot { need: count, free });
        }
        let ring = BufferSlots::new(index).map_err(|(during, errno)| match errno {
            Errno::ENOMEM => self.limit_error(0),
            errno => PinError::Os { ua, errno, during },
        })?;
        rings.push(Arc::new(ring));
        find(&rings).ok_or(PinError::NoSlot { need: count, free: 0 })
    }

    /// Empties the first `filled` of `slots` and frees all of them. `false` when they are not allocated.
    fn release_slots(&self, ring: &BufferSlots, slots: SlotRange, filled: u32) -> bool {
        if !ring.table().claim(slots) {
            return false;
        }
        self.attached.pin_removed(slots);
        if filled > 0 && ring.ring.clear(slots.first, filled).is_err() {
            self.counters.stuck.add(u64::from(slots.count));
        } else {
            ring.table().free_slots(slots);
        }
        true
    }

    /// Faults in memory that is not resident, with several threads if it is large, so that the pin finds it present.
    /// The kernel's lock on the ring is then held only for a page-table walk, and pins of other threads proceed.
    fn prefault(&self, range: UserRange) -> Result<(), PinError> {
        const WORTH_A_LOOK: u64 = 1 << 20;
        const WORTH_THREADS: u64 = 16 << 20;
        let wanted = sys::worker_threads(self.options.threads);
        let threads = if range.bytes() < WORTH_THREADS { 1 } else { wanted };
        let left_to_the_pin = wanted == 1 && self.options.progress.is_none();
        if range.bytes() < WORTH_A_LOOK || left_to_the_pin {
            return Ok(());
        }
        if self.pagemap.as_ref().is_some_and(|map| frames::looks_resident(map, range)) {
            return Ok(());
        }
        // Documented to be called for large memory only.
        let progress = self.options.progress.as_deref().filter(|_| range.bytes() >= WORTH_THREADS);
        let how = Prefault { threads, progress, cancel: self.options.cancel.as_deref() };
        prefault::populate(range.first().raw(), range.bytes(), how, Fallback::Skip).map_err(|error| {
            match error {
                PrefaultError::Cancelled { .. } => {
                    PinError::Os { ua: range.first(), errno: Errno::EINTR, during: "prefaulting it" }
                }
                PrefaultError::Fault { errno: Errno::ENOMEM, .. } => PinError::OutOfMemory,
                PrefaultError::Fault { ua, why, .. } => PinError::Fault { ua, why },
            }
        })
    }

    /// Refuses early what certainly exceeds the limit.
    fn refuse_over_limit(&self, range: UserRange) -> Result<(), PinError> {
        let used = self.counters.pinned.get();
        match self.account.limit_bytes() {
            Some(limit) if used.saturating_add(range.bytes()) > limit => Err(self.limit_error(range.bytes())),
            _ => Ok(()),
        }
    }

    fn limit_error(&self, need: u64) -> PinError {
        self.account.refusal(need, || self.counters.pinned.get())
    }

    /// Classifies the failure of a pin after `stopped.done` slots.
    fn classify_refusal(
        &self,
        range: UserRange,
        slot_bytes: u64,
        stopped: PartialFill,
        backoff: &mut Backoff,
    ) -> Refusal {
        let offset = stopped.done as u64 * slot_bytes;
        let at = UserAddr::new(range.first().raw() + offset);
        let bytes = slot_bytes.min(range.bytes() - offset);
        let Ok(refused) = UserRange::new(at, bytes, self.granule) else {
            return Refusal::Final(PinError::OutOfMemory);
        };
        match stopped.errno {
            Errno::EINTR | Errno::EAGAIN if backoff.wait() => Refusal::Retry,
            // The charge of a killed process of this user is released a little later than its pages.
            Errno::ENOMEM if self.account.limit_bytes().is_some() => {
                if backoff.wait() {
                    Refusal::Retry
                } else {
                    Refusal::Final(self.limit_error(range.bytes()))
                }
            }
            Errno::ENOMEM => {
                buffer_limit::smaller(bytes).map_or(Refusal::Final(PinError::OutOfMemory), Refusal::Smaller)
            }
            Errno::EFAULT | Errno::EINVAL | Errno::EOVERFLOW => {
                let (reason, next) = match buffer_limit::smaller(bytes) {
                    Some(next) => (proc_maps::vma_reason(refused), Some(next)),
                    None => (proc_maps::unpinnable_reason(refused), None),
                };
                match (reason, next) {
                    (Some(found), _) => Refusal::Final(found.into()),
                    (None, Some(next)) => Refusal::Smaller(next),
                    (None, None) => Refusal::Final(PinError::Fault { ua: at, why: proc_maps::OTHER_KIND }),
                }
            }
            errno => {
                Refusal::Final(PinError::Os { ua: at, errno, during: "io_uring_register(BUFFERS_UPDATE)" })
            }
        }
    }

    /// Pins the range. Returns its ring, its slots and the bytes per slot.
    fn fill(&self, range: UserRange) -> Result<(Arc<BufferSlots>, SlotRange, u64), PinError> {
        let assumed = self.slot_limit();
        let mut slot_bytes = assumed;
        let mut backoff = Backoff::default();
        loop {
            let count = u32::try_from(range.bytes().div_ceil(slot_bytes)).unwrap_or(u32::MAX);
            let (ring, slots) = self.alloc_slots(count, range.first())?;
            let Err(stopped) = ring.ring.fill(slots.first, slot_buffers(range, slot_bytes)) else {
                if slot_bytes < assumed {
                    // Relaxed: a size to try. It is lowered only after a smaller size succeeded where a larger one
                    // failed.
                    self.slot_bytes.fetch_min(slot_bytes, Ordering::Relaxed);
                }
                return Ok((ring, slots, slot_bytes));
            };
            self.release_slots(&ring, slots, stopped.done as u32);
            match self.classify_refusal(range, slot_bytes, stopped, &mut backoff) {
                Refusal::Retry => {}
                Refusal::Smaller(next) => slot_bytes = next,
                Refusal::Final(error) => return Err(error),
            }
        }
    }

    fn push_addresses(
        &self,
        range: UserRange,
        slots: SlotRange,
        slot_bytes: u64,
        pages: &mut PageSink<'_>,
    ) -> Result<(), PinError> {
        if let (AddressKind::Physical, Some(map)) = (self.kind, &self.pagemap) {
            return frames::push_frames(map, range, pages);
        }
        for (slot, buffer) in slot_buffers(range, slot_bytes).enumerate() {
            pages.push(
                frames::slot_host(slots.global() + slot as u32),
                buffer.bytes >> self.granule.shift().get(),
            )?;
        }
        Ok(())
    }
}

// SAFETY: the kernel pins registered buffers until their slots are emptied, and page frames are read after the pin.
#[expect(unsafe_code, reason = "what the addresses are is a promise")]
unsafe impl Pin for IoUring {
    fn name(&self) -> &'static str {
        "io-uring"
    }

    fn granule(&self) -> Granule {
        self.granule
    }

    fn address_kind(&self) -> AddressKind {
        self.kind
    }

    fn barrier(&self) -> Option<Arc<dyn Barrier>> {
        Membarrier::shared()
    }

    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        if self.process != std::process::id() {
            return Err(pinned_by_parent(range));
        }
        self.refuse_over_limit(range)?;
        self.prefault(range)?;
        let (ring, slots, slot_bytes) = self.fill(range)?;
        if let Err(error) = self.push_addresses(range, slots, slot_bytes, pages) {
            self.release_slots(&ring, slots, slots.count);
            return Err(error);
        }
        self.attached.pin_added(&ring.ring, slots);
        self.counters.pins.add(1);
        self.counters.pinned.add(range.bytes());
        Ok(slots.id())
    }

    /// Pages need no mark for `dirty`: they are pinned for writing, and the kernel treats such pages as written.
    fn unpin(&self, pin: PinId, range: UserRange, _dirty: DirtyPages<'_>) {
        if self.process != std::process::id() {
            return;
        }
        let slots = SlotRange::from_id(pin);
        let known = self.ring(slots.ring).is_some_and(|ring| self.release_slots(&ring, slots, slots.count));
        if !known {
            self.counters.stray.add(1);
            return;
        }
        self.counters.unpins.add(1);
        self.counters.pinned.sub(range.bytes());
    }
}

impl_charge!(IoUring);

impl BufferSlots {
    fn new(index: u32) -> Result<Self, (&'static str, Errno)> {
        Ok(Self { ring: Arc::new(PinRing::new()?), table: Mutex::new(SlotTable::new(index)) })
    }

    fn table(&self) -> MutexGuard<'_, SlotTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slots' buffers of `range`, in order.
fn slot_buffers(range: UserRange, slot_bytes: u64) -> impl Iterator<Item = Buffer> {
    let (first, bytes) = (range.first().raw(), range.bytes());
    (0..bytes.div_ceil(slot_bytes)).map(move |index| {
        let offset = index * slot_bytes;
        Buffer { ua: first + offset, bytes: slot_bytes.min(bytes - offset) }
    })
}

/// Delays between retries of a refusal that may be temporary: seven, 635 ms in total.
#[derive(Default)]
struct Backoff {
    waits: u32,
}

impl Backoff {
    /// Waits; `false` when all retries are used up.
    fn wait(&mut self) -> bool {
        const ASSUMED_MAX: u32 = 7;
        const FIRST: Duration = Duration::from_millis(5);
        if self.waits == ASSUMED_MAX {
            return false;
        }
        std::thread::sleep(FIRST * (1 << self.waits));
        self.waits += 1;
        true
    }
}
