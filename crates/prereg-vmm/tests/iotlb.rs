//! The adapter with IOTLB semantics compared with `vm_memory::Iotlb`, memory plugged and unplugged under live IOMMUs, and memory held
//! for virtio-queue.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

#[path = "../examples/virtio_blk.rs"]
mod example;

use std::io::{Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{Access, AddressSpace, Errno, Granule, Holder};
use prereg_iommu::iova::{IovaLimits, OnDrained};
use prereg_sim::SimHost;
use prereg_vmm::vm_memory::{HeldMemory, PinnedIommu, PinnedIotlb, RegisteredRam};
use proptest::prelude::*;
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT, Reader, Writer};
use vm_memory::bitmap::AtomicBitmap;
use vm_memory::{
    Bytes, GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, Iommu, IommuMemory, Iotlb, MemoryRegionAddress, MmapRegion, Permissions,
};

const PAGE: u64 = 4096;

struct World {
    host: SimHost,
    space: Arc<AddressSpace>,
    guest: GuestMemoryMmap,
    ram: Arc<RegisteredRam>,
}

fn gpa(address: u64) -> GuestAddress {
    GuestAddress(address)
}

fn mmap(ranges: &[(u64, u64)], host: &SimHost) -> GuestMemoryMmap {
    let regions = ranges.iter().map(|&(at, bytes)| {
        GuestRegionMmap::new(mapped(bytes as usize), gpa(at)).expect("regions do not pass 2^64")
    });
    let guest = GuestMemoryMmap::from_regions(regions.collect()).unwrap();
    for region in guest.iter() {
        host.memory(region.get_host_address(MemoryRegionAddress(0)).unwrap().addr() as u64, region.len());
    }
    guest
}

/// Anonymous memory; under miri leaked heap memory, which does not have the flags of `MmapRegion`'s `mmap`.
fn mapped(bytes: usize) -> MmapRegion {
    if !cfg!(miri) {
        return MmapRegion::new(bytes).unwrap();
    }
    #[derive(Clone)]
    #[repr(align(4096))]
    struct Aligned(#[expect(dead_code, reason = "reached by pointer")] [u8; PAGE as usize]);
    let pages = vec![Aligned([0; PAGE as usize]); bytes / PAGE as usize].into_boxed_slice();
    let start = Box::into_raw(pages).cast::<u8>();
    let access = libc::PROT_READ | libc::PROT_WRITE;
    #[expect(unsafe_code, reason = "miri has no mapped memory")]
    // SAFETY: the memory has that length and is never freed.
    unsafe {
        MmapRegion::build_raw(start, bytes, access, libc::MAP_PRIVATE).unwrap()
    }
}

impl World {
    fn new(ranges: &[(u64, u64)]) -> Self {
        let host = SimHost::new(Granule::K4);
        let guest = mmap(ranges, &host);
        let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
        let ram = Arc::new(RegisteredRam::register(&space, &guest, Holder::default()).unwrap());
        Self { host, space, guest, ram }
    }

    fn iotlb(&self) -> PinnedIotlb {
        PinnedIotlb::new(&self.space, Arc::clone(&self.ram), Holder::default()).unwrap()
    }

    fn iommu(&self) -> PinnedIommu {
        PinnedIommu::new(&self.space, Arc::clone(&self.ram), IovaLimits::default(), Holder::default())
            .unwrap()
    }

    /// The guest's memory with one more region.
    fn plugged(&self, at: u64, bytes: u64) -> GuestMemoryMmap {
        let more = mmap(&[(at, bytes)], &self.host);
        let (_, region) = more.remove_region(gpa(at), bytes).unwrap();
        self.guest.insert_region(region).unwrap()
    }
}

#[test]
#[cfg_attr(miri, ignore = "pins with io_uring")]
fn the_virtio_blk_example_runs() {
    example::main().unwrap();
}

/// The targets of a range, or `None` if it is not mapped for that access.
fn targets(iommu: &PinnedIotlb, iova: u64, bytes: usize, access: Permissions) -> Option<Vec<(u64, usize)>> {
    let found = iommu.translate(gpa(iova), bytes, access).ok()?;
    Some(found.map(|range| (range.base.0, range.length)).collect())
}

#[test]
fn an_update_replaces_and_an_invalidation_cuts() {
    let world = World::new(&[(0, 0x10_000)]);
    let iotlb = world.iotlb();
    let update = |iova, bytes, to| {
        let done = iotlb.update(gpa(iova), bytes, gpa(to), Permissions::ReadWrite).unwrap();
        assert!(done.is_done());
    };
    update(0x10_0000, 4 * PAGE, 0);
    // Repeated: vhost does it after every miss.
    update(0x10_0000, 4 * PAGE, 0);
    assert_eq!(iotlb.entries(), 1);
    // One page of four.
    assert!(iotlb.invalidate(gpa(0x10_1000), PAGE).is_done());
    assert_eq!(targets(&iotlb, 0x10_1000, 1, Permissions::Read), None);
    assert_eq!(targets(&iotlb, 0x10_0fff, 2, Permissions::Read), None);
    assert_eq!(targets(&iotlb, 0x10_0fff, 1, Permissions::Read), Some(vec![(0xfff, 1)]));
    assert_eq!(targets(&iotlb, 0x10_2000, 0x2000, Permissions::Write), Some(vec![(0x2000, 0x2000)]));
    // Over the hole and both sides.
    update(0x10_0800, 2 * PAGE, 0x8000);
    assert_eq!(
        targets(&iotlb, 0x10_0000, 4 * PAGE as usize, Permissions::Read),
        Some(vec![(0, 0x800), (0x8000, 0x2000), (0x2800, 0x1800)])
    );
    // A few bytes.
    assert!(iotlb.invalidate(gpa(0x10_0801), 2).is_done());
    assert_eq!(targets(&iotlb, 0x10_0800, 1, Permissions::Read), Some(vec![(0x8000, 1)]));
    assert_eq!(targets(&iotlb, 0x10_0802, 1, Permissions::Read), None);
    assert!(iotlb.invalidate(gpa(0), 0).is_done());
    assert!(iotlb.invalidate(gpa(1), u64::MAX).is_done());
    assert_eq!((iotlb.entries(), targets(&iotlb, 0, 0, Permissions::Read)), (0, Some(vec![])));
    for (iova, bytes, to) in [(0, 0, 0), (u64::MAX, 2, 0), (0, 2, u64::MAX)] {
        let refused = iotlb.update(gpa(iova), bytes, gpa(to), Permissions::Read).unwrap_err();
        assert_eq!(refused.errno(), Errno::EINVAL, "{refused}");
    }
}

#[test]
fn identity_over_holes_and_a_devices_memory_is_fine() {
    let world = World::new(&[(0, 0x4000), (0x10_0000, 0x4000)]);
    let iotlb = world.iotlb();
    drop(iotlb.update(gpa(0), u64::MAX, gpa(0), Permissions::ReadWrite).unwrap());
    let memory = IommuMemory::new(world.guest.clone(), iotlb, true, ());
    memory.write_obj(7u8, gpa(0x10_0000)).unwrap();
    assert_eq!(world.guest.read_obj::<u8>(gpa(0x10_0000)).unwrap(), 7);
    // Translated; the VMM returns its own error for non-memory.
    assert!(memory.iommu().translate(gpa(0x8000), 8, Permissions::Read).is_ok());
    assert!(matches!(
        memory.read_obj::<u8>(gpa(0x8000)),
        Err(vm_memory::GuestMemoryError::InvalidGuestAddress(_))
    ));
    assert!(memory.read_obj::<u64>(gpa(0x3ffc)).is_err());
}

#[test]
fn a_page_in_use_is_waited_for_and_never_translated_again() {
    struct Count(AtomicU64);
    impl OnDrained for Count {
        fn on_drained(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    let world = World::new(&[(0, 0x10_000)]);
    let count = Arc::new(Count(AtomicU64::new(0)));
    let (drained, ram) = (Arc::clone(&count) as Arc<dyn OnDrained>, Arc::clone(&world.ram));
    let iotlb = PinnedIotlb::with_drained(&world.space, ram, Holder::default(), 4, drained).unwrap();
    drop(iotlb.update(gpa(0), 4 * PAGE, gpa(0), Permissions::ReadWrite).unwrap());
    let first = iotlb.translate(gpa(0), 1, Permissions::Read).unwrap();
    let middle = iotlb.invalidate(gpa(PAGE), PAGE);
    assert!(!middle.is_done() && middle.in_use() == 1);
    assert!(iotlb.translate(gpa(PAGE), 1, Permissions::Read).is_err());
    // A cut part waits for the translations of the whole and for its own.
    let second = iotlb.translate(gpa(3 * PAGE), 1, Permissions::Read).unwrap();
    let rest = iotlb.update(gpa(0), 4 * PAGE, gpa(0x8000), Permissions::Read).unwrap();
    drop(first);
    assert!(middle.is_done() && !rest.is_done());
    drop(second);
    assert!(rest.is_done());
    assert_eq!(count.0.load(Ordering::Relaxed), 2);
    assert_eq!(targets(&iotlb, 0, 1, Permissions::Read), Some(vec![(0x8000, 1)]));
    assert_eq!(targets(&iotlb, 0, 1, Permissions::Write), None);
    // Memory in use cannot be unplugged; memory that is only mapped can.
    let used = iotlb.translate(gpa(0), 1, Permissions::Read).unwrap();
    assert_eq!(world.ram.remove(gpa(0)).unwrap_err().errno(), Errno::EBUSY);
    drop(used);
    world.ram.remove(gpa(0)).unwrap();
    assert_eq!(world.host.pinned_pages(), 0);
}

#[test]
fn a_full_table_refuses_updates_and_never_an_invalidation() {
    let world = World::new(&[(0, 0x10_000)]);
    let limit = 4;
    let (drained, ram) = (Arc::new(Ignore), Arc::clone(&world.ram));
    let iotlb = PinnedIotlb::with_drained(&world.space, ram, Holder::default(), limit, drained).unwrap();
    for page in 0..4 {
        drop(iotlb.update(gpa(page * 4 * PAGE), 3 * PAGE, gpa(0), Permissions::Read).unwrap());
    }
    let refused = iotlb.update(gpa(0x100_0000), PAGE, gpa(0), Permissions::Read).unwrap_err();
    assert_eq!(refused.errno(), Errno::ENOSPC);
    assert!(iotlb.invalidate(gpa(PAGE), PAGE).is_done());
    assert_eq!(targets(&iotlb, PAGE, 1, Permissions::Read), None);
    assert_eq!(targets(&iotlb, 0, 1, Permissions::Read), Some(vec![(0, 1)]));
    assert_eq!((iotlb.entries(), targets(&iotlb, 2 * PAGE, 1, Permissions::Read)), (4, None));
    for byte in 0..if cfg!(miri) { 8 } else { 1000 } {
        drop(iotlb.invalidate(gpa(4 * PAGE + byte * 2), 1));
        drop(iotlb.update(gpa(8 * PAGE + byte * 2), 1, gpa(1), Permissions::Read));
        assert!(iotlb.entries() <= limit, "{byte}");
    }
}

#[test]
fn an_update_that_would_pass_the_limit_changes_nothing() {
    let world = World::new(&[(0, 0x10_000)]);
    let (drained, ram) = (Arc::new(Ignore), Arc::clone(&world.ram));
    let iotlb = PinnedIotlb::with_drained(&world.space, ram, Holder::default(), 2, drained).unwrap();
    drop(iotlb.update(gpa(0), 4 * PAGE, gpa(0), Permissions::Read).unwrap());
    // The entry would be cut in two, with the new one between.
    let refused = iotlb.update(gpa(PAGE), PAGE, gpa(8 * PAGE), Permissions::Read).unwrap_err();
    assert_eq!((refused.errno(), iotlb.entries()), (Errno::ENOSPC, 1));
    for page in 0..4 {
        assert_eq!(
            targets(&iotlb, page * PAGE, 1, Permissions::Read),
            Some(vec![(page * PAGE, 1)]),
            "page {page}"
        );
    }
    // At either end one entry is cut, and one is new.
    drop(iotlb.update(gpa(3 * PAGE), 2 * PAGE, gpa(8 * PAGE), Permissions::Read).unwrap());
    drop(iotlb.update(gpa(2 * PAGE), 3 * PAGE, gpa(9 * PAGE), Permissions::Read).unwrap());
    assert_eq!(iotlb.entries(), 2);
    assert_eq!(targets(&iotlb, PAGE, 1, Permissions::Read), Some(vec![(PAGE, 1)]));
    assert_eq!(targets(&iotlb, 4 * PAGE, 1, Permissions::Read), Some(vec![(11 * PAGE, 1)]));
}

#[test]
#[cfg_attr(miri, ignore = "miri has no mapped memory")]
fn an_access_that_ends_in_a_hole_holds_the_memory_before_it() {
    let world = World::new(&[(0, 0x10_000)]);
    let iotlb = world.iotlb();
    drop(iotlb.update(gpa(0), 2 * PAGE, gpa(0xf000), Permissions::ReadWrite).unwrap());
    let memory = IommuMemory::new(world.guest.clone(), iotlb, true, ());
    let held = HeldMemory::new(&memory);
    let mut slices = held.get_slices(gpa(0), 2 * PAGE as usize, Permissions::ReadWrite).unwrap();
    let slice = slices.next().unwrap().unwrap();
    assert!(slices.next().unwrap().is_err());
    assert_eq!(held.translations(), 1);
    let invalidation = memory.iommu().invalidate(gpa(0), 2 * PAGE);
    assert!(!invalidation.is_done());
    world.ram.remove(gpa(0)).unwrap_err();
    slice.write_obj(7u8, 0).unwrap();
    drop(slices);
    drop(held);
    assert!(invalidation.is_done());
    world.ram.remove(gpa(0)).unwrap();
}

struct Ignore;

impl OnDrained for Ignore {
    fn on_drained(&self) {}
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Update(u64, u64, u64, Permissions),
    Invalidate(u64, u64),
    InvalidateAll,
    Translate(u64, u64, Permissions),
    Drop,
}

fn permissions() -> impl Strategy<Value = Permissions> {
    prop::sample::select(vec![Permissions::No, Permissions::Read, Permissions::Write, Permissions::ReadWrite])
}

fn step() -> impl Strategy<Value = Step> {
    // Sub-page ranges; targets in RAM, in a hole, across both.
    let (iova, bytes, to) = (0..0x200u64, 1..0x80u64, 0..0x5000u64);
    prop_oneof![
        4 => (iova.clone(), bytes.clone(), to, permissions()).prop_map(|(i, b, t, p)| Step::Update(i, b, t, p)),
        3 => (iova.clone(), bytes.clone()).prop_map(|(i, b)| Step::Invalidate(i, b)),
        1 => Just(Step::InvalidateAll),
        6 => (iova, bytes, permissions()).prop_map(|(i, b, p)| Step::Translate(i, b, p)),
        3 => Just(Step::Drop),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 3 } else { 512 }, failure_persistence: None, ..ProptestConfig::default() })]

    /// Every result equals that of `vm_memory::Iotlb`; an invalidation is done when the translations that it overlaps have ended.
    #[test]
    fn it_answers_as_the_iotlb_of_vm_memory(steps in prop::collection::vec(step(), 1..if cfg!(miri) { 20 } else { 120 })) {
        let world = World::new(&[(0, 0x2000), (0x3000, 0x1000)]);
        let iotlb = world.iotlb();
        let mut reference = Iotlb::new();
        // Translations in use, and invalidations with the translations for which each waits, by number.
        let mut in_use = Vec::new();
        let mut waiting = Vec::new();
        let mut number = 0;
        for step in steps {
            match step {
                Step::Update(iova, bytes, to, access) => {
                    reference.set_mapping(gpa(iova), gpa(to), bytes as usize, access).unwrap();
                    waiting.push((iotlb.update(gpa(iova), bytes, gpa(to), access).unwrap(), Vec::new()));
                }
                Step::Invalidate(iova, bytes) => {
                    reference.invalidate_mapping(gpa(iova), bytes as usize);
                    let invalidation = iotlb.invalidate(gpa(iova), bytes);
                    let meets = |at: u64, length: u64| at < iova + bytes && at + length > iova;
                    let overlapping = in_use.iter().filter(|(_, at, length, _)| meets(*at, *length));
                    let numbers: Vec<u32> = overlapping.map(|(number, ..)| *number).collect();
                    waiting.push((invalidation, numbers));
                }
                Step::InvalidateAll => {
                    reference.invalidate_all();
                    let numbers: Vec<u32> = in_use.iter().map(|(number, ..)| *number).collect();
                    waiting.push((iotlb.invalidate_all(), numbers));
                }
                Step::Translate(iova, bytes, access) => {
                    let expected = Iotlb::lookup(&reference, gpa(iova), bytes as usize, access).ok();
                    let found = iotlb.translate(gpa(iova), bytes as usize, access).ok();
                    let by_byte = |base: u64, length: usize| (0..length as u64).map(move |at| base + at);
                    let bytes_of = |ranges: Vec<vm_memory::iommu::MappedRange>| {
                        ranges.into_iter().flat_map(|r| by_byte(r.base.0, r.length)).collect::<Vec<_>>()
                    };
                    prop_assert_eq!(expected.is_some(), found.is_some());
                    if let (Some(expected), Some(mut found)) = (expected, found) {
                        let expected = bytes_of(expected.collect());
                        prop_assert_eq!(bytes_of(found.by_ref().collect()), expected);
                        in_use.push((number, iova, bytes, found));
                        number += 1;
                    }
                }
                Step::Drop if !in_use.is_empty() => drop(in_use.remove(0)),
                Step::Drop => {}
            }
            for (invalidation, numbers) in &waiting {
                let overlapping = in_use.iter().any(|(number, ..)| numbers.contains(number));
                prop_assert!(!(overlapping && invalidation.is_done()), "done while in use");
                prop_assert!(!in_use.is_empty() || invalidation.is_done(), "waits for nothing");
            }
        }
        drop(in_use);
        prop_assert!(waiting.iter().all(|(invalidation, _)| invalidation.is_done()));
    }
}

#[test]
fn memory_is_plugged_and_unplugged_under_a_live_iommu() {
    let world = World::new(&[(0, 0x4000)]);
    let memory = IommuMemory::new(world.guest.clone(), world.iommu(), true, ());
    let iommu = Arc::clone(memory.iommu());
    let at = 0x10_0000;
    assert_eq!(iommu.map(gpa(0), PAGE, gpa(at), Access::ReadWrite).unwrap_err().errno(), Errno::EFAULT);
    let grown = world.plugged(at, 0x2000);
    let memory = memory.with_replaced_backend(grown.clone());
    iommu.ram().extend(&world.space, &grown, Holder::default()).unwrap();
    iommu.map(gpa(0), 2 * PAGE, gpa(at), Access::ReadWrite).unwrap();
    memory.write_obj(5u8, gpa(0x1fff)).unwrap();
    assert_eq!(grown.read_obj::<u8>(gpa(at + 0x1fff)).unwrap(), 5);
    let refused = iommu.ram().remove(gpa(at)).unwrap_err();
    assert!(refused.to_string().contains("mapped 1 times"), "{refused}");
    assert!(iommu.unmap(gpa(0), 2 * PAGE).unwrap().is_done());
    iommu.ram().remove(gpa(at)).unwrap();
    assert_eq!(world.host.pinned_pages(), 4);
    assert_eq!(iommu.map(gpa(0), PAGE, gpa(at), Access::ReadWrite).unwrap_err().errno(), Errno::EFAULT);
    // Plugged again, at another guest address.
    let moved = world.plugged(0x20_0000, 0x1000);
    iommu.ram().extend(&world.space, &moved, Holder::default()).unwrap();
    iommu.map(gpa(0), PAGE, gpa(0x20_0000), Access::Read).unwrap();
    assert_eq!(memory.with_replaced_backend(moved).read_obj::<u8>(gpa(0)).unwrap(), 0);
}

#[test]
fn threads_translate_while_memory_comes_and_goes() {
    let world = World::new(&[(0, 0x4000)]);
    let at = 0x10_0000;
    let grown = world.plugged(at, 0x2000);
    let (iommu, iotlb) = (world.iommu(), world.iotlb());
    iommu.map(gpa(0), PAGE, gpa(0x1000), Access::Read).unwrap();
    drop(iotlb.update(gpa(0), 1 << 30, gpa(0), Permissions::ReadWrite).unwrap());
    let stop = std::sync::atomic::AtomicBool::new(false);
    let rounds = if cfg!(miri) { 5 } else { 500 };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                drop(iommu.translate(gpa(0), 64, Permissions::Read).unwrap());
                drop(iotlb.translate(gpa(at), 64, Permissions::Write));
                // The reader refreshes its snapshot.
                std::thread::yield_now();
            }
        });
        for _ in 0..rounds {
            world.ram.extend(&world.space, &grown, Holder::default()).unwrap();
            while let Err(error) = world.ram.remove(gpa(at)) {
                assert_eq!(error.errno(), Errno::EBUSY);
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!((world.ram.regions().len(), world.host.pinned_pages()), (1, 4));
}

#[test]
fn a_guest_address_that_is_not_ram_is_reported_as_one() {
    let world = World::new(&[(0, 0x4000)]);
    let iommu = world.iommu();
    for (at, bytes) in [(0xfee0_0000, PAGE), (0x3000, 2 * PAGE), (u64::MAX - PAGE + 1, 2 * PAGE)] {
        let error = iommu.map(gpa(0), bytes, gpa(at), Access::Read).unwrap_err();
        assert_eq!(error.errno(), Errno::EFAULT);
        let text = error.to_string();
        assert!(text.contains(&format!("gpa {at:#x}")) && !text.contains("ua 0x"), "{text}");
        assert!(!text.contains("no registered region"), "{text}");
    }
}

#[test]
fn a_mapping_may_cover_regions_that_touch() {
    let world = World::new(&[(0, 0x2000), (0x2000, 0x2000)]);
    let memory = IommuMemory::new(world.guest.clone(), world.iommu(), true, ());
    memory.iommu().map(gpa(0x8000), 4 * PAGE, gpa(0), Access::ReadWrite).unwrap();
    memory.write_obj(0x1122_3344u32, gpa(0x8000 + 0x1ffe)).unwrap();
    assert_eq!(world.guest.read_obj::<u32>(gpa(0x1ffe)).unwrap(), 0x1122_3344);
    assert_eq!(world.ram.remove(gpa(0x2000)).unwrap_err().errno(), Errno::EBUSY);
}

/// A chain of one readable and one writable page in the memory of `memory`.
fn queue<M: GuestMemory>(memory: &M) -> Queue {
    memory.write_obj(Descriptor::new(0x4000, 8, 1, 1), gpa(0x1000)).unwrap();
    memory.write_obj(Descriptor::new(0x5000, 8, 2, 0), gpa(0x1010)).unwrap();
    memory.write_obj([0u16, 1, 0, 0], gpa(0x2000)).unwrap();
    let mut queue = Queue::new(16).unwrap();
    queue.set_desc_table_address(Some(0x1000), Some(0));
    queue.set_avail_ring_address(Some(0x2000), Some(0));
    queue.set_used_ring_address(Some(0x3000), Some(0));
    queue.set_ready(true);
    queue
}

#[test]
fn readers_and_writers_of_virtio_queue_hold_their_memory() {
    let world = World::new(&[(0, 0x10_000)]);
    let memory = IommuMemory::new(world.guest.clone(), world.iommu(), true, ());
    for page in 0..8 {
        memory.iommu().map(gpa(page * PAGE), PAGE, gpa(page * PAGE), Access::ReadWrite).unwrap();
    }
    world.guest.write_obj(0xfeed_f00d_u64, gpa(0x4000)).unwrap();
    let mut queue = queue(&memory);
    let chain = queue.pop_descriptor_chain(&memory).unwrap();
    let held = HeldMemory::new(&memory);
    let mut reader = Reader::new(&held, chain.clone()).unwrap();
    let mut writer = Writer::new(&held, chain).unwrap();
    assert_eq!(held.translations(), 2);
    let unmappings = [0x4000, 0x5000].map(|iova| memory.iommu().unmap(gpa(iova), PAGE).unwrap());
    assert!(unmappings.iter().all(|unmapping| !unmapping.is_done()));
    assert!(memory.read_obj::<u8>(gpa(0x4000)).is_err());
    let mut bytes = [0; 8];
    reader.read_exact(&mut bytes).unwrap();
    writer.write_all(&bytes).unwrap();
    assert_eq!(world.guest.read_obj::<u64>(gpa(0x5000)).unwrap(), 0xfeed_f00d);
    assert!(unmappings.iter().all(|unmapping| !unmapping.is_done()));
    drop(held);
    assert!(unmappings.iter().all(|unmapping| unmapping.is_done()));
}

#[test]
#[cfg_attr(miri, ignore = "miri does not have the flags of `mmap`")]
fn held_memory_fails_and_logs_as_iommu_memory_does() {
    let host = SimHost::new(Granule::K4);
    let ranges = [(gpa(0), 0x2000), (gpa(0x8000), 0x2000)];
    let guest = GuestMemoryMmap::<AtomicBitmap>::from_ranges(&ranges).unwrap();
    for region in guest.iter() {
        host.memory(region.get_host_address(MemoryRegionAddress(0)).unwrap().addr() as u64, region.len());
    }
    let space = AddressSpace::builder(host).build().unwrap();
    let ram = Arc::new(RegisteredRam::register(&space, &guest, Holder::default()).unwrap());
    let iotlb = PinnedIotlb::new(&space, ram, Holder::default()).unwrap();
    drop(iotlb.update(gpa(0x4000), 0x2000, gpa(0x1000), Permissions::ReadWrite).unwrap());
    drop(iotlb.update(gpa(0x6000), 0x1000, gpa(0x8000), Permissions::Read).unwrap());
    let page = std::num::NonZeroUsize::new(PAGE as usize).unwrap();
    let mut memory = IommuMemory::new(guest, iotlb, true, AtomicBitmap::new(0x10_000, page));
    {
        let held = HeldMemory::new(&memory);
        held.write_obj(1u8, gpa(0x4fff)).unwrap();
        assert!(held.write_obj(1u8, gpa(0x6000)).is_err());
        assert!(held.read_obj::<u8>(gpa(0x7000)).is_err());
        // The second page of the first mapping is beyond the memory.
        assert!(held.write_slice(&[1; 2], gpa(0x4fff)).is_err());
        assert!(held.check_range(gpa(0x4000), 0x1000, Permissions::Write));
        assert!(!held.check_range(gpa(0x4000), 0x1001, Permissions::Write));
        assert!(held.physical_memory().is_none());
        assert!(format!("{held:?}").starts_with("HeldMemory"));
    }
    let dirty: Vec<_> = (0..16).filter(|page| memory.bitmap().is_bit_set(*page)).collect();
    assert_eq!(dirty, [4], "logged by I/O virtual address");
    memory.set_iommu_enabled(false);
    let held = HeldMemory::new(&memory);
    held.write_obj(9u8, gpa(0x1000)).unwrap();
    assert_eq!((held.read_obj::<u8>(gpa(0x1000)).unwrap(), held.translations()), (9, 0));
}
