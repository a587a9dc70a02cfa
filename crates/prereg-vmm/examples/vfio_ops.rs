//! A VMM with an `Arc<dyn VfioOps>` unplugs its last device and plugs another one.
//!
//!     cargo run -p prereg-vmm --features vfio-ioctls --example vfio_ops
//!
//! The container is a model of the kernel's: it maps nothing without a device, and drops everything with the last one. With
//! it alone the second device reaches no memory (cloud-hypervisor issue 7328); with `PinnedVfio` around it the device does its
//! DMA, over memory that was pinned once. Pins are real (io_uring). On a host with VFIO, `VfioContainer::new` replaces the
//! model and `VfioDevice::new` its device.

use std::any::Any;
use std::collections::BTreeMap;
use std::error::Error;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::AddressSpace;
use prereg_linux::{GuestMemory, IoUring, KernelCount};
use prereg_vmm::vfio::PinnedVfio;
use vfio_ioctls::{VfioError, VfioOps};
use vmm_sys_util::errno::Error as SysError;

const MIB: usize = 1 << 20;
/// The guest address of the memory, and its I/O address.
const RAM: u64 = 0x1_0000_0000;

/// The state that a container and its devices share.
#[derive(Default)]
struct Table {
    /// By I/O virtual address: bytes and user address.
    mappings: BTreeMap<u64, (usize, usize)>,
    devices: u32,
}

/// A model of a type1 container.
#[derive(Default)]
struct ModelContainer {
    table: Arc<Mutex<Table>>,
}

fn lock(table: &Mutex<Table>) -> MutexGuard<'_, Table> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

const EEXIST: i32 = 17;
const EINVAL: i32 = 22;

impl VfioOps for ModelContainer {
    #[expect(unsafe_code, reason = "the trait's")]
    unsafe fn vfio_dma_map(&self, iova: u64, size: usize, user_addr: *mut u8) -> Result<(), VfioError> {
        let mut table = lock(&self.table);
        let errno = if table.devices == 0 {
            EINVAL
        } else if table
            .mappings
            .range(..iova + size as u64)
            .next_back()
            .is_some_and(|(at, m)| at + m.0 as u64 > iova)
        {
            EEXIST
        } else {
            table.mappings.insert(iova, (size, user_addr.addr()));
            return Ok(());
        };
        Err(VfioError::IommuDmaMap(SysError::new(errno)))
    }

    fn vfio_dma_unmap(&self, iova: u64, size: usize) -> Result<(), VfioError> {
        match lock(&self.table).mappings.remove(&iova) {
            Some((bytes, _)) if bytes == size => Ok(()),
            _ => Err(VfioError::InvalidDmaUnmapSize),
        }
    }

    fn as_any(&self) -> &dyn Any {
        self
    }
}

/// A device that sums bytes that it reads by DMA. Opened through the inner container of a `VfioOps`, as `VfioDevice` is.
struct ModelDevice {
    table: Arc<Mutex<Table>>,
    ram: GuestMemory,
}

impl ModelDevice {
    fn open(ops: Arc<dyn VfioOps>, ram: &GuestMemory) -> Result<Self, VfioError> {
        let container = ops.as_any().downcast_ref::<ModelContainer>().ok_or(VfioError::DowncastVfioOps)?;
        lock(&container.table).devices += 1;
        Ok(Self { table: Arc::clone(&container.table), ram: ram.clone() })
    }

    /// Reads `into.len()` bytes at `iova`, as the hardware would: by the table, or not at all.
    fn dma_read(&self, iova: u64, into: &mut [u8]) -> bool {
        let table = lock(&self.table);
        let Some((at, (bytes, start))) = table.mappings.range(..=iova).next_back() else { return false };
        let offset = iova - at;
        if offset + into.len() as u64 > *bytes as u64 {
            return false;
        }
        let ua = *start as u64 + offset;
        ua.checked_sub(self.ram.ua().raw()).is_some_and(|offset| self.ram.read(offset, into).is_ok())
    }
}

impl Drop for ModelDevice {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        table.devices -= 1;
        if table.devices == 0 {
            table.mappings.clear();
        }
    }
}

fn greeting(device: &ModelDevice) -> Option<String> {
    let mut bytes = [0; 5];
    device.dma_read(RAM + 0x1234, &mut bytes).then(|| String::from_utf8_lossy(&bytes).into_owned())
}

fn pinned_kib() -> u64 {
    KernelCount::now().map_or(0, |count| count.pinned >> 10)
}

#[expect(unsafe_code, reason = "`vfio_dma_map` asks for a promise about the memory, which `ram` keeps")]
fn map_all(ops: &dyn VfioOps, ram: &GuestMemory) -> Result<(), VfioError> {
    // SAFETY: `ram` lives until after the unmap, and is only accessed by copies.
    unsafe { ops.vfio_dma_map(RAM, MIB, ram.as_ptr()) }
}

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let ram = GuestMemory::memfd("guest", MIB as u64)?;
    ram.write(0x1234, b"hello")?;

    // Without pre-registration.
    let bare: Arc<dyn VfioOps> = Arc::new(ModelContainer::default());
    let device = ModelDevice::open(Arc::clone(&bare), &ram)?;
    map_all(&*bare, &ram)?;
    println!("container alone:  first device reads {:?}", greeting(&device));
    drop(device);
    let device = ModelDevice::open(Arc::clone(&bare), &ram)?;
    println!("container alone:  after the last device left, the next one reads {:?}", greeting(&device));
    assert_eq!(greeting(&device), None);
    drop((device, bare));

    let pins = match IoUring::new() {
        Ok(pins) => pins,
        Err(error) => {
            eprintln!("skipped: {error}");
            return Ok(());
        }
    };
    let space = Arc::new(AddressSpace::builder(pins).build()?);
    // The VMM registers the guest's memory once, when the guest is created.
    let registration = space.register(&ram)?;
    let after_pinning = pinned_kib();

    let inner: Arc<dyn VfioOps> = Arc::new(ModelContainer::default());
    let vfio = PinnedVfio::new(Arc::clone(&space), inner, 1)?;
    let device = vfio.attach(|ops| ModelDevice::open(ops, &ram))?;
    map_all(&*vfio, &ram)?;
    println!("with pins kept:   first device reads {:?}", greeting(&device));
    drop(device);
    let state = vfio.mappings().snapshot();
    println!(
        "with pins kept:   no device; {} mapping remembered, {} KiB pinned as before",
        state.mappings.len(),
        after_pinning
    );
    assert!(state.dormant && pinned_kib() == after_pinning);
    let device = vfio.attach(|ops| ModelDevice::open(ops, &ram))?;
    println!("with pins kept:   the next device reads {:?}", greeting(&device));
    assert_eq!(greeting(&device).as_deref(), Some("hello"));
    assert_eq!(pinned_kib(), after_pinning, "nothing was pinned again");

    // The memory cannot be unregistered while it is mapped, with or without devices.
    let busy = registration.unregister().err().ok_or("mapped memory was unregistered")?;
    println!("with pins kept:   {busy}");
    vfio.vfio_dma_unmap(RAM, MIB)?;
    assert_eq!(greeting(&device), None);
    busy.into_inner().unregister()?;
    println!("with pins kept:   unmapped, unregistered, {} KiB less pinned", after_pinning - pinned_kib());
    Ok(())
}
