//! `VfioOps` with pins that outlive devices.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

#[path = "../examples/vfio_ops.rs"]
mod example;

use std::any::Any;
use std::sync::{Arc, Mutex};

use prereg::{AddressSpace, Granule};
use prereg_sim::SimHost;
use prereg_vmm::vfio::PinnedVfio;
use vfio_ioctls::{VfioError, VfioOps};
use vmm_sys_util::errno::Error as SysError;

const PAGE: usize = 4096;
const RAM: usize = 0x7000_0000;

/// Records calls; fails with a chosen errno.
#[derive(Default)]
struct Inner {
    mapped: Mutex<Vec<(u64, usize, usize)>>,
    refuse: Mutex<i32>,
}

impl Inner {
    fn refused(&self) -> Option<SysError> {
        let errno = *self.refuse.lock().unwrap();
        (errno != 0).then(|| SysError::new(errno))
    }
}

impl VfioOps for Inner {
    #[expect(unsafe_code, reason = "the trait's")]
    unsafe fn vfio_dma_map(&self, iova: u64, size: usize, user_addr: *mut u8) -> Result<(), VfioError> {
        match self.refused() {
            Some(error) => Err(VfioError::IommuDmaMap(error)),
            None => {
                self.mapped.lock().unwrap().push((iova, size, user_addr.addr()));
                Ok(())
            }
        }
    }

    fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<(), VfioError> {
        if let Some(error) = self.refused() {
            return Err(VfioError::IommuDmaUnmap(error));
        }
        let mut mapped = self.mapped.lock().unwrap();
        let before = mapped.len();
        mapped.retain(|&(at, bytes, _)| (at, bytes) != (iova, size));
        if mapped.len() == before { Err(VfioError::InvalidDmaUnmapSize) } else { Ok(()) }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

struct World {
    host: SimHost,
    inner: Arc<Inner>,
    vfio: Arc<PinnedVfio>,
}

impl World {
    fn new() -> Self {
        let host = SimHost::new(Granule::K4);
        host.memory(RAM as u64, 64 * PAGE as u64);
        let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
        let inner = Arc::new(Inner::default());
        let vfio = PinnedVfio::new(space, Arc::clone(&inner) as Arc<dyn VfioOps>, 1).unwrap();
        Self { host, inner, vfio }
    }

    #[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
    fn map(&self, iova: u64, page: usize, pages: usize) -> Result<(), VfioError> {
        let start = std::ptr::without_provenance_mut(RAM + page * PAGE);
        // SAFETY: see the reason.
        unsafe { self.vfio.vfio_dma_map(iova, pages * PAGE, start) }
    }
}

#[test]
fn the_example_runs() {
    example::main().unwrap();
}

#[test]
fn maps_reach_the_container_inside_and_pin() {
    let world = World::new();
    world.map(0x1000, 0, 4).unwrap();
    assert_eq!(*world.inner.mapped.lock().unwrap(), [(0x1000, 4 * PAGE, RAM)]);
    assert_eq!(world.host.pinned_pages(), 4);
    world.vfio.vfio_dma_unmap(0x1000, 4 * PAGE).unwrap();
    assert!(world.inner.mapped.lock().unwrap().is_empty());
    assert_eq!(world.host.pinned_pages(), 0);
}

#[test]
fn the_kernels_number_comes_through() {
    let world = World::new();
    *world.inner.refuse.lock().unwrap() = 28;
    assert!(matches!(world.map(0, 0, 1), Err(VfioError::IommuDmaMap(error)) if error.errno() == 28));
    assert_eq!(world.host.pinned_pages(), 0);
    *world.inner.refuse.lock().unwrap() = 0;
    world.map(0, 0, 1).unwrap();
    assert!(matches!(world.map(0, 1, 1), Err(VfioError::IommuDmaMap(error)) if error.errno() == 17));
    *world.inner.refuse.lock().unwrap() = 4;
    let refused = world.vfio.vfio_dma_unmap(0, PAGE);
    assert!(matches!(refused, Err(VfioError::IommuDmaUnmap(error)) if error.errno() == 4));
    assert_eq!(world.host.pinned_pages(), 1, "the device may still reach it");
    *world.inner.refuse.lock().unwrap() = 0;
    world.vfio.vfio_dma_unmap(0, PAGE).unwrap();
}

#[test]
fn a_device_finds_the_container_inside_and_the_next_one_its_mappings() {
    let world = World::new();
    let open = |ops: Arc<dyn VfioOps>| {
        ops.as_any().downcast_ref::<Inner>().map(drop).ok_or(VfioError::DowncastVfioOps)
    };
    let device = world.vfio.attach(open).unwrap();
    world.map(0, 0, 8).unwrap();
    drop(device);
    world.inner.mapped.lock().unwrap().clear();
    let pins = world.host.pin_calls();
    *world.inner.refuse.lock().unwrap() = 12;
    assert!(matches!(world.vfio.attach(open), Err(VfioError::IommuDmaMap(error)) if error.errno() == 12));
    *world.inner.refuse.lock().unwrap() = 0;
    let _device = world.vfio.attach(open).unwrap();
    assert_eq!(world.inner.mapped.lock().unwrap().len(), 1);
    assert_eq!((world.host.pin_calls(), world.host.pinned_pages()), (pins, 8));
}

/// The first page of the area with this name in `/proc/self/maps`.
fn area(name: &str) -> Option<usize> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let line = maps.lines().find(|line| line.ends_with(name))?;
    usize::from_str_radix(line.split('-').next()?, 16).ok()
}

#[test]
#[cfg_attr(miri, ignore = "pins with io_uring")]
fn real_memory_that_cannot_be_pinned_is_passed_to_the_container() {
    let pins = match prereg_linux::IoUring::new() {
        Ok(pins) => pins,
        Err(error) => {
            eprintln!("skipped: {error}");
            return;
        }
    };
    let space = Arc::new(AddressSpace::builder(pins).build().unwrap());
    let inner = Arc::new(Inner::default());
    let vfio = PinnedVfio::new(Arc::clone(&space), Arc::clone(&inner) as Arc<dyn VfioOps>, 1).unwrap();
    // The kernel's clock page is VM_PFNMAP and VM_IO, as a BAR is. The program's own file is mapped for reading.
    let program = std::env::current_exe().unwrap();
    let pages = [area("[vvar]"), area(program.to_str().unwrap())];
    for (at, start) in pages.into_iter().enumerate() {
        let Some(start) = start else {
            eprintln!("skipped: no such area in /proc/self/maps");
            continue;
        };
        let iova = (at * PAGE) as u64;
        #[expect(unsafe_code, reason = "the memory is mapped as long as the program")]
        // SAFETY: see the reason; the container only records the address.
        unsafe { vfio.vfio_dma_map(iova, PAGE, std::ptr::with_exposed_provenance_mut(start)) }.unwrap();
        assert!(!vfio.mappings().snapshot().mappings[at].pinned);
    }
    assert!(!space.is_preregistered());
    vfio.vfio_dma_unmap(0, 2 * PAGE).unwrap();
    assert!(inner.mapped.lock().unwrap().is_empty());
}

#[test]
fn a_container_that_lost_a_mapping_unnoticed_does_not_stop_its_unmap() {
    let world = World::new();
    world.map(0, 0, 1).unwrap();
    world.inner.mapped.lock().unwrap().clear();
    world.vfio.vfio_dma_unmap(0, PAGE).unwrap();
    assert_eq!(world.host.pinned_pages(), 0);
}
