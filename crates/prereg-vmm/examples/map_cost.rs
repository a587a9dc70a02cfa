//! Measures the cost that the adapters add to a map, compared with the same calls without them, alternating in one run.
//!
//!     cargo run --release -p prereg-vmm --all-features --example map_cost
//!
//! The container does nothing, and pins are simulated, so only the adapter's work is measured. Without the adapter a VMM calls the
//! container, and keeps the counted mapping by address to drop it at the unmap, under a lock because any thread may map. A kernel's map takes at least a microsecond. Prints the fastest and the median of many rounds; the numbers are a report, not a test.

use std::collections::BTreeMap;
use std::error::Error;
use std::hint::black_box;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prereg::{Access, AddressSpace, Errno, Granule, Holder, Iova, RangeMapping, Translator, UserAddr};
use prereg_iommu::iova::{Backing, IovaLimits, IovaMap, OnDrained};
use prereg_sim::SimHost;
use prereg_vmm::vm_memory::{PinnedIommu, RegisteredRam};
use prereg_vmm::{DmaContainer, MemoryKind, PersistentMappings};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, MemoryRegionAddress};

const PAGE: u64 = 4096;
/// Maps in a round, all of them live at its end.
const MAPS: u64 = 512;
const ROUNDS: usize = 2001;

/// Accepts everything.
struct Accepting;

impl DmaContainer for Accepting {
    #[expect(unsafe_code, reason = "the trait's")]
    unsafe fn map(&self, iova: Iova, ua: UserAddr, bytes: u64, access: Access) -> Result<(), Errno> {
        black_box((iova, ua, bytes, access));
        Ok(())
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), Errno> {
        black_box((iova, bytes));
        Ok(())
    }
}

struct Ignore;

impl OnDrained for Ignore {
    fn on_drained(&self) {}
}

/// Nanoseconds for each map.
fn each(took: Duration) -> f64 {
    took.as_secs_f64() * 1e9 / MAPS as f64
}

/// The medians of two measurements that alternate, and of their differences.
fn compare(name: &str, mut without: impl FnMut() -> Duration, mut with: impl FnMut() -> Duration) {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        times.push((each(without()), each(with())));
    }
    let fastest_and_median = |mut values: Vec<f64>| {
        values.sort_unstable_by(f64::total_cmp);
        (values[0], values[values.len() / 2])
    };
    let bare = fastest_and_median(times.iter().map(|(bare, _)| *bare).collect());
    let adapted = fastest_and_median(times.iter().map(|(_, adapted)| *adapted).collect());
    for (which, bare, adapted) in [("fastest", bare.0, adapted.0), ("median", bare.1, adapted.1)] {
        let (added, ratio) = (adapted - bare, adapted / bare);
        println!(
            "{name}: {which} {bare:.1} ns without, {adapted:.1} ns with, {added:+.1} ns, ratio {ratio:.2}"
        );
    }
}

/// The state of a VMM without the adapter.
struct Bare {
    translator: Translator,
    units: BTreeMap<u64, RangeMapping>,
}

/// The pins and the container without the adapter.
fn bare_round(bare: &Mutex<Bare>, container: &dyn DmaContainer, start: UserAddr) -> Duration {
    let lock = || bare.lock().unwrap_or_else(PoisonError::into_inner);
    let began = Instant::now();
    for page in 0..MAPS {
        let ua = UserAddr::new(start.raw() + page * PAGE);
        let mut bare = lock();
        let Ok(unit) = bare.translator.map_range(ua, PAGE) else { continue };
        #[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
        // SAFETY: see the reason.
        let mapped = unsafe { container.map(Iova::new(page * PAGE), ua, PAGE, Access::ReadWrite) };
        if mapped.is_ok() {
            bare.units.insert(page * PAGE, unit);
        }
    }
    let took = began.elapsed();
    lock().units.clear();
    took
}

fn adapted_round(mappings: &PersistentMappings, start: UserAddr) -> Duration {
    let began = Instant::now();
    for page in 0..MAPS {
        let ua = UserAddr::new(start.raw() + page * PAGE);
        let iova = Iova::new(page * PAGE);
        #[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
        // SAFETY: see the reason.
        let _ = black_box(unsafe { mappings.map(iova, ua, PAGE, Access::ReadWrite, MemoryKind::Ram) });
    }
    let took = began.elapsed();
    let _ = mappings.unmap(Iova::new(0), MAPS * PAGE);
    took
}

fn main() -> Result<(), Box<dyn Error>> {
    let host = SimHost::new(Granule::K4);
    let guest = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), (MAPS * PAGE) as usize)])?;
    let region = guest.iter().next().ok_or("no memory")?;
    let start = region.get_host_address(MemoryRegionAddress(0))?.expose_provenance() as u64;
    host.memory(start, MAPS * PAGE);
    let space = Arc::new(AddressSpace::builder(host).build()?);
    let ram = Arc::new(RegisteredRam::register(&space, &guest, Holder::default())?);
    let start = UserAddr::new(start);

    let container: Arc<dyn DmaContainer> = Arc::new(Accepting);
    let mappings = PersistentMappings::new(Arc::clone(&space), Arc::clone(&container), Holder::default())?;
    let bare = Mutex::new(Bare { translator: space.translator(), units: BTreeMap::new() });
    compare(
        "PersistentMappings (PinnedVfio, PinnedTarget)",
        || bare_round(&bare, &*container, start),
        || adapted_round(&mappings, start),
    );

    let map = IovaMap::new(&space, IovaLimits::default(), Holder::default(), Arc::new(Ignore))?;
    let iommu = PinnedIommu::new(&space, ram, IovaLimits::default(), Holder::default())?;
    let bare = || {
        let began = Instant::now();
        for page in 0..MAPS {
            let to = Backing::Local(UserAddr::new(start.raw() + page * PAGE));
            let _ = black_box(map.map(Iova::new(page * PAGE), PAGE, to, Access::ReadWrite));
        }
        let took = began.elapsed();
        drop(map.unmap_all());
        took
    };
    let adapted = || {
        let began = Instant::now();
        for page in 0..MAPS {
            let at = GuestAddress(page * PAGE);
            let _ = black_box(iommu.map(at, PAGE, at, Access::ReadWrite));
        }
        let took = began.elapsed();
        drop(iommu.mappings().unmap_all());
        took
    };
    compare("PinnedIommu over IovaMap", bare, adapted);
    Ok(())
}
