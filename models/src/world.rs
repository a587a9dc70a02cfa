//! An address space for models, and a host that detects the use of a page that is not pinned.
//!
//! Each pinned page is a loom cell, which `unpin` writes and every holder of a mapping reads through the mapping's
//! address: loom reports a read and a write that are not ordered, and the value shows a read that came too late. Host
//! addresses are never reused, so an address identifies its pin.
//!
//! Table memory is filled with a pattern when it is released and behind its end, and kept until the model ends. A read
//! of it finds no loom object, which loom reports, or an invalid pointer.

#![expect(unsafe_code, reason = "implements the ports of the core over cells that loom watches")]
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]

use std::alloc::{Layout, alloc, dealloc};
use std::any::Any;
use std::ops::Range;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use loom::cell::UnsafeCell;
use prereg::{
    AddressKind, AddressSpace, Barrier, Charge, ChargeError, DirtyPages, Granule, HostAddr, MapError, Memory,
    PageShift, PageSink, Pin, PinError, PinId, Registration, TableMemory, TableMemoryState, Translator,
    UserAddr, UserRange,
};

/// The page size of the model.
pub const PAGE: u64 = 4096;
/// The first page of the model's user memory.
const FIRST: u64 = 0x10_0000;

/// The address of page `page` of the model's user memory.
#[must_use]
pub fn page(page: u64) -> UserAddr {
    UserAddr::new(FIRST + page * PAGE)
}

/// A page that was pinned once; the value is whether it still is.
#[derive(Debug)]
struct PinnedPage(UnsafeCell<bool>);

// SAFETY: the core orders accesses to the cell, and loom checks it.
unsafe impl Sync for PinnedPage {}
// SAFETY: as above.
unsafe impl Send for PinnedPage {}

/// The pages of all pins so far, by host page number, and the range of each pin.
#[derive(Default, Debug)]
struct Pins {
    pages: Vec<Arc<PinnedPage>>,
    ranges: Vec<Range<usize>>,
    unpins: usize,
}

/// The host: pins and charges.
#[derive(Default, Debug)]
pub struct Host {
    /// A mutex of the standard library, never held over an operation that loom sees.
    pins: Mutex<Pins>,
    charged: AtomicI64,
}

/// Neighbouring pages are not contiguous on the host, so that regions of several pages have a table of page numbers.
const SCATTER: u64 = 2;

impl Host {
    /// Reads the page at `host`, as a device with the address of a live mapping would.
    ///
    /// # Panics
    /// If the page is not pinned any more, or not ordered after its pin.
    pub fn use_page(&self, host: HostAddr) {
        let number = usize::try_from(host.raw() / PAGE / SCATTER).unwrap() - 1;
        let page = self.pins.lock().unwrap().pages[number].clone();
        // SAFETY: a live mapping keeps the page; if it does not, loom reports it.
        assert!(page.0.with(|pinned| unsafe { *pinned }), "a page is used after its unpin");
    }

    /// The number of pinned ranges.
    #[must_use]
    pub fn pinned(&self) -> usize {
        let pins = self.pins.lock().unwrap();
        pins.ranges.len() - pins.unpins
    }

    /// Asserts that nothing is pinned or charged. (A second unpin of a pin fails at once.)
    ///
    /// # Panics
    /// If anything is.
    pub fn assert_all_released(&self) {
        assert_eq!(self.pinned(), 0, "pinned ranges without an owner");
        // Relaxed: no thread is left but this one.
        assert_eq!(self.charged.load(Ordering::Relaxed), 0, "pages charged");
    }
}

// SAFETY: invented addresses; the cell of a page records how long it is pinned.
unsafe impl Pin for Host {
    fn name(&self) -> &'static str {
        "model"
    }

    fn granule(&self) -> Granule {
        Granule::K4
    }

    fn address_kind(&self) -> AddressKind {
        AddressKind::Invented
    }

    fn pin(&self, range: UserRange, pages: &mut PageSink<'_>) -> Result<PinId, PinError> {
        let count = usize::try_from(range.pages(Granule::K4)).unwrap();
        let made: Vec<_> = (0..count).map(|_| Arc::new(PinnedPage(UnsafeCell::new(true)))).collect();
        let mut pins = self.pins.lock().unwrap();
        let first = pins.pages.len();
        pins.pages.extend(made);
        for number in first..first + count {
            pages.push(HostAddr::new((number as u64 + 1) * SCATTER * PAGE), 1)?;
        }
        pins.ranges.push(first..first + count);
        Ok(PinId::new(pins.ranges.len() as u64 - 1))
    }

    fn unpin(&self, pin: PinId, _range: UserRange, _dirty: DirtyPages<'_>) {
        let pages = {
            let mut pins = self.pins.lock().unwrap();
            pins.unpins += 1;
            let range = pins.ranges[usize::try_from(pin.raw()).unwrap()].clone();
            pins.pages[range].to_vec()
        };
        for page in pages {
            // SAFETY: the last use of the page is over; if it is not, loom reports it.
            let pinned = page.0.with_mut(|pinned| unsafe { std::mem::replace(&mut *pinned, false) });
            assert!(pinned, "a page is unpinned twice");
        }
    }
}

impl Charge for Host {
    fn charge(&self, pages: u64) -> Result<(), ChargeError> {
        // Relaxed: a number.
        self.charged.fetch_add(i64::try_from(pages).unwrap(), Ordering::Relaxed);
        Ok(())
    }

    fn uncharge(&self, pages: u64) {
        // Relaxed: a number.
        self.charged.fetch_sub(i64::try_from(pages).unwrap(), Ordering::Relaxed);
    }
}

/// Selects the asymmetric mode, whose code is the one that ships. Loom has no fence that acts on other threads; the
/// core passes a SeqCst fence in both halves then.
struct NoBarrier;

// SAFETY: only under loom, where the core passes the fences of both sides itself.
unsafe impl Barrier for NoBarrier {
    fn all_threads(&self) {}
}

/// The pattern of released memory and of memory behind the end of an array.
const PATTERN: u8 = 0xdd;
/// Bytes of it behind each array.
const GUARD: usize = 64;

/// Released memory that is kept until the model ends.
#[derive(Debug)]
struct Kept(NonNull<u8>, Layout);

// SAFETY: only its address is used, by its one owner.
unsafe impl Send for Kept {}

/// Table memory in which a use after the release or behind the end is detected.
#[derive(Default, Debug)]
pub struct Tables {
    released: Mutex<Vec<Kept>>,
}

impl Tables {
    fn with_guard(layout: Layout) -> Layout {
        Layout::from_size_align(layout.size() + GUARD, layout.align()).unwrap()
    }
}

// SAFETY: the global allocator's memory, zeroed, and freed only with the port itself.
unsafe impl TableMemory for Tables {
    fn allocate(&self, layout: Layout) -> Option<NonNull<u8>> {
        // SAFETY: the size is not zero.
        let at = NonNull::new(unsafe { alloc(Self::with_guard(layout)) })?;
        // SAFETY: inside the allocation.
        unsafe { at.write_bytes(0, layout.size()) };
        // SAFETY: inside the allocation.
        let behind = unsafe { at.add(layout.size()) };
        // SAFETY: the guard is part of the allocation.
        unsafe { behind.write_bytes(PATTERN, GUARD) };
        Some(at)
    }

    unsafe fn release(&self, at: NonNull<u8>, layout: Layout) {
        // SAFETY: the whole allocation, which is not used any more, as the caller promises.
        unsafe { at.write_bytes(PATTERN, layout.size()) };
        self.released.lock().unwrap().push(Kept(at, Self::with_guard(layout)));
    }

    fn state(&self) -> TableMemoryState {
        TableMemoryState::default()
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        for Kept(at, layout) in self.released.get_mut().unwrap().drain(..) {
            // SAFETY: from `alloc` with this layout, released once.
            unsafe { dealloc(at.as_ptr(), layout) };
        }
    }
}

/// User memory: an address range that is never dereferenced.
struct Ram(UserRange);

// SAFETY: nothing ever dereferences it.
unsafe impl Memory for Ram {
    fn ua(&self) -> UserAddr {
        self.0.first()
    }

    fn bytes(&self) -> u64 {
        self.0.bytes()
    }

    fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        None
    }
}

/// The fences that mapping passes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fences {
    /// Of a host with a barrier: the inlined path.
    Asymmetric,
    /// Of a host without one.
    Full,
}

/// An address space and its host.
#[derive(Debug)]
pub struct World {
    /// The host.
    pub host: Arc<Host>,
    /// The address space.
    pub space: AddressSpace,
    /// Memory of its tables, released ones included; kept until the model ends.
    pub tables: Arc<Tables>,
}

impl World {
    /// An empty address space.
    #[must_use]
    pub fn new(fences: Fences) -> Self {
        let host = Arc::new(Host::default());
        let tables = Arc::new(Tables::default());
        let mut builder = AddressSpace::builder(host.clone()).tables(tables.clone());
        if fences == Fences::Asymmetric {
            builder = builder.barrier(Arc::new(NoBarrier));
        }
        Self { host, space: builder.build().unwrap(), tables }
    }

    /// Registers `pages` pages from page `first` on.
    pub fn register(&self, first: u64, pages: u64) -> Registration {
        let range = UserRange::new(page(first), pages * PAGE, Granule::K4).unwrap();
        self.space.register(&Ram(range)).unwrap()
    }
}

/// Maps page `number`; `None` when it is not registered or being unregistered.
///
/// # Panics
/// If mapping fails for another reason.
pub fn map(translator: &mut Translator, number: u64) -> Option<prereg::Mapping> {
    match translator.map(page(number), PageShift::K4) {
        Ok(mapping) => Some(mapping),
        Err(MapError::Unregistered { .. } | MapError::Closing { .. }) => None,
        Err(error) => panic!("{error}"),
    }
}

/// Maps page `number`, uses it and unmaps it. Whether it could be mapped.
pub fn map_and_use(translator: &mut Translator, host: &Host, number: u64) -> bool {
    let Some(mapping) = map(translator, number) else { return false };
    host.use_page(mapping.hpa());
    translator.unmap(mapping);
    true
}
