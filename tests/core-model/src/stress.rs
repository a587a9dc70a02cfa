//! The random operations on several threads in one address space, with the fence and the locked tables of a Linux host.
//!
//! No model follows threads that race. Each thread checks what must hold in every interleaving: while a mapping lives,
//! its region is pinned by one pin, and the mapping's address is that pin's. The host shows the current pin of each
//! spot without any ordering (see [`Host::shown`]). At the end nothing is left, and all the while the number of retired
//! regions stays below its bound, although some translators are never refreshed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use prereg::{AddressSpace, EntryBlock, Granule, Holder, HolderKind, PageShift, TableMemory, Translator};
use prereg_linux::{LockedTables, Membarrier};

use crate::host::Host;
use crate::model::most_unreclaimed;
use crate::random::mix;
use crate::surface;

mod actor;
mod arena;

use actor::Actor;
pub use arena::Until;
use arena::{Arena, Counts, ENTRIES, piece};

/// Translators that never look for a newer snapshot.
const IDLE: usize = 8;

/// The parameters of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Plan {
    /// Threads; at least two work.
    pub threads: usize,
    /// Its end.
    pub until: Until,
    /// The seed of the threads' random choices.
    pub seed: u64,
}

/// Counts of the operations.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Host addresses compared with the truth.
    pub addresses: u64,
    /// Operations.
    pub operations: u64,
    /// Ranges pinned and unpinned.
    pub pins: u64,
    /// Unregisters refused because something was mapped.
    pub refused: u64,
    /// Maps that found no region, or one that was being unregistered.
    pub missed: u64,
    /// The most retired regions that were kept at a time.
    pub retired: u64,
    /// Whether a fence on all threads stood behind the closes.
    pub fenced: bool,
}

fn block(space: &AddressSpace, container: u64) -> EntryBlock {
    let holder = Holder { container, kind: HolderKind::TableEntry };
    EntryBlock::new(space, PageShift::K4, ENTRIES, holder).unwrap_or_else(|error| panic!("{error}"))
}

/// Runs `plan`, and checks that nothing is left.
///
/// # Panics
/// On any violation.
#[must_use]
pub fn run(plan: Plan) -> Report {
    let host = Host::new(Granule::K4);
    host.be_quiet();
    let barrier = Membarrier::shared();
    let fenced = barrier.is_some();
    let tables = Arc::new(LockedTables::new());
    let memory: Arc<dyn TableMemory> = tables.clone();
    let space = surface::space_with(&host, barrier, memory);
    let blocks = [block(&space, 1), block(&space, 2)];
    // Registered all the while, so that there is always something to map.
    let standing = [0, 2].map(|spot| space.register(&piece(host.spots()[spot])));
    let arena = Arena {
        host: host.clone(),
        space,
        blocks,
        counts: Counts::default(),
        until: plan.until,
        stop: AtomicBool::new(false),
    };
    let mut idle: Vec<Translator> = vec![arena.space.translator()];
    let (mut retired, mut regions) = (0, 0);
    std::thread::scope(|scope| {
        let arena = &arena;
        let actors: Vec<_> = (0..plan.threads.max(2) as u64)
            .map(|number| scope.spawn(move || Actor::new(arena, number, mix(plan.seed, number)).work()))
            .collect();
        let started = Instant::now();
        while !actors.iter().any(std::thread::ScopedJoinHandle::is_finished) {
            if matches!(plan.until, Until::Time(time) if started.elapsed() >= time) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
            let state = arena.space.snapshot();
            // A crowd may have come and gone between two looks.
            regions = regions.max(state.regions.len() as u64);
            let most = most_unreclaimed(state.translators, regions + 1024);
            assert!(
                state.unreclaimed <= most,
                "{} retired regions are kept, {most} at most",
                state.unreclaimed
            );
            retired = retired.max(state.unreclaimed);
            // Not all at once, so that each uses another snapshot.
            if idle.len() < IDLE {
                idle.push(arena.space.translator());
            }
        }
        if matches!(plan.until, Until::Time(_)) {
            // Relaxed: a flag that orders nothing.
            arena.stop.store(true, Ordering::Relaxed);
        }
    });
    let Arena { space, blocks, counts, host: shared, .. } = arena;
    drop((blocks, shared));
    drop(standing);
    space.reap();
    let left = space.snapshot();
    assert!(left.regions.is_empty() && left.pinned_pages == 0 && left.charged_pages == 0, "{left:?}");
    assert_eq!(left.pins, left.unpins, "what was pinned was unpinned");
    drop(idle);
    let kept = space.snapshot().unreclaimed;
    assert_eq!(kept, 0, "retired regions without a translator");
    drop(space);
    assert_eq!(host.wrong(), Vec::<String>::new());
    assert_eq!(host.pinned_and_charged(), (0, 0), "pages pinned and charged");
    assert_eq!(host.handles(), 1, "owners of the host");
    assert_eq!(tables.state().used, 0, "bytes of tables still in use");
    // Relaxed: the threads were joined.
    let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
    Report {
        addresses: read(&counts.addresses),
        operations: read(&counts.operations),
        refused: read(&counts.refused),
        missed: read(&counts.missed),
        pins: left.pins,
        retired,
        fenced,
    }
}
