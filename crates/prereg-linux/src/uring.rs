//! The pin back end on io_uring: memory in a slot of a buffer table is pinned until the slot is emptied.
//!
//! This is `FOLL_LONGTERM` pinning for anybody within RLIMIT_MEMLOCK, without a driver: pages survive compaction, swap,
//! `fork` and the merging of equal pages. One region takes one slot a piece (see `limit`), all of them neighbours in one
//! ring; a back end makes another ring when none has room, up to 512.
//!
//! Order matters: pages are pinned, then their frames are read, because the pin itself may move a page. A pin that fails
//! half way gives everything back before it returns; `unpin` returns when the kernel has said that the pages are free.
//! I/O rings ([`IoRing`](crate::IoRing)) use the slots through copies, which come and go with the pins: `clones` has the
//! rules.
//!
//! No lock of ours is held while the kernel faults pages in or pins them, except that threads which release on one ring
//! share the wait for its completions. (The kernel pins on one ring one call after the other; that is why memory is
//! faulted in beforehand.)

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::time::Duration;

use prereg::{
    AddressKind, Barrier, Charge, ChargeError, DirtyPages, Errno, Granule, PageSink, Pin, PinError, PinId,
    UserAddr, UserRange,
};

use crate::account::MemlockAccount;
use crate::barrier::Membarrier;
use crate::clones::{self, Attached, CloneTable, Manner};
use crate::error::BackendError;
use crate::fault_in::{self, FaultIn, FaultInError, Old};
use crate::frames;
use crate::limit;
use crate::maps;
use crate::options::Options;
use crate::pagemap::{Pagemap, system_granule};
use crate::ring::{Ring, Stopped};
use crate::ring_state::RingState;
use crate::slots::{Held, RINGS, SLOTS, SlotTable};
use crate::sys::Buffer;

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
    rings: RwLock<Vec<Arc<Slotted>>>,
    pagemap: Option<Pagemap>,
    granule: Granule,
    kind: AddressKind,
    /// Bytes that one slot is given: what the kernel is believed to allow.
    piece: AtomicU64,
    account: MemlockAccount,
    options: Options,
    /// Pins end with the process that made them; a child of `fork` has neither the rings' memory nor a say.
    process: u32,
    counts: Counts,
    attached: Attached,
    copying: OnceLock<Result<Manner, (&'static str, Errno)>>,
}

#[derive(Debug)]
struct Slotted {
    ring: Arc<Ring>,
    table: Mutex<SlotTable>,
}

#[derive(Debug, Default)]
struct Counts {
    pins: AtomicU64,
    unpins: AtomicU64,
    pinned: AtomicU64,
    stray: AtomicU64,
    stuck: AtomicU64,
}

/// Why the kernel's "no" is not the end.
enum Verdict {
    Again,
    Smaller(u64),
    Refused(PinError),
}

impl IoUring {
    /// What [`IoUringBuilder`](crate::IoUringBuilder) makes.
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
        // The kernel settles who may pass the limit when a ring is made.
        let account = MemlockAccount::settled(granule);
        let ring = Slotted::new(0).map_err(|(during, errno)| BackendError::of_ring(during, errno))?;
        let piece = match options.slot_limit {
            Some(bytes) => bytes,
            None => limit::probe(ring.ring.fd(), 0)
                .map_err(|errno| BackendError::Os { during: "asking for the limit of a slot", errno })?,
        };
        Ok(Self {
            rings: RwLock::new(vec![Arc::new(ring)]),
            pagemap: pagemap.ok(),
            granule,
            kind,
            piece: AtomicU64::new(piece),
            account,
            options,
            process: std::process::id(),
            counts: Counts::default(),
            attached: Attached::default(),
            copying: OnceLock::new(),
        })
    }

    /// The bytes that one slot is given: 1 GiB, or more where the kernel allows it. Larger regions take several slots.
    #[must_use]
    pub fn slot_limit(&self) -> u64 {
        // Relaxed: a size to try, nothing is published by it.
        self.piece.load(Ordering::Relaxed)
    }

    /// What the host addresses are, in a sentence for people.
    #[must_use]
    pub fn address_note(&self) -> &'static str {
        match self.kind {
            AddressKind::Physical => {
                "host addresses are physical, read from /proc/self/pagemap after the pin"
            }
            _ if self.options.addresses.is_some() => {
                "host addresses are (slot, offset) of io_uring's fixed buffers, as asked"
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

    /// What is in use now.
    #[must_use]
    pub fn state(&self) -> RingState {
        let rings = self.rings();
        let free = rings.iter().map(|ring| ring.table().free()).sum();
        let count = rings.len() as u32;
        // Relaxed, all: numbers for reports.
        RingState {
            rings: count,
            slots_used: count * SLOTS - free,
            slots_free: free,
            pin_calls: self.counts.pins.load(Ordering::Relaxed),
            unpin_calls: self.counts.unpins.load(Ordering::Relaxed),
            pinned_bytes: self.counts.pinned.load(Ordering::Relaxed),
            overdue_seconds: rings.iter().map(|ring| ring.ring.overdue()).sum(),
            stray_unpins: self.counts.stray.load(Ordering::Relaxed),
            stuck_slots: self.counts.stuck.load(Ordering::Relaxed),
            io_rings: self.attached.rings() as u32,
        }
    }

    /// Whether slots can be copied into I/O rings on this kernel; found out when it is first asked.
    pub(crate) fn copying(&self) -> Result<Manner, (&'static str, Errno)> {
        *self.copying.get_or_init(clones::probe)
    }

    /// The I/O ring of `table` has the slots from now on.
    pub(crate) fn attach(&self, table: &Arc<CloneTable>) {
        self.attached.attach(table);
    }

    /// The I/O ring of `table` goes.
    pub(crate) fn detach(&self, table: &Arc<CloneTable>) {
        self.attached.detach(table);
    }

    fn rings(&self) -> Vec<Arc<Slotted>> {
        self.rings.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ring(&self, index: u32) -> Option<Arc<Slotted>> {
        self.rings.read().unwrap_or_else(PoisonError::into_inner).get(index as usize).cloned()
    }

    /// Takes `count` neighbouring slots, of a new ring if need be.
    fn take(&self, count: u32, ua: UserAddr) -> Result<(Arc<Slotted>, Held), PinError> {
        let find = |rings: &[Arc<Slotted>]| {
            rings.iter().find_map(|ring| ring.table().take(count).map(|held| (Arc::clone(ring), held)))
        };
        if count > SLOTS {
            return Err(PinError::NoSlot { need: count, free: SLOTS });
        }
        if let Some(found) = find(&self.rings.read().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(found);
        }
        let mut rings = self.rings.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have made one meanwhile.
        if let Some(found) = find(&rings) {
            return Ok(found);
        }
        let index = rings.len() as u32;
        if index >= RINGS {
            let free = rings.iter().map(|ring| ring.table().free()).sum();
            return Err(PinError::NoSlot { need: count, free });
        }
        let ring = Slotted::new(index).map_err(|(during, errno)| match errno {
            Errno::ENOMEM => self.limit_error(0),
            errno => PinError::Os { ua, errno, during },
        })?;
        rings.push(Arc::new(ring));
        find(&rings).ok_or(PinError::NoSlot { need: count, free: 0 })
    }

    /// Empties the first `filled` slots of `held` and gives all of them back. `false` when they are not held (any more).
    fn give_back(&self, slotted: &Slotted, held: Held, filled: u32) -> bool {
        if !slotted.table().claim(held) {
            return false;
        }
        self.attached.emptying(held);
        if filled > 0 && slotted.ring.clear(held.first, filled).is_err() {
            // Relaxed: a number for reports.
            self.counts.stuck.fetch_add(u64::from(held.count), Ordering::Relaxed);
        } else {
            slotted.table().put(held);
        }
        true
    }

    /// Brings memory that is not there in, so that the pin finds it present: the kernel's lock on the ring is then held only for
    /// a walk, and pins of other threads go on. With several threads where that is worth it.
    fn fault_in(&self, range: UserRange) -> Result<(), PinError> {
        const WORTH_A_LOOK: u64 = 1 << 20;
        const WORTH_THREADS: u64 = 16 << 20;
        let wanted = fault_in::threads(self.options.threads);
        let threads = if range.bytes() < WORTH_THREADS { 1 } else { wanted };
        let left_to_the_pin = wanted == 1 && self.options.progress.is_none();
        if range.bytes() < WORTH_A_LOOK || left_to_the_pin {
            return Ok(());
        }
        if self.pagemap.as_ref().is_some_and(|map| frames::look_present(map, range)) {
            return Ok(());
        }
        // Said to be called for large memory only.
        let progress = self.options.progress.as_deref().filter(|_| range.bytes() >= WORTH_THREADS);
        let how = FaultIn { threads, progress, cancel: self.options.cancel.as_deref() };
        fault_in::populate(range.first().raw(), range.bytes(), how, Old::Leave).map_err(|error| match error {
            FaultInError::Cancelled { .. } => {
                PinError::Os { ua: range.first(), errno: Errno::EINTR, during: "bringing it into memory" }
            }
            FaultInError::Fault { errno: Errno::ENOMEM, .. } => PinError::OutOfMemory,
            FaultInError::Fault { ua, why, .. } => PinError::Fault { ua, why },
        })
    }

    /// Over the limit for certain, before anything is tried.
    fn refuse_over_limit(&self, range: UserRange) -> Result<(), PinError> {
        // Relaxed: a first look; the kernel has the last word.
        let used = self.counts.pinned.load(Ordering::Relaxed);
        match self.limit_bytes() {
            Some(limit) if used.saturating_add(range.bytes()) > limit => Err(self.limit_error(range.bytes())),
            _ => Ok(()),
        }
    }

    fn limit_bytes(&self) -> Option<u64> {
        self.account.limit().map(|pages| pages << self.granule.shift().get())
    }

    fn limit_error(&self, need: u64) -> PinError {
        match self.limit_bytes() {
            // Relaxed: a number for a message.
            Some(limit) => PinError::Limit { need, used: self.counts.pinned.load(Ordering::Relaxed), limit },
            None => PinError::OutOfMemory,
        }
    }

    /// What a refusal means: the piece that begins at `at` was refused with `errno`.
    fn judge(&self, range: UserRange, piece: u64, stopped: Stopped, patience: &mut Patience) -> Verdict {
        let offset = stopped.done as u64 * piece;
        let at = UserAddr::new(range.first().raw() + offset);
        let bytes = piece.min(range.bytes() - offset);
        let Ok(refused) = UserRange::new(at, bytes, self.granule) else {
            return Verdict::Refused(PinError::OutOfMemory);
        };
        match stopped.errno {
            Errno::EINTR | Errno::EAGAIN if patience.wait() => Verdict::Again,
            // A process of the same user that was killed gives its charge back a little later than its pages.
            Errno::ENOMEM if self.limit_bytes().is_some() => {
                if patience.wait() {
                    Verdict::Again
                } else {
                    Verdict::Refused(self.limit_error(range.bytes()))
                }
            }
            Errno::ENOMEM => {
                limit::smaller(bytes).map_or(Verdict::Refused(PinError::OutOfMemory), Verdict::Smaller)
            }
            Errno::EFAULT | Errno::EINVAL | Errno::EOVERFLOW => {
                let (obstacle, next) = match limit::smaller(bytes) {
                    Some(next) => (maps::mapped_obstacle(refused), Some(next)),
                    None => (maps::obstacle(refused), None),
                };
                match (obstacle, next) {
                    (Some(found), _) => Verdict::Refused(PinError::Fault { ua: found.ua, why: found.why }),
                    (None, Some(next)) => Verdict::Smaller(next),
                    (None, None) => Verdict::Refused(PinError::Fault { ua: at, why: maps::OTHER_KIND }),
                }
            }
            errno => {
                Verdict::Refused(PinError::Os { ua: at, errno, during: "io_uring_register(BUFFERS_UPDATE)" })
            }
        }
    }

    /// Pins the range in pieces; answers where it is and how large the pieces were.
    fn fill(&self, range: UserRange) -> Result<(Arc<Slotted>, Held, u64), PinError> {
        let believed = self.slot_limit();
        let mut piece = believed;
        let mut patience = Patience::default();
        loop {
            let count = u32::try_from(range.bytes().div_ceil(piece)).unwrap_or(u32::MAX);
            let (slotted, held) = self.take(count, range.first())?;
            let Err(stopped) = slotted.ring.fill(held.first, pieces(range, piece)) else {
                if piece < believed {
                    // Relaxed: a size to try. Only a smaller piece that worked where a larger did not is believed.
                    self.piece.fetch_min(piece, Ordering::Relaxed);
                }
                return Ok((slotted, held, piece));
            };
            self.give_back(&slotted, held, stopped.done as u32);
            match self.judge(range, piece, stopped, &mut patience) {
                Verdict::Again => {}
                Verdict::Smaller(next) => piece = next,
                Verdict::Refused(error) => return Err(error),
            }
        }
    }

    fn push_addresses(
        &self,
        range: UserRange,
        held: Held,
        piece: u64,
        pages: &mut PageSink<'_>,
    ) -> Result<(), PinError> {
        if let (AddressKind::Physical, Some(map)) = (self.kind, &self.pagemap) {
            return frames::push(map, range, pages);
        }
        for (slot, buffer) in pieces(range, piece).enumerate() {
            pages.push(
                frames::slot_host(held.global() + slot as u32),
                buffer.bytes >> self.granule.shift().get(),
            )?;
        }
        Ok(())
    }
}

// SAFETY: registered buffers are pinned for long until their slots are cleared, and page frame numbers are read after
// the pin.
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
            return Err(PinError::Os {
                ua: range.first(),
                errno: Errno::EPERM,
                during: "pinning in a child of the process that made the back end",
            });
        }
        self.refuse_over_limit(range)?;
        self.fault_in(range)?;
        let (slotted, held, piece) = self.fill(range)?;
        if let Err(error) = self.push_addresses(range, held, piece, pages) {
            self.give_back(&slotted, held, held.count);
            return Err(error);
        }
        self.attached.filled(&slotted.ring, held);
        // Relaxed, both: numbers for reports and for a first look at the limit.
        self.counts.pins.fetch_add(1, Ordering::Relaxed);
        self.counts.pinned.fetch_add(range.bytes(), Ordering::Relaxed);
        Ok(held.id())
    }

    /// The pages need no mark for `dirty`: they were pinned for writing, and the kernel keeps such pages as written.
    fn unpin(&self, pin: PinId, range: UserRange, _dirty: DirtyPages<'_>) {
        if self.process != std::process::id() {
            return;
        }
        let held = Held::from_id(pin);
        let known = self.ring(held.ring).is_some_and(|slotted| self.give_back(&slotted, held, held.count));
        if !known {
            // Relaxed: a number for reports.
            self.counts.stray.fetch_add(1, Ordering::Relaxed);
            return;
        }
        // Relaxed, both: as in `pin`.
        self.counts.unpins.fetch_add(1, Ordering::Relaxed);
        self.counts.pinned.fetch_sub(range.bytes(), Ordering::Relaxed);
    }
}

impl Charge for IoUring {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        self.account.charge(pages)
    }

    fn uncharge(&self, pages: u64) {
        self.account.uncharge(pages);
    }
}

impl Slotted {
    fn new(index: u32) -> Result<Self, (&'static str, Errno)> {
        Ok(Self { ring: Arc::new(Ring::new()?), table: Mutex::new(SlotTable::new(index)) })
    }

    fn table(&self) -> MutexGuard<'_, SlotTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pieces of `range`, in order.
fn pieces(range: UserRange, piece: u64) -> impl Iterator<Item = Buffer> {
    let (first, bytes) = (range.first().raw(), range.bytes());
    (0..bytes.div_ceil(piece)).map(move |index| {
        let offset = index * piece;
        Buffer { ua: first + offset, bytes: piece.min(bytes - offset) }
    })
}

/// How long to bear with a refusal that may pass: seven waits, 635 ms together.
#[derive(Default)]
struct Patience {
    waits: u32,
}

impl Patience {
    /// Waits a little; `false` when it has been enough.
    fn wait(&mut self) -> bool {
        const MOST: u32 = 7;
        const FIRST: Duration = Duration::from_millis(5);
        if self.waits == MOST {
            return false;
        }
        std::thread::sleep(FIRST * (1 << self.waits));
        self.waits += 1;
        true
    }
}
