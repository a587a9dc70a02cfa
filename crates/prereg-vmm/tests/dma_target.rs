//! Tests of a DMA target with openvmm's interface.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

#[path = "../examples/dma_target.rs"]
mod example;

use std::sync::{Arc, Mutex};

use prereg::{Access, AddressSpace, Errno, Granule, Iova, UserAddr};
use prereg_sim::SimHost;
use prereg_vmm::DmaContainer;
use prereg_vmm::openvmm::{DmaMapRequest, DmaTarget, DmaTargetError, MappingType, PinnedTarget};

const RAM: usize = 0x7000_0000;

#[derive(Default)]
struct Table(Mutex<Vec<(u64, u64, Access)>>);

impl DmaContainer for Table {
    #[expect(unsafe_code, reason = "the trait's")]
    unsafe fn map(&self, iova: Iova, _ua: UserAddr, bytes: u64, access: Access) -> Result<(), Errno> {
        self.0.lock().unwrap().push((iova.raw(), bytes, access));
        Ok(())
    }

    fn unmap(&self, iova: Iova, bytes: u64) -> Result<(), Errno> {
        self.0.lock().unwrap().retain(|&(at, length, _)| (at, length) != (iova.raw(), bytes));
        Ok(())
    }
}

fn request(start: u64, end: u64, host: Option<usize>) -> DmaMapRequest<'static> {
    DmaMapRequest {
        range: start..end,
        host_va: host.map(std::ptr::without_provenance),
        mappable: None,
        file_offset: 0,
        writable: true,
        mapping_type: MappingType::Ram,
    }
}

#[expect(unsafe_code, reason = "nothing is behind the memory of a made-up host")]
fn map(target: &PinnedTarget, request: DmaMapRequest<'_>) -> Result<(), Errno> {
    // SAFETY: see the reason.
    unsafe { target.map_dma(request) }.map_err(|error| error.errno())
}

#[test]
fn the_example_runs() {
    example::main().unwrap();
}

#[test]
fn pieces_are_mapped_one_by_one_and_unmapped_together() {
    let host = SimHost::new(Granule::K4);
    host.memory(RAM as u64, 0x10_0000);
    let table = Arc::new(Table::default());
    let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
    let target = PinnedTarget::new(space, Arc::clone(&table) as Arc<dyn DmaContainer>, 0).unwrap();

    map(&target, request(0, 0x2000, Some(RAM))).unwrap();
    map(&target, DmaMapRequest { writable: false, ..request(0x4000, 0x5000, Some(RAM + 0x4000)) }).unwrap();
    let bar = DmaMapRequest { mapping_type: MappingType::Device, ..request(0x8000, 0x9000, Some(0x1000)) };
    map(&target, bar).unwrap();
    assert_eq!(
        *table.0.lock().unwrap(),
        [(0, 0x2000, Access::ReadWrite), (0x4000, 0x1000, Access::Read), (0x8000, 0x1000, Access::ReadWrite)]
    );
    assert_eq!(host.pinned_pages(), 3);
    assert_eq!(map(&target, request(0, 0x1000, None)), Err(Errno::EINVAL));
    assert_eq!(map(&target, request(0x1000, 0x1000, Some(RAM))), Err(Errno::EINVAL));
    assert_eq!(map(&target, request(0x2000, 0x1000, Some(RAM))), Err(Errno::EINVAL));
    assert_eq!(map(&target, request(0x1000, 0x3000, Some(RAM))), Err(Errno::EEXIST));

    let backwards = std::ops::Range { start: 0x2000, end: 0x1000 };
    assert!(matches!(target.unmap_dma(backwards), Err(DmaTargetError::Range { .. })));
    target.unmap_dma(0..0x8000).unwrap();
    assert_eq!((table.0.lock().unwrap().len(), host.pinned_pages()), (1, 0));
    target.unmap_dma(0..0x8000).unwrap();
    target.unmap_dma(0..0x10_0000).unwrap();
    drop(target);
    host.assert_clean();
}
