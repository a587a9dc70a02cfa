//! A memory manager with openvmm's interface maps every piece of guest memory in a DMA target; a device does DMA to it.
//!
//!     cargo run -p prereg-vmm --features openvmm --example dma_target
//!
//! Pieces are mapped one by one and unmapped by whole regions, with gaps for device memory. Pins are
//! real (io_uring).

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Access, AddressSpace, Errno, Iova, UserAddr};
use prereg_linux::{GuestMemory, IoUring, KernelCount};
use prereg_vmm::DmaContainer;
use prereg_vmm::openvmm::{DmaMapRequest, DmaTarget, MappingType, PinnedTarget};

const KIB: u64 = 1 << 10;
const RAM: u64 = 0x4000_0000;

/// A device with its own table, like that of an iommufd address space: it keeps its mappings when it is reset.
#[derive(Default)]
struct Device {
    table: Mutex<BTreeMap<u64, (u64, UserAddr, Access)>>,
}

impl Device {
    fn table(&self) -> MutexGuard<'_, BTreeMap<u64, (u64, UserAddr, Access)>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes `bytes` at `iova` into memory of `ram`, as the hardware would: by the table, or not at all.
    fn dma_write(&self, ram: &GuestMemory, iova: u64, bytes: &[u8]) -> bool {
        let table = self.table();
        let Some((at, (length, ua, access))) = table.range(..=iova).next_back() else { return false };
        let offset = iova - at;
        let inside = access.writes() && offset + bytes.len() as u64 <= *length;
        inside && ram.write(ua.raw() + offset - ram.ua().raw(), bytes).is_ok()
    }
}

impl DmaContainer for Device {
    #[expect(unsafe_code, reason = "the trait's")]
    unsafe fn map(&self, iova: Iova, ua: UserAddr, bytes: u64, access: Access) -> Result<(), Errno> {
        self.table().insert(iova.raw(), (bytes, ua, access));
        Ok(())
    }

    fn unmap(&self, iova: Iova, _bytes: u64) -> Result<(), Errno> {
        self.table().remove(&iova.raw());
        Ok(())
    }

    fn forgets(&self) -> bool {
        false
    }
}

fn pinned_kib() -> u64 {
    KernelCount::now().map_or(0, |count| count.pinned / KIB)
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let pins = match IoUring::new() {
        Ok(pins) => pins,
        Err(error) => {
            eprintln!("skipped: {error}");
            return Ok(());
        }
    };
    let space = Arc::new(AddressSpace::builder(pins).build()?);
    let ram = GuestMemory::memfd("guest", 1024 * KIB)?;
    let device = Arc::new(Device::default());
    let target = PinnedTarget::new(Arc::clone(&space), Arc::clone(&device) as Arc<dyn DmaContainer>, 1)?;
    let before = pinned_kib();

    // Guest memory with a hole, the second piece for reading only, and a device's memory beside it.
    for (start, end, offset, writable, mapping_type) in [
        (RAM, RAM + 256 * KIB, 0, true, MappingType::Ram),
        (RAM + 512 * KIB, RAM + 768 * KIB, 512 * KIB, false, MappingType::Ram),
        (RAM + 1024 * KIB, RAM + 1028 * KIB, 1020 * KIB, true, MappingType::Device),
    ] {
        let request = DmaMapRequest {
            range: start..end,
            host_va: Some(ram.as_ptr().wrapping_add(usize::try_from(offset)?)),
            mappable: ram.descriptor(),
            file_offset: offset,
            writable,
            mapping_type,
        };
        #[expect(unsafe_code, reason = "the request names memory, which `ram` keeps")]
        // SAFETY: `ram` lives until after the unmap, and is only accessed by copies.
        unsafe {
            target.map_dma(request)?;
        }
    }
    println!("3 pieces mapped, {} KiB pinned: the device's own memory is not", pinned_kib() - before);

    assert!(device.dma_write(&ram, RAM + 0x1000, b"from the device"));
    let mut back = [0; 15];
    ram.read(0x1000, &mut back)?;
    assert_eq!(&back, b"from the device");
    assert!(!device.dma_write(&ram, RAM + 256 * KIB, b"in the hole"));
    assert!(!device.dma_write(&ram, RAM + 512 * KIB, b"read-only"));
    println!("the device wrote {:?}; not into the hole, and not where it may only read", "from the device");

    // The region is unmapped as a whole, with its holes.
    target.unmap_dma(RAM..RAM + 1024 * KIB)?;
    assert!(!device.dma_write(&ram, RAM + 0x1000, b"too late"));
    println!("the region unmapped with its hole, {} KiB pinned", pinned_kib() - before);
    assert_eq!(pinned_kib(), before);
    assert_eq!(target.mappings().snapshot().mappings.len(), 1);
    target.unmap_dma(0..u64::MAX)?;
    target.unmap_dma(0..0x1000)?;
    assert!(!space.is_preregistered());
    Ok(())
}
