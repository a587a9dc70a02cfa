//! The slots of the pin back end as one I/O ring has them: copies that share the pin and the charge.
//!
//! Who keeps what up to date, and why nothing can be left behind:
//! - The pin back end knows every I/O ring that is attached ([`AttachedRings`]). After it has pinned a region it copies the
//!   region's slots into each of them, on the thread that registers, before anybody can know the address. The I/O
//!   threads never copy anything and never wait for it.
//! - A copy keeps the pages pinned. So before the back end empties its own slots it empties the copies, on the thread
//!   that unregisters, with one system call a ring that only waits for the kernel's lock on that ring: as long as its
//!   I/O thread takes to submit, not as long as an I/O takes. An I/O thread that sleeps, or that has died, holds up
//!   nobody.
//! - Nobody reads or writes through a slot that is being emptied: a region is released when its last mapping is gone, and
//!   an I/O in flight is a mapping. If somebody did, the kernel would keep the pages until that I/O is done.
//! - A ring that goes drops its copies first, in one call, then leaves the list.
//!
//! A slot of a pin ring lies anywhere in the I/O ring's table: one table has 16384 slots, the back end up to 512 tables.
//! What found no room, or could not be copied, is simply not there: [`CloneTable::slot`] says so, and the I/O goes the plain
//! way.
//!
//! From Linux 6.13 on kernels lost the entries behind a range that was copied into the middle of a table, until commit
//! 525916ce4966 (6.19, and updates of 6.18). [`probe`] finds out, and then the entries behind are copied again; an I/O that
//! falls between is refused with EFAULT, to be tried again by whoever submitted it.

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

/// Where the copies of one pin ring's slots lie: the I/O ring's slot plus one, zero where there is none.
type SlotMap = Box<[AtomicU16]>;

/// What copying on this kernel is like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct CloneMode {
    /// Entries behind a copied range are lost.
    pub(crate) loses_tail: bool,
}

/// The table of one I/O ring.
#[derive(Debug)]
pub(crate) struct CloneTable {
    /// The I/O ring, by a descriptor of our own.
    ring: OwnedFd,
    mode: CloneMode,
    maps: Box<[OnceLock<SlotMap>]>,
    clones: Mutex<Clones>,
    /// Slots that are not here, for want of room or because the kernel refused.
    missing: Counter,
}

#[derive(Debug)]
struct Clones {
    table: SlotTable,
    by_pin: HashMap<PinId, CloneEntry>,
    /// The ring is going: nothing is copied into it any more.
    closed: bool,
}

#[derive(Clone, Debug)]
struct CloneEntry {
    source: Arc<PinRing>,
    slots: SlotRange,
    /// `None`: not here, only counted.
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

    /// The slot of the I/O ring that holds what slot `global` of the pin rings holds.
    #[inline]
    pub(crate) fn slot(&self, global: u32) -> Option<u16> {
        let maps = self.maps.get((global / SLOTS) as usize)?.get()?;
        // Acquire, with the store in `clone_pin`: who sees the place finds the copy in the table. A place that is seen too
        // late costs a refusal by the kernel, nothing else: it compares addresses.
        maps[(global % SLOTS) as usize].load(Ordering::Acquire).checked_sub(1)
    }

    /// Slots of the pin rings that are not here.
    pub(crate) fn missing(&self) -> u64 {
        self.missing.get()
    }

    /// Slots of the I/O ring that are taken.
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
            // Release, with the load in `slot`.
            maps[(slots.first + at) as usize].store(place, Ordering::Release);
        }
    }

    /// Copies the slots of a pin that was just made. What cannot be copied is counted as missing.
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

    /// Copies everything behind `local` again, in order, each copy losing what is behind itself.
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

    /// Drops the copies of a pin that is about to be released.
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
                // It cannot be emptied, so it cannot be used again either; closing the ring empties it.
                _ => return,
            }
        }
        if clones.table.claim(local) {
            clones.table.free_slots(local);
        }
    }

    /// Drops all copies, for good.
    fn close(&self) {
        let mut clones = self.clones();
        clones.closed = true;
        for entry in std::mem::take(&mut clones.by_pin).into_values() {
            self.set_slots(entry.slots, None);
        }
        // ENXIO: there never was one. Anything else cannot happen, and the ring's own end does the same a little later.
        let _ = sys::unregister_buffers(self.ring.as_raw_fd());
    }
}

/// The I/O rings that copy a back end's slots, and what there is to copy.
///
/// The lock is held through the copying, so that a ring that comes and a region that goes see each other or not at all.
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

    /// A pin was made: every ring gets it.
    pub(crate) fn pin_added(&self, source: &Arc<PinRing>, slots: SlotRange) {
        let mut inner = self.inner();
        for table in &inner.tables {
            table.clone_pin(source, slots);
        }
        inner.pins.insert(slots.id(), (Arc::clone(source), slots));
    }

    /// A pin is about to be released: every ring drops it.
    pub(crate) fn pin_removed(&self, slots: SlotRange) {
        let mut inner = self.inner();
        if inner.pins.remove(&slots.id()).is_some() {
            for table in &inner.tables {
                table.drop_pin(slots);
            }
        }
    }

    /// A ring came: it gets every pin there is.
    pub(crate) fn attach(&self, table: &Arc<CloneTable>) {
        let mut inner = self.inner();
        for (source, slots) in inner.pins.values() {
            table.clone_pin(source, *slots);
        }
        inner.tables.push(Arc::clone(table));
    }

    /// A ring goes: its copies are dropped when this returns.
    pub(crate) fn detach(&self, table: &Arc<CloneTable>) {
        let mut inner = self.inner();
        table.close();
        inner.tables.retain(|other| !Arc::ptr_eq(other, table));
    }

    pub(crate) fn rings(&self) -> usize {
        self.inner().tables.len()
    }
}

/// Finds out, with rings and a page of its own, whether and how slots can be copied here.
///
/// # Errors
/// The call that failed, and with what.
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
    let answer = sys::read_fixed(&mut target, zero.as_raw_fd(), page.ua(), 1, 1);
    // Ends the pin now; the rings' own end comes later. If either fails, that end does it.
    let _ = sys::unregister_buffers(target.as_raw_fd());
    let _ = source.clear(0, 1);
    match answer.map_err(|errno| (during, errno))? {
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

    /// A pin ring with `count` pages in slots of their own, and the target ring, or the reason why not.
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

        /// Whether `table` says that the ring has `held`, and the kernel agrees.
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
            // Goes where the second was, in front of three others.
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
        // No ring at all: every copy into it fails.
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
