//! Random registers, unregisters, drains, maps, lists, ranges and table entries on all processors, with the fence and the
//! locked tables that a real host has; at the end the books balance.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prereg::{
    Access, AddressSpace, EntryBlock, Granule, Holder, HolderKind, MapError, Mapping, PageShift,
    Registration, TableMemory, Translator, UserAddr,
};
use prereg_linux::{LockedTables, Membarrier};
use prereg_sim::{MapSpec, SimHost};

const K4: PageShift = PageShift::K4;
/// The first page of all.
const FIRST: u64 = 0x7f00_0000_0000 >> 12;
/// Ranges that are registered, first page and pages: large and small ones, scattered and one in huge pages, many neighbours
/// of one page, and one far away that the cells of the others do not cover.
const RANGES: [(u64, u64); 5] = [(0, 4096), (8192, 512), (16384, 64), (20480, 3), (1 << 34, 16)];
/// The one in huge pages.
const HUGE: usize = 1;
/// The one that is registered all the while, so that there is something to map.
const STANDING: usize = 2;
/// Neighbours of one page each, with gaps of one.
const SMALL: (u64, u64) = (32768, 1024);
const ENTRIES: u64 = 1024;

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Threads that registered, and threads that mapped.
    pub threads: (usize, usize),
    /// Registrations made.
    pub registered: u64,
    /// Registrations given up, dropped or drained.
    pub given_up: u64,
    /// Unregisters refused because something was mapped.
    pub refused: u64,
    /// Pages mapped and given back, by themselves and in lists.
    pub mapped: u64,
    /// Maps that found no region, or a closing one.
    pub missed: u64,
    /// Entries set and cleared.
    pub entries: u64,
    /// Translators made.
    pub translators: u64,
    /// Whether a fence on all threads stood behind the closes.
    pub fenced: bool,
}

#[derive(Default)]
struct Counts {
    registered: AtomicU64,
    given_up: AtomicU64,
    refused: AtomicU64,
    mapped: AtomicU64,
    missed: AtomicU64,
    entries: AtomicU64,
    translators: AtomicU64,
}

fn add(count: &AtomicU64, more: u64) {
    // Relaxed: a number for the report.
    count.fetch_add(more, Ordering::Relaxed);
}

struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % limit
    }

    /// First page and pages of any range.
    fn range(&mut self) -> (u64, u64) {
        if self.below(2) == 0 {
            let (first, count) = SMALL;
            (first + 2 * self.below(count), 1)
        } else {
            RANGES[self.below(RANGES.len() as u64) as usize]
        }
    }
}

fn ua(page: u64) -> UserAddr {
    UserAddr::new((FIRST + page) << 12)
}

fn holder(container: u64) -> Holder {
    Holder { container, kind: HolderKind::TableEntry }
}

/// Does all that for `duration`, and checks the books.
///
/// # Panics
/// When an address was wrong or not pinned, or the books do not balance.
#[must_use]
pub fn run(duration: Duration) -> Report {
    let host = SimHost::new(Granule::K4);
    for (index, (first, pages)) in RANGES.into_iter().enumerate() {
        if index == HUGE {
            host.map(ua(first).raw(), pages << 12, MapSpec::huge(PageShift::M2));
        } else {
            let _ = host.memory(ua(first).raw(), pages << 12);
        }
    }
    for page in 0..SMALL.1 {
        let _ = host.memory(ua(SMALL.0 + 2 * page).raw(), 1 << 12);
    }
    let barrier = Membarrier::shared();
    let fenced = barrier.is_some();
    let tables = Arc::new(LockedTables::new());
    let memory: Arc<dyn TableMemory> = tables.clone();
    let mut builder = AddressSpace::builder(host.clone()).tables(memory);
    if let Some(barrier) = barrier {
        builder = builder.barrier(barrier);
    }
    let space = builder.build().unwrap_or_else(|error| panic!("{error}"));
    let block = EntryBlock::new(&space, K4, ENTRIES as usize, holder(1));
    let block = block.unwrap_or_else(|error| panic!("{error}"));
    let standing = register(&space, &host, RANGES[STANDING]);

    let counts = Counts::default();
    let stop = AtomicBool::new(false);
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let threads = (processors.div_ceil(2).max(2), processors.max(2));
    std::thread::scope(|scope| {
        let (space, host, block, counts, stop) = (&space, &host, &block, &counts, &stop);
        for seed in 0..threads.0 as u64 {
            scope.spawn(move || register_at_random(space, host, counts, Random(seed + 1), stop));
        }
        for seed in 0..threads.1 as u64 {
            scope.spawn(move || Mapper::new(space, host, block, counts, seed).work(stop));
        }
        let until = Instant::now() + duration;
        while Instant::now() < until {
            std::thread::sleep(Duration::from_millis(50).min(duration));
        }
        stop.store(true, Ordering::Relaxed);
    });

    drop(block);
    drop(standing);
    space.reap();
    let left = space.snapshot();
    assert!(left.regions.is_empty() && left.pinned_pages == 0 && left.charged_pages == 0, "{left:?}");
    assert_eq!(left.pins, left.unpins, "what was pinned was unpinned");
    host.assert_clean();
    drop(space);
    assert_eq!(tables.state().used, 0, "tables that nobody gave back");
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Report {
        threads,
        registered: read(&counts.registered),
        given_up: read(&counts.given_up),
        refused: read(&counts.refused),
        mapped: read(&counts.mapped),
        missed: read(&counts.missed),
        entries: read(&counts.entries),
        translators: read(&counts.translators),
        fenced,
    }
}

fn register(space: &AddressSpace, host: &SimHost, (first, pages): (u64, u64)) -> Registration {
    let memory = host.range(ua(first).raw(), pages << 12);
    space.register(&memory).unwrap_or_else(|error| panic!("{error}"))
}

fn register_at_random(
    space: &AddressSpace,
    host: &SimHost,
    counts: &Counts,
    mut random: Random,
    stop: &AtomicBool,
) {
    let mut kept: Vec<Registration> = Vec::new();
    // Relaxed: a flag that orders nothing.
    while !stop.load(Ordering::Relaxed) {
        if kept.is_empty() || random.below(64) > kept.len() as u64 {
            kept.push(register(space, host, random.range()));
            add(&counts.registered, 1);
            continue;
        }
        let registration = kept.swap_remove(random.below(kept.len() as u64) as usize);
        match random.below(8) {
            0 => {
                drop(registration);
                add(&counts.given_up, 1);
            }
            1 => {
                drop(registration.drain());
                add(&counts.given_up, 1);
            }
            2 => {
                let many: Vec<_> =
                    std::iter::once(registration).chain(kept.drain(kept.len() / 2..)).collect();
                let asked = many.len();
                let refused = Registration::unregister_many(many);
                add(&counts.given_up, (asked - refused.len()) as u64);
                add(&counts.refused, refused.len() as u64);
                kept.extend(refused.into_iter().map(prereg::UnregisterError::into_inner));
            }
            _ => match registration.unregister() {
                Ok(()) => add(&counts.given_up, 1),
                Err(busy) => {
                    add(&counts.refused, 1);
                    kept.push(busy.into_inner());
                }
            },
        }
    }
}

/// A thread that maps.
struct Mapper<'a> {
    space: &'a AddressSpace,
    host: &'a SimHost,
    block: &'a EntryBlock,
    counts: &'a Counts,
    random: Random,
    number: u64,
    translator: Translator,
    kept: Vec<Mapping>,
}

impl<'a> Mapper<'a> {
    fn new(
        space: &'a AddressSpace,
        host: &'a SimHost,
        block: &'a EntryBlock,
        counts: &'a Counts,
        number: u64,
    ) -> Self {
        let translator = space.translator_for(holder(number));
        Self {
            space,
            host,
            block,
            counts,
            random: Random(number + 100),
            number,
            translator,
            kept: Vec::new(),
        }
    }

    fn work(mut self, stop: &AtomicBool) {
        let mut round = 0u64;
        // Relaxed: a flag that orders nothing.
        while !stop.load(Ordering::Relaxed) {
            self.step();
            round += 1;
            if round % 4096 == 0 {
                // With units outstanding: they are another one's to give back.
                self.translator = self.space.translator_for(holder(self.number));
                add(&self.counts.translators, 1);
            }
        }
        // On this thread, without the translator that took them.
        drop(self.translator);
        drop(self.kept);
    }

    fn page(&mut self) -> (UserAddr, u64) {
        let (first, pages) = self.random.range();
        let offset = self.random.below(pages);
        (ua(first + offset), pages - offset)
    }

    fn right(&self, mapping: &Mapping) {
        assert_eq!(Some(mapping.hpa()), self.host.backs(mapping.ua().raw()), "another page's address");
        assert!(self.host.pin_count(mapping.ua().raw()) >= 1, "mapped and not pinned");
    }

    fn missed(&self, error: MapError) {
        match error {
            MapError::Unregistered { .. } | MapError::Closing { .. } | MapError::Contended => {
                add(&self.counts.missed, 1);
            }
            error => panic!("{error}"),
        }
    }

    fn step(&mut self) {
        let (page, pages) = self.page();
        match self.random.below(10) {
            0..=3 => match self.translator.map(page, K4) {
                Ok(mapping) => {
                    self.right(&mapping);
                    add(&self.counts.mapped, 1);
                    self.kept.push(mapping);
                }
                Err(error) => self.missed(error),
            },
            4 => match self.translator.map_range(page, (1 + self.random.below(pages)) << 12) {
                Ok(range) => {
                    let total: u64 = range.runs().map(|run| run.bytes).sum();
                    assert_eq!(total, range.bytes());
                    assert_eq!(range.runs().next().map(|run| run.host), self.host.backs(page.raw()));
                    self.translator.unmap_range(range);
                    add(&self.counts.mapped, 1);
                }
                Err(error) => self.missed(error),
            },
            5 => self.list(),
            6 => {
                let index = self.random.below(ENTRIES) as usize;
                match self.block.set(&mut self.translator, index, page, Access::ReadWrite) {
                    Ok(_) => add(&self.counts.entries, 1),
                    Err(error) => self.missed(error),
                }
            }
            7 => {
                let index = self.random.below(ENTRIES) as usize;
                match self.block.clear(&mut self.translator, index) {
                    Ok(_) => add(&self.counts.entries, 1),
                    Err(error) => self.missed(error),
                }
            }
            _ => {
                while self.kept.len() > 8 {
                    let mapping = self.kept.swap_remove(self.random.below(self.kept.len() as u64) as usize);
                    self.right(&mapping);
                    if self.random.below(4) > 0 { self.translator.unmap(mapping) } else { drop(mapping) }
                }
            }
        }
    }

    fn list(&mut self) {
        let pages: Vec<UserAddr> = (0..1 + self.random.below(100)).map(|_| self.page().0).collect();
        let mut mappings: Vec<Option<Mapping>> = pages.iter().map(|_| None).collect();
        match self.translator.map_list(&pages, K4, &mut mappings) {
            Ok(()) => {
                for (mapping, page) in mappings.iter().flatten().zip(&pages) {
                    assert_eq!(mapping.ua(), *page);
                    self.right(mapping);
                }
                add(&self.counts.mapped, pages.len() as u64);
                self.translator.unmap_list(&mut mappings);
            }
            Err(prereg::ListError::Page { error, .. }) => self.missed(error),
            Err(error) => panic!("{error}"),
        }
        assert!(mappings.iter().all(Option::is_none), "all or nothing");
    }
}
