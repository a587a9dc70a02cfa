//! Clones of a pin back end's buffer slots in the buffer tables of I/O rings. A clone shares the pin and the charge.
//!
//! How the clones stay in step with the pins:
//! - The back end knows every attached I/O ring ([`AttachedRings`]). After it pins a region, the registering thread
//!   clones the region's slots into each ring before the region's addresses are known to any caller. I/O threads
//!   neither clone nor wait.
//! - A clone keeps the pages pinned. Before the back end empties its own slots, the unregistering thread empties the
//!   clones, with one system call per ring. That call waits for the kernel's lock on the ring: for as long as the I/O
//!   thread takes to submit, not as long as an I/O takes. An I/O thread that sleeps or has died delays nothing.
//! - No I/O uses a slot that is being emptied: a region is released after its last mapping, and an I/O in flight is a
//!   mapping. If one did, the kernel would keep the pages until that I/O completes.
//! - A ring that detaches first drops all its clones in one call, then leaves the list.
//!
//! A slot of a pin ring can be cloned to any slot of the I/O ring's table. That table has 16384 slots; the back end can
//! have 512 such tables. A slot for which there was no room, or that the kernel refused to clone, is missing:
//! [`CloneTable::slot`] returns `None`, and the I/O does not use a fixed buffer.
//!
//! Kernels from Linux 6.13 to commit 525916ce4966 (6.19, backported to 6.18) drop the entries after a range that is
//! cloned into the middle of a table. [`probe`] detects that, and then the entries after it are cloned again. An I/O in
//! between fails with EFAULT, and its submitter retries it.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use prereg::{Errno, PinId};

use crate::counter::Counter;
use crate::mapping::Mapping;
use crate::pin_ring::PinRing;
use crate::slot_table::{RINGS, SLOTS, SlotRange, SlotTable};
use crate::sys;

/// For each slot of one pin ring, the I/O ring's slot plus one; zero where there is no clone.
type SlotMap = Box<[AtomicU16]>;

/// How this kernel clones slots.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CloneMode {
    /// Whether entries after a cloned range are dropped.
    pub(crate) loses_tail: bool,
}

/// The clones in one I/O ring.
#[derive(Debug)]
pub(crate) struct CloneTable {
    /// A duplicate of the I/O ring's descriptor.
    ring: OwnedFd,
    mode: CloneMode,
    maps: Box<[OnceLock<SlotMap>]>,
    clones: Mutex<Clones>,
    /// Slots without a clone, for lack of room or because the kernel refused.
    missing: Counter,
}

#[derive(Debug)]
struct Clones {
    table: SlotTable,
    by_pin: HashMap<PinId, CloneEntry>,
    /// The ring is closing: nothing is cloned into it any more.
    closed: bool,
}

#[derive(Clone, Debug)]
struct CloneEntry {
    source: Arc<PinRing>,
    slots: SlotRange,
    /// `None`: no clone, counted as missing.
    local: Option<SlotRange>,
}

impl CloneTable {
    pub(crate) fn new(ring: OwnedFd, mode: CloneMode) -> Self {
        Self {
            ring,
            mode,
            maps: (0..RINGS).map(|_| OnceLock::new()).collect(),
            clones: Mutex::new(Clones { table: SlotTable::new(0), by_pin: HashMap::new(), closed: false }),
            missing: Counter::default(),
        }
    }

    /// The slot of the I/O ring that is a clone of slot `global` of the pin rings.
    #[inline]
    pub(crate) fn slot(&self, global: u32) -> Option<u16> {
        let maps = self.maps.get((global / SLOTS) as usize)?.get()?;
        // Acquire: pairs with the Release store in `set_slots`, so a thread that sees the slot finds its clone in the
        // kernel's table. A stale value costs at most a refusal by the kernel, which compares addresses.
        maps[(global % SLOTS) as usize].load(Ordering::Acquire).checked_sub(1)
    }

    /// Slots of the pin rings that have no clone here.
    pub(crate) fn missing(&self) -> u64 {
        self.missing.get()
    }

    /// Slots of the I/O ring that are in use.
    pub(crate) fn used(&self) -> u32 {
        SLOTS - self.clones().table.free()
    }

    fn clones(&self) -> MutexGuard<'_, Clones> {
        self.clones.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_slots(&self, slots: SlotRange, local: Option<SlotRange>) {
        let maps =
            self.maps[slots.ring as usize].get_or_init(|| (0..SLOTS).map(|_| AtomicU16::new(0)).collect());
        for at in 0..slots.count {
            // A local slot is below 2^14.
            let place = local.map_or(0, |local| (local.first + at + 1) as u16);
            // Release: pairs with the Acquire load in `slot`.
            maps[(slots.first + at) as usize].store(place, Ordering::Release);
        }
    }

    /// Clones the slots of a new pin. Slots that cannot be cloned are counted as missing.
    fn clone_pin(&self, source: &Arc<PinRing>, slots: SlotRange) {
        let mut clones = self.clones();
        if clones.closed {
            return;
        }
        let local = clones.table.alloc(slots.count).and_then(|local| {
            let copied = source.clone_slots(slots.first, slots.count, self.ring.as_raw_fd(), local.first);
            if copied.is_ok() {
                return Some(local);
            }
            if clones.table.claim(local) {
                clones.table.free_slots(local);
            }
            None
        });
        if local.is_none() {
            self.missing.add(u64::from(slots.count));
        }
        clones.by_pin.insert(slots.id(), CloneEntry { source: Arc::clone(source), slots, local });
        if let (Some(local), true) = (local, self.mode.loses_tail) {
            self.reclone_after(&mut clones, local);
        }
        self.set_slots(slots, local);
    }

    /// Clones everything after `local` again, in ascending order, because each clone drops what comes after it.
    fn reclone_after(&self, clones: &mut Clones, local: SlotRange) {
        let mut after: Vec<_> = clones
            .by_pin
            .iter()
            .filter_map(|(id, entry)| Some((entry.local.filter(|other| other.first > local.first)?, *id)))
            .collect();
        after.sort_unstable_by_key(|(other, _)| other.first);
        for (other, id) in after {
            let Some(entry) = clones.by_pin.get_mut(&id) else { continue };
            let slots = entry.slots;
            if entry.source.clone_slots(slots.first, slots.count, self.ring.as_raw_fd(), other.first).is_err()
            {
                entry.local = None;
                self.set_slots(slots, None);
                self.missing.add(u64::from(slots.count));
                if clones.table.claim(other) {
                    clones.table.free_slots(other);
                }
            }
        }
    }

    /// Empties the clones of a pin that is about to be released.
    fn drop_pin(&self, slots: SlotRange) {
        const NONE: [sys::Buffer; 64] = [sys::Buffer::NONE; 64];
        const NO_TAGS: [u64; 64] = [0; 64];
        let mut clones = self.clones();
        let Some(entry) = clones.by_pin.remove(&slots.id()) else { return };
        self.set_slots(slots, None);
        let Some(local) = entry.local else {
            self.missing.sub(u64::from(slots.count));
            return;
        };
        let mut emptied = 0;
        while emptied < local.count {
            let batch = (local.count - emptied).min(NONE.len() as u32) as usize;
            let ring = self.ring.as_raw_fd();
            match sys::update_buffers(ring, local.first + emptied, &NONE[..batch], &NO_TAGS[..batch]) {
                Ok(n) if n > 0 => emptied += n,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                // A slot that cannot be emptied is not reused; closing the ring empties it.
                _ => return,
            }
        }
        if clones.table.claim(local) {
            clones.table.free_slots(local);
        }
    }

    /// Empties all clones and refuses new ones.
    fn close(&self) {
        let mut clones = self.clones();
        clones.closed = true;
        for entry in std::mem::take(&mut clones.by_pin).into_values() {
            self.set_slots(entry.slots, None);
        }
        // ENXIO: there was no clone. No other error is possible, and closing the ring has the same effect.
        let _ = sys::unregister_buffers(self.ring.as_raw_fd());
    }
}

/// The I/O rings that clone a back end's slots, and the pins to clone.
///
/// The lock is held while cloning, so an attaching ring sees each pin either completely or not at all.
#[derive(Debug, Default)]
pub(crate) struct AttachedRings {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    tables: Vec<Arc<CloneTable>>,
    pins: HashMap<PinId, (Arc<PinRing>, SlotRange)>,
}

impl AttachedRings {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Clones a new pin into every ring.
    pub(crate) fn pin_added(&self, source: &Arc<PinRing>, slots: SlotRange) {
        let mut inner = self.inner();
        for table in &inner.tables {
            table.clone_pin(source, slots);
        }
        inner.pins.insert(slots.id(), (Arc::clone(source), slots));
    }

    /// Empties the clones of a pin that is about to be released.
    pub(crate) fn pin_removed(&self, slots: SlotRange) {
        let mut inner = self.inner();
        if inner.pins.remove(&slots.id()).is_some() {
            for table in &inner.tables {
                table.drop_pin(slots);
            }
        }
    }

    /// Adds a ring and clones every pin into it.
    pub(crate) fn attach(&self, table: &Arc<CloneTable>) {
        let mut inner = self.inner();
        for (source, slots) in inner.pins.values() {
            table.clone_pin(source, *slots);
        }
        inner.tables.push(Arc::clone(table));
    }

    /// Removes a ring. Its clones are empty when this returns.
    pub(crate) fn detach(&self, table: &Arc<CloneTable>) {
        let mut inner = self.inner();
        table.close();
        inner.tables.retain(|other| !Arc::ptr_eq(other, table));
    }

    pub(crate) fn rings(&self) -> usize {
        self.inner().tables.len()
    }
}

/// Determines, with rings and a page of its own, whether and how this kernel clones slots.
///
/// # Errors
/// The failed call and its error.
pub(crate) fn probe() -> Result<CloneMode, (&'static str, Errno)> {
    let source = PinRing::new()?;
    let page = Mapping::reservation(usize::try_from(sys::page_size()).unwrap_or(4096))
        .map_err(|errno| ("mmap", errno))?;
    let buffer = sys::Buffer { ua: page.ua(), bytes: page.bytes() };
    source
        .fill(0, std::iter::once(buffer))
        .map_err(|stopped| ("io_uring_register(BUFFERS_UPDATE)", stopped.errno))?;
    let mut target = io_uring::IoUring::builder()
        .dontfork()
        .build(2)
        .map_err(|error| ("io_uring_setup", sys::errno_of(&error)))?;
    for place in [1, 0] {
        source
            .clone_slots(0, 1, target.as_raw_fd(), place)
            .map_err(|errno| ("io_uring_register(CLONE_BUFFERS)", errno))?;
    }
    let zero =
        std::fs::File::open("/dev/zero").map_err(|error| ("opening /dev/zero", sys::errno_of(&error)))?;
    let during = "a read through a copied slot";
    let result = sys::read_fixed(&mut target, zero.as_raw_fd(), page.ua(), 1, 1);
    // Ends the pin now instead of when the rings are destroyed. Should a call fail, destroying the rings does it.
    let _ = sys::unregister_buffers(target.as_raw_fd());
    let _ = source.clear(0, 1);
    match result.map_err(|errno| (during, errno))? {
        1 => Ok(CloneMode { loses_tail: false }),
        result if result == -libc::EFAULT => Ok(CloneMode { loses_tail: true }),
        result => Err((during, Errno::from_raw(result.saturating_neg()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slot_table::SlotTable;
    use crate::sys::Buffer;

    /// A pin ring, pages to pin and a target ring; `None`, with the reason printed, where slots cannot be cloned.
    struct Rings {
        source: Arc<PinRing>,
        pages: Mapping,
        target: io_uring::IoUring,
        table: SlotTable,
    }

    const PAGES: u64 = 6;

    impl Rings {
        fn new() -> Option<Self> {
            if let Err((during, errno)) = probe() {
                eprintln!("skipped: {during} gave {errno}");
                return None;
            }
            let page = usize::try_from(sys::page_size()).unwrap();
            let pages = Mapping::new(crate::mapping::MapRequest {
                bytes: PAGES as usize * page,
                align: page,
                protection: libc::PROT_READ | libc::PROT_WRITE,
                flags: libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                file: None,
            });
            let target = io_uring::IoUring::builder().dontfork().build(2).unwrap();
            Some(Self {
                source: Arc::new(PinRing::new().unwrap()),
                pages: pages.unwrap(),
                target,
                table: SlotTable::new(0),
            })
        }

        fn page(&self, index: u64) -> u64 {
            self.pages.ua() + index * sys::page_size()
        }

        fn pin(&mut self, index: u64) -> SlotRange {
            let slots = self.table.alloc(1).unwrap();
            let buffer = Buffer { ua: self.page(index), bytes: sys::page_size() };
            self.source.fill(slots.first, std::iter::once(buffer)).unwrap();
            slots
        }

        fn table(&self, loses_tail: bool) -> Arc<CloneTable> {
            let ring = sys::duplicate(&self.target).unwrap();
            Arc::new(CloneTable::new(ring, CloneMode { loses_tail }))
        }

        /// Whether `table` has a clone of `slots` and the kernel accepts it.
        fn has(&mut self, table: &CloneTable, slots: SlotRange, index: u64) -> bool {
            let Some(slot) = table.slot(slots.global()) else { return false };
            let zero = std::fs::File::open("/dev/zero").unwrap();
            let page = self.page(index);
            sys::read_fixed(&mut self.target, zero.as_raw_fd(), page, 16, slot) == Ok(16)
        }
    }

    #[test]
    fn holes_are_filled_and_nothing_behind_them_is_lost() {
        for loses_tail in [false, true] {
            let Some(mut rings) = Rings::new() else { return };
            let table = rings.table(loses_tail);
            let attached = AttachedRings::default();
            attached.attach(&table);
            let slots: Vec<_> = (0..PAGES).map(|index| rings.pin(index)).collect();
            for slots in &slots[..5] {
                attached.pin_added(&rings.source, *slots);
            }
            attached.pin_removed(slots[1]);
            assert!(!rings.has(&table, slots[1], 1));
            // Takes the slot of the second pin, before three others.
            attached.pin_added(&rings.source, slots[5]);
            assert_eq!(table.slot(slots[5].global()), Some(1));
            for index in [0, 2, 3, 4, 5] {
                assert!(rings.has(&table, slots[index as usize], index), "slot {index}, {loses_tail}");
            }
            assert_eq!((table.used(), table.missing()), (5, 0));
        }
    }

    #[test]
    fn a_ring_that_comes_late_has_everything_and_one_that_went_has_nothing() {
        let Some(mut rings) = Rings::new() else { return };
        let attached = AttachedRings::default();
        let slots = [rings.pin(0), rings.pin(1)];
        for slots in slots {
            attached.pin_added(&rings.source, slots);
        }
        let table = rings.table(false);
        attached.attach(&table);
        assert!(rings.has(&table, slots[0], 0) && rings.has(&table, slots[1], 1));
        attached.detach(&table);
        assert_eq!(attached.rings(), 0);
        assert!(!rings.has(&table, slots[0], 0));
        let page = rings.page(1);
        let zero = std::fs::File::open("/dev/zero").unwrap();
        let refused = sys::read_fixed(&mut rings.target, zero.as_raw_fd(), page, 16, 1);
        assert_eq!(refused, Ok(-libc::EFAULT), "the kernel's table is empty too");
        attached.pin_removed(slots[0]);
    }

    #[test]
    fn what_was_never_filled_is_emptied_without_harm() {
        let Some(mut rings) = Rings::new() else { return };
        let attached = AttachedRings::default();
        let table = rings.table(false);
        attached.attach(&table);
        let slots = rings.pin(0);
        attached.pin_removed(slots);
        attached.pin_added(&rings.source, slots);
        attached.pin_removed(slots);
        attached.pin_removed(slots);
        assert_eq!((table.used(), table.missing()), (0, 0));
    }

    #[test]
    fn a_refusal_to_copy_is_counted_as_missing_and_forgotten_with_its_pin() {
        let Some(mut rings) = Rings::new() else { return };
        let attached = AttachedRings::default();
        // Not a ring: every clone into it fails.
        let table = Arc::new(CloneTable::new(
            std::fs::File::open("/dev/null").unwrap().into(),
            CloneMode { loses_tail: false },
        ));
        attached.attach(&table);
        let slots = rings.pin(0);
        attached.pin_added(&rings.source, slots);
        assert_eq!((table.slot(slots.global()), table.used(), table.missing()), (None, 0, 1));
        attached.pin_removed(slots);
        assert_eq!(table.missing(), 0);
    }
}
