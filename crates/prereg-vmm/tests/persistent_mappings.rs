//! Mappings that outlive devices: pins held, mappings made again, failures undone. Needs no feature.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use prereg::{Access, AddressSpace, Errno, Granule, Holder, Iova, Memory, Registration, UserAddr};
use prereg_sim::SimHost;
use prereg_vmm::{DmaContainer, MemoryKind, PersistentMappings};

const PAGE: u64 = 4096;
const RAM: u64 = 0x7000_0000;

/// Records mappings, and fails a chosen call.
#[derive(Default)]
struct Model {
    state: Mutex<State>,
    keeps: bool,
}

#[derive(Default)]
struct State {
    mappings: BTreeMap<u64, (u64, u64)>,
    /// Calls until one fails; 0 for none.
    refuse_at: u64,
    /// After the failed call maps fail too.
    broken: bool,
}

impl State {
    fn refuses(&mut self) -> bool {
        if self.broken {
            return true;
        }
        if self.refuse_at == 0 {
            return false;
        }
        self.refuse_at -= 1;
        self.refuse_at == 0
    }
}

impl DmaContainer for Model {
    #[expect(unsafe_code, reason = "the trait's")]
    unsafe fn map(&self, iova: Iova, ua: UserAddr, bytes: u64, _access: Access) -> Result<(), Errno> {
        let mut state = self.state.lock().unwrap();
        if state.refuses() {
            return Err(Errno::ENOSPC);
        }
        assert!(state.mappings.insert(iova.raw(), (bytes, ua.raw())).is_none(), "mapped twice");
        Ok(())
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), Errno> {
        let mut state = self.state.lock().unwrap();
        if state.refuses() {
            return Err(Errno::EIO);
        }
        let Some((length, _)) = state.mappings.remove(&iova.raw()) else { return Err(Errno::ENOENT) };
        // A second panic, in a destructor, would end the process before the first is reported.
        assert!(length == bytes || std::thread::panicking(), "{length:#x} was mapped, not {bytes:#x}");
        Ok(())
    }

    fn forgets(&self) -> bool {
        !self.keeps
    }
}

struct World {
    host: SimHost,
    space: Arc<AddressSpace>,
    model: Arc<Model>,
    mappings: Arc<PersistentMappings>,
}

impl World {
    fn new() -> Self {
        Self::with(Model::default())
    }

    fn with(model: Model) -> Self {
        let host = SimHost::new(Granule::K4);
        host.memory(RAM, 64 * PAGE);
        let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
        let model = Arc::new(model);
        let container = Arc::clone(&model) as Arc<dyn DmaContainer>;
        let mappings =
            Arc::new(PersistentMappings::new(Arc::clone(&space), container, Holder::default()).unwrap());
        Self { host, space, model, mappings }
    }

    /// Mappings in a container of their own, of the same address space.
    fn another_container(&self) -> Self {
        let model = Arc::new(Model::default());
        let container = Arc::clone(&model) as Arc<dyn DmaContainer>;
        let space = Arc::clone(&self.space);
        let mappings =
            Arc::new(PersistentMappings::new(Arc::clone(&space), container, Holder::default()).unwrap());
        Self { host: self.host.clone(), space, model, mappings }
    }

    fn map(&self, iova: u64, page: u64, pages: u64) -> Result<(), Errno> {
        self.map_kind(iova, page, pages, MemoryKind::Ram)
    }

    #[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
    fn map_kind(&self, iova: u64, page: u64, pages: u64, kind: MemoryKind) -> Result<(), Errno> {
        let ua = UserAddr::new(RAM + page * PAGE);
        // SAFETY: see the reason.
        unsafe { self.mappings.map(Iova::new(iova), ua, pages * PAGE, Access::ReadWrite, kind) }
            .map_err(|error| error.errno())
    }

    fn unmap(&self, iova: u64, bytes: u64) -> Result<u64, Errno> {
        self.mappings.unmap(Iova::new(iova), bytes).map_err(|error| error.errno())
    }

    /// The mappings of the container, and the recorded ones.
    fn counts(&self) -> (usize, usize) {
        (self.model.state.lock().unwrap().mappings.len(), self.mappings.snapshot().mappings.len())
    }

    fn refuse_at(&self, call: u64) {
        self.model.state.lock().unwrap().refuse_at = call;
    }

    /// Drops all mappings, like the kernel's container with its last device.
    fn lose(&self) {
        self.mappings.device_leaving();
        self.model.state.lock().unwrap().mappings.clear();
    }
}

#[test]
fn memory_is_pinned_from_the_map_to_the_unmap() {
    let world = World::new();
    world.map(0, 0, 4).unwrap();
    assert_eq!(world.host.pinned_pages(), 4);
    // Registering a part of memory that a mapping registered shares it.
    world.map(0x10_0000, 1, 2).unwrap();
    assert_eq!((world.host.pinned_pages(), world.host.charged_pages()), (4, 4));
    assert_eq!(world.unmap(0, 4 * PAGE), Ok(4 * PAGE));
    assert_eq!(world.host.pinned_pages(), 4, "the second mapping still needs it");
    assert_eq!(world.unmap(0x10_0000, 2 * PAGE), Ok(2 * PAGE));
    assert_eq!(world.host.pinned_pages(), 0);
    drop(world.mappings);
    world.host.assert_clean();
}

#[test]
fn memory_that_one_container_registered_outlasts_its_mapping_for_another_one() {
    let one = World::new();
    let other = one.another_container();
    one.map(0, 0, 4).unwrap();
    other.map(0, 0, 4).unwrap();
    one.unmap(0, 4 * PAGE).unwrap();
    assert_eq!(one.host.pinned_pages(), 4, "the other container's mapping needs it");
    one.map(0, 1, 2).unwrap();
    other.map(0x10_0000, 0, 4).unwrap();
    assert_eq!((one.host.pinned_pages(), one.host.pin_calls()), (4, 1));
    other.unmap(0, u64::MAX).unwrap();
    assert_eq!(one.host.pinned_pages(), 4);
    one.unmap(0, u64::MAX).unwrap();
    assert_eq!(one.host.pinned_pages(), 0);
    drop((one.mappings, other.mappings));
    one.host.assert_clean();
}

#[test]
fn threads_that_map_the_same_memory_share_it_and_none_is_refused() {
    let world = World::new();
    let other = world.another_container();
    let rounds = if cfg!(miri) { 20 } else { 5_000 };
    std::thread::scope(|scope| {
        for (number, world) in [&world, &world, &other].into_iter().enumerate() {
            scope.spawn(move || {
                let iova = (number as u64) << 32;
                for round in 0..rounds {
                    world.map(iova, round % 3, 4).unwrap();
                    assert_eq!(world.unmap(iova, 4 * PAGE), Ok(4 * PAGE));
                }
            });
        }
    });
    assert_eq!(world.host.pinned_pages(), 0);
    drop((world.mappings, other.mappings));
    world.host.assert_clean();
}

/// Memory whose owner's destructor looks at the mappings.
struct Observed(Arc<PersistentMappings>, Arc<AtomicBool>);

impl Drop for Observed {
    fn drop(&mut self) {
        assert!(self.0.snapshot().mappings.is_empty());
        self.1.store(true, Ordering::Relaxed);
    }
}

#[expect(unsafe_code, reason = "the trait's")]
// SAFETY: nothing is behind the memory of a made-up host.
unsafe impl Memory for Observed {
    fn ua(&self) -> UserAddr {
        UserAddr::new(RAM)
    }
    fn bytes(&self) -> u64 {
        4 * PAGE
    }
    fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        Some(Arc::new(Self(Arc::clone(&self.0), Arc::clone(&self.1))))
    }
}

#[test]
fn pins_of_a_refused_map_are_released_without_the_lock() {
    // While the container is asked, the VMM drops its registration: the refused mapping holds the last use.
    struct DropsAndRefuses(Mutex<Option<Registration>>);
    impl DmaContainer for DropsAndRefuses {
        #[expect(unsafe_code, reason = "the trait's")]
        unsafe fn map(&self, _: Iova, _: UserAddr, _: u64, _: Access) -> Result<(), Errno> {
            drop(self.0.lock().unwrap().take());
            Err(Errno::ENOMEM)
        }
        fn unmap(&self, _: Iova, _: u64) -> Result<(), Errno> {
            Err(Errno::ENOENT)
        }
    }
    let World { host, space, .. } = World::new();
    let container = Arc::new(DropsAndRefuses(Mutex::default()));
    let mappings = Arc::new(
        PersistentMappings::new(Arc::clone(&space), Arc::clone(&container) as _, Holder::default()).unwrap(),
    );
    let released = Arc::new(AtomicBool::new(false));
    let registration = {
        let observed = std::mem::ManuallyDrop::new(Observed(Arc::clone(&mappings), Arc::clone(&released)));
        space.register(&*observed).unwrap()
    };
    *container.0.lock().unwrap() = Some(registration);
    let ua = UserAddr::new(RAM);
    // SAFETY: as above.
    #[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
    let result = unsafe { mappings.map(Iova::new(0), ua, PAGE, Access::ReadWrite, MemoryKind::Ram) };
    assert_eq!(result.unwrap_err().errno(), Errno::ENOMEM);
    space.reap();
    assert!(released.load(Ordering::Relaxed));
    assert_eq!(host.pinned_pages(), 0);
}

#[test]
fn memory_that_the_vmm_registered_is_only_counted() {
    let world = World::new();
    let registration = world.space.register(&world.host.range(RAM, 64 * PAGE)).unwrap();
    world.map(0, 3, 4).unwrap();
    assert_eq!(world.host.pinned_pages(), 64);
    let registration = registration.unregister().unwrap_err().into_inner();
    world.unmap(0, 4 * PAGE).unwrap();
    assert_eq!(world.host.pinned_pages(), 64, "not ours to give up");
    registration.unregister().unwrap();
    world.host.assert_clean();
}

#[test]
fn the_last_device_takes_no_pins_and_the_next_one_finds_the_mappings() {
    let world = World::new();
    world.mappings.device_arrived().unwrap();
    world.map(0, 0, 4).unwrap();
    world.map(0x10_0000, 8, 2).unwrap();
    world.lose();
    assert_eq!((world.counts(), world.host.pinned_pages()), ((0, 2), 6));
    // Without devices maps and unmaps are recorded.
    world.map(0x20_0000, 16, 1).unwrap();
    world.unmap(0x10_0000, 2 * PAGE).unwrap();
    assert_eq!((world.counts(), world.host.pinned_pages()), ((0, 2), 5));
    let pins = world.host.pin_calls();
    world.mappings.device_arrived().unwrap();
    assert_eq!((world.counts(), world.host.pin_calls()), ((2, 2), pins));
    world.mappings.device_arrived().unwrap();
    world.mappings.device_leaving();
    assert_eq!(world.counts(), (2, 2), "one device is left");
}

#[cfg(feature = "serde")]
#[test]
fn states_are_written_as_json_and_mappings_are_read_back() {
    let world = World::new();
    world.map(0x4000, 0, 4).unwrap();
    let mappings = world.mappings.snapshot();
    let text = serde_json::to_string(&mappings).unwrap();
    assert_eq!(
        text,
        r#"{"mappings":[{"iova":16384,"bytes":16384,"memory":{"Address":1879048192},"access":"ReadWrite","pinned":true}],"devices":0,"dormant":false}"#
    );
    assert_eq!(serde_json::from_str::<prereg_vmm::MappingsState>(&text).unwrap(), mappings);
    let space = serde_json::to_value(world.space.snapshot()).unwrap();
    assert_eq!((&space["pinned_pages"], &space["regions"][0]["on_demand"]), (&4.into(), &true.into()));
}

#[test]
fn a_container_that_keeps_its_mappings_is_left_alone() {
    let world = World::with(Model { keeps: true, ..Model::default() });
    world.mappings.device_arrived().unwrap();
    world.map(0, 0, 1).unwrap();
    world.mappings.device_leaving();
    assert!(!world.mappings.snapshot().dormant);
    world.map(PAGE, 1, 1).unwrap();
    world.mappings.device_arrived().unwrap();
    assert_eq!(world.counts(), (2, 2));
}

#[test]
fn a_container_that_cannot_be_filled_again_is_left_empty_and_can_be_tried_again() {
    let world = World::new();
    world.mappings.device_arrived().unwrap();
    for page in 0..4 {
        world.map(page * PAGE, page, 1).unwrap();
    }
    world.lose();
    for refused in 1..=4 {
        world.refuse_at(refused);
        let error = world.mappings.device_arrived().unwrap_err();
        assert_eq!(error.errno(), Errno::ENOSPC);
        assert_eq!((world.counts(), world.mappings.snapshot().devices), ((0, 4), 0));
    }
    world.mappings.device_arrived().unwrap();
    assert_eq!(world.counts(), (4, 4));
}

#[test]
fn a_device_counts_while_it_lives_and_not_if_it_is_refused() {
    let world = World::new();
    let attached = world.mappings.attach(|| Ok::<_, Errno>("device"), |error| error.errno()).unwrap();
    world.map(0, 0, 1).unwrap();
    assert_eq!((*attached, world.mappings.snapshot().devices), ("device", 1));
    drop(attached);
    assert!(world.mappings.snapshot().dormant);
    world.model.state.lock().unwrap().mappings.clear();
    assert_eq!(
        world.mappings.attach(|| Err::<(), _>(Errno::ENODEV), |e| e.errno()).unwrap_err(),
        Errno::ENODEV
    );
    world.refuse_at(1);
    assert_eq!(world.mappings.attach(|| Ok(()), |error| error.errno()).unwrap_err(), Errno::ENOSPC);
    assert_eq!(world.mappings.snapshot().devices, 0);
}

#[test]
fn a_map_that_fails_leaves_nothing() {
    let world = World::new();
    world.map(0x4000, 0, 4).unwrap();
    for (iova, page, pages, errno) in [
        (0x4000, 16, 1, Errno::EEXIST),
        (0x7000, 16, 8, Errno::EEXIST),
        (0, 16, 5, Errno::EEXIST),
        (0, 16, 0, Errno::EINVAL),
        (u64::MAX - PAGE + 2, 16, 1, Errno::EINVAL),
        (0x10_0000, 63, 2, Errno::EFAULT),
    ] {
        assert_eq!(world.map(iova, page, pages), Err(errno), "{iova:#x} {page} {pages}");
    }
    world.refuse_at(1);
    assert_eq!(world.map(0x10_0000, 16, 1), Err(Errno::ENOSPC));
    world.host.limit_pages(4);
    assert_eq!(world.map(0x10_0000, 16, 1), Err(Errno::ENOMEM));
    assert_eq!((world.counts(), world.host.pinned_pages()), ((1, 1), 4));
}

#[test]
fn every_outside_call_may_fail_and_nothing_is_left() {
    for n in 1.. {
        let world = World::new();
        world.host.fail_nth(n);
        let result = world.map(0, 0, 4);
        if !world.host.has_failed() {
            assert_eq!(result, Ok(()));
            break;
        }
        result.unwrap_err();
        assert_eq!(world.counts(), (0, 0));
        drop(world.mappings);
        world.host.assert_clean();
    }
}

#[test]
fn an_unmap_covers_gaps_and_cuts_nothing() {
    let world = World::new();
    world.map(0x1000, 0, 1).unwrap();
    world.map(0x4000, 4, 2).unwrap();
    assert_eq!(world.unmap(0x5000, 0x1000), Err(Errno::EINVAL));
    assert_eq!(world.unmap(0, 0x5000), Err(Errno::EINVAL));
    assert_eq!(world.unmap(0, 0), Err(Errno::EINVAL));
    assert_eq!(world.unmap(0x10_0000, 0x1000), Ok(0));
    assert_eq!(world.unmap(0, u64::MAX), Ok(3 * PAGE));
    assert_eq!((world.counts(), world.host.pinned_pages()), ((0, 0), 0));
    // Up to the last byte of the address space.
    world.map(u64::MAX - PAGE + 1, 0, 1).unwrap();
    assert_eq!(world.unmap(u64::MAX - PAGE + 1, PAGE), Ok(PAGE));
}

#[test]
fn an_unmap_that_is_refused_half_way_is_undone() {
    let world = World::new();
    for page in 0..4 {
        world.map(page * PAGE, page, 1).unwrap();
    }
    for refused in 1..=4 {
        world.refuse_at(refused);
        assert_eq!(world.unmap(0, 4 * PAGE), Err(Errno::EIO));
        assert_eq!((world.counts(), world.host.pinned_pages()), ((4, 4), 4));
    }
    assert_eq!(world.unmap(0, 4 * PAGE), Ok(4 * PAGE));
}

#[test]
fn what_the_container_does_not_take_back_is_gone_on_both_sides() {
    // The third unmap fails, and so does every later call.
    struct BreakAfter(Arc<Model>, u64);
    impl DmaContainer for BreakAfter {
        #[expect(unsafe_code, reason = "the trait's")]
        unsafe fn map(&self, iova: Iova, ua: UserAddr, bytes: u64, access: Access) -> Result<(), Errno> {
            // SAFETY: passed on.
            unsafe { self.0.map(iova, ua, bytes, access) }
        }
        fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), Errno> {
            let result = if iova.raw() >= self.1 { Err(Errno::EIO) } else { self.0.unmap(iova, bytes) };
            self.0.state.lock().unwrap().broken = result.is_err();
            result
        }
    }
    let host = SimHost::new(Granule::K4);
    host.memory(RAM, 64 * PAGE);
    let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
    let model = Arc::new(Model::default());
    let container = Arc::new(BreakAfter(Arc::clone(&model), 2 * PAGE));
    let mappings =
        Arc::new(PersistentMappings::new(Arc::clone(&space), container, Holder::default()).unwrap());
    let other = World { host, space, model, mappings };
    for page in 0..4 {
        other.map(page * PAGE, page, 1).unwrap();
    }
    let refused = other.mappings.unmap(Iova::new(2 * PAGE), PAGE).unwrap_err();
    assert!(refused.to_string().ends_with("failed with EIO"), "{refused}");
    other.model.state.lock().unwrap().broken = false;
    let error = other.mappings.unmap(Iova::new(0), 4 * PAGE).unwrap_err();
    assert!(error.to_string().contains("2 mappings were lost"), "{error}");
    assert_eq!((other.counts(), other.host.pinned_pages()), ((2, 2), 2));
}

#[test]
fn device_memory_is_passed_on_without_a_pin() {
    let world = World::new();
    world.map_kind(0xf000_0000, 1 << 20, 4, MemoryKind::Device).unwrap();
    assert_eq!((world.counts(), world.host.pinned_pages()), ((1, 1), 0));
    assert_eq!(world.unmap(0xf000_0000, 4 * PAGE), Ok(4 * PAGE));
}

#[test]
fn the_end_unmaps_first_and_unpins_then() {
    let world = World::new();
    world.map(0, 0, 4).unwrap();
    let World { host, model, mappings, .. } = world;
    drop(mappings);
    assert!(model.state.lock().unwrap().mappings.is_empty());
    host.assert_clean();
}

#[test]
fn what_a_device_may_still_reach_stays_pinned_in_the_end() {
    let world = World::new();
    world.map(0, 0, 4).unwrap();
    world.model.state.lock().unwrap().broken = true;
    let World { host, mappings, .. } = world;
    drop(mappings);
    assert_eq!(host.pinned_pages(), 4);
}
