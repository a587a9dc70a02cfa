//! A guest of `vm-memory` whose memory is pinned once, and a device that reaches it through a translating IOMMU.
//!
//!     cargo run -p prereg-vmm --features vm-memory --example vm_memory
//!
//! The device is a copy engine: its driver writes descriptors with I/O virtual addresses to a ring. Pins are
//! real (io_uring); an ordinary user within RLIMIT_MEMLOCK can run it.

use std::error::Error;
use std::sync::Arc;

use prereg::{Access, AddressSpace, Holder};
use prereg_iommu::iova::IovaLimits;
use prereg_linux::{IoUring, KernelCount};
use prereg_vmm::vm_memory::{PinnedIommu, RegisteredRam};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, Iommu, IommuMemory, Permissions};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
/// The second piece of the guest's memory, above a hole for devices.
const HIGH: GuestAddress = GuestAddress(4 << 30);
/// The I/O virtual address of the ring.
const RING: GuestAddress = GuestAddress(0x10_0000);
const DESCRIPTORS: u64 = 16;

/// A device that copies as described by (from, to, bytes), with I/O virtual addresses only.
struct CopyEngine {
    memory: IommuMemory<GuestMemoryMmap, PinnedIommu>,
}

impl CopyEngine {
    fn run(&self, descriptors: u64) -> Result<u64, Box<dyn Error>> {
        let mut copied = 0;
        for number in 0..descriptors {
            let at = |word: u64| GuestAddress(RING.0 + number * 24 + word * 8);
            let [from, to, bytes] = [0, 1, 2].map(|word| self.memory.read_obj::<u64>(at(word)));
            let mut data = vec![0; usize::try_from(bytes?)?];
            self.memory.read_slice(&mut data, GuestAddress(from?))?;
            self.memory.write_slice(&data, GuestAddress(to?))?;
            copied += data.len() as u64;
        }
        Ok(copied)
    }
}

fn pinned() -> u64 {
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
    let guest = GuestMemoryMmap::from_ranges(&[
        (GuestAddress(0), usize::try_from(4 * MIB)?),
        (HIGH, usize::try_from(MIB)?),
    ])?;

    let before = pinned();
    let ram = Arc::new(RegisteredRam::register(&space, &guest, Holder::default())?);
    println!("pinned {} KiB for {} regions", pinned() - before, ram.regions().len());

    // The guest's driver fills memory, maps it page by page for the device, and writes descriptors.
    let iommu = PinnedIommu::new(&space, Arc::clone(&ram), IovaLimits::default(), Holder::default())?;
    iommu.map(RING, 4 * KIB, GuestAddress(0x3000), Access::Read)?;
    for number in 0..DESCRIPTORS {
        let (from, to) = (0x20_0000 + number * 4 * KIB, 0x80_0000 + number * 4 * KIB);
        // The source's pages are in reverse order in the guest, and in order for the device.
        let source = GuestAddress(0x10_0000 - (number + 1) * 4 * KIB);
        guest.write_obj(0xfeed_0000 + number, GuestAddress(source.0 + 0x100))?;
        iommu.map(GuestAddress(from), 4 * KIB, source, Access::Read)?;
        iommu.map(GuestAddress(to), 4 * KIB, GuestAddress(HIGH.0 + number * 4 * KIB), Access::ReadWrite)?;
        for (word, value) in [from, to, 4 * KIB].into_iter().enumerate() {
            guest.write_obj(value, GuestAddress(0x3000 + number * 24 + word as u64 * 8))?;
        }
    }

    let device = CopyEngine { memory: IommuMemory::new(guest.clone(), iommu, true, ()) };
    let copied = device.run(DESCRIPTORS)?;
    for number in 0..DESCRIPTORS {
        let value: u64 = guest.read_obj(GuestAddress(HIGH.0 + number * 4 * KIB + 0x100))?;
        assert_eq!(value, 0xfeed_0000 + number, "the device wrote the wrong page");
    }
    println!("the device copied {copied} bytes through {DESCRIPTORS} scattered pages");

    let iommu = device.memory.iommu();
    assert!(device.memory.write_obj(0u64, RING).is_err(), "the ring is mapped for reading only");
    assert!(device.memory.read_obj::<u64>(GuestAddress(0x50_0000)).is_err(), "nothing is mapped there");

    // A translation holds its memory: an unmap is not done before it ends.
    let under_way = iommu.translate(RING, 64, Permissions::Read)?;
    let unmapping = iommu.unmap(RING, 4 * KIB)?;
    println!("unmapped the ring under the device: done {}", unmapping.is_done());
    assert!(!unmapping.is_done());
    drop(under_way);
    assert!(unmapping.is_done());
    assert!(device.run(1).is_err(), "the ring is gone");

    // Memory is unplugged under the live device, after it is unmapped.
    let refused = ram.remove(HIGH).err().ok_or("mapped memory was unplugged")?;
    println!("unplugging: {refused}");
    let unmapping = iommu.unmap(GuestAddress(0x80_0000), DESCRIPTORS * 4 * KIB)?;
    assert!(unmapping.is_done());
    ram.remove(HIGH)?;
    println!("unplugged: {} KiB pinned", pinned() - before);
    drop((device, ram));
    println!("pinned {} KiB when all is unplugged", pinned() - before);
    assert_eq!(pinned(), before);
    Ok(())
}
