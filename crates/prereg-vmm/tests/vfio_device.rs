//! `PinnedVfio` over the kernel's own VFIO: devices do DMA to what is mapped, and to nothing else.
//!
//! `PREREG_EDU` names two of QEMU's `edu` devices, bound to vfio-pci, each in an IOMMU group of its own. Without it the tests
//! are skipped: `cargo xtask vm` runs them in a guest that has such devices. `edu` copies between its buffer and the bus.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Duration;

use prereg::{Access, AddressSpace, Errno, Iova, Registration};
use prereg_linux::{GuestMemory, IoUring, KernelCount};
use prereg_vmm::vfio::PinnedVfio;
use prereg_vmm::{Attached, MemoryKind};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioOps};

const PAGE: u64 = 4096;
const RAM: u64 = 4 << 20;
/// The place of the memory in the devices' address space. `edu` reaches 256 MiB.
const IOVA: u64 = 1 << 24;
/// The place of a single page.
const OTHER_IOVA: u64 = 1 << 27;

/// Indexes of VFIO's PCI regions.
const BAR0: u32 = 0;
const CONFIG: u32 = 7;
/// The PCI command register, and its bits for memory accesses and bus mastering.
const PCI_COMMAND: u64 = 4;
const MEMORY_AND_MASTER: u16 = 0b110;

/// Registers of `edu`, and the place of its buffer in its own address space.
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
const BUFFER: u32 = 0x4_0000;
const START: u32 = 1;
const TO_MEMORY: u32 = 2;
/// The value of the first register: "edu", version 1.0.
const ID: u32 = 0x0100_00ed;

/// An open `edu` device.
struct Edu(Attached<VfioDevice>);

impl Edu {
    fn open(vfio: &Arc<PinnedVfio>, address: &str) -> Self {
        let path = format!("/sys/bus/pci/devices/{address}");
        let device = vfio.attach(|ops| VfioDevice::new(Path::new(&path), ops, true)).unwrap();
        let mut command = [0; 2];
        device.region_read(CONFIG, &mut command, PCI_COMMAND);
        let command = u16::from_le_bytes(command) | MEMORY_AND_MASTER;
        device.region_write(CONFIG, &command.to_le_bytes(), PCI_COMMAND);
        Self(device)
    }

    fn set(&self, register: u64, value: u32) {
        self.0.region_write(BAR0, &value.to_le_bytes(), register);
    }

    fn is_busy(&self) -> bool {
        let mut command = [0xff; 4];
        self.0.region_read(BAR0, &mut command, COMMAND);
        u32::from_le_bytes(command) & START != 0
    }

    /// Copies bytes, as the device does it: a transfer that the IOMMU refuses ends as any other.
    fn transfer(&self, source: u32, destination: u32, bytes: u32, direction: u32) {
        self.set(SOURCE, source);
        self.set(DESTINATION, destination);
        self.set(COUNT, bytes);
        self.set(COMMAND, START | direction);
        while self.is_busy() {
            sleep(Duration::from_millis(1));
        }
    }

    /// Reads the page at `iova` into the buffer.
    fn read(&self, iova: u64) {
        self.transfer(u32::try_from(iova).unwrap(), BUFFER, PAGE as u32, 0);
    }

    /// Writes the buffer to the page at `iova`.
    fn write(&self, iova: u64) {
        self.transfer(BUFFER, u32::try_from(iova).unwrap(), PAGE as u32, TO_MEMORY);
    }

    /// Reads the four bytes at `iova` into the buffer.
    fn read_u32(&self, iova: u64) {
        self.transfer(u32::try_from(iova).unwrap(), BUFFER, 4, 0);
    }
}

/// The first page of a device's registers.
struct Registers(*mut u8);

impl Registers {
    #[expect(unsafe_code, reason = "maps memory")]
    fn of(edu: &Edu) -> Self {
        let offset = i64::try_from(edu.0.get_region_offset(BAR0)).unwrap();
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (place, bytes) = (std::ptr::null_mut(), PAGE as usize);
        // SAFETY: a new mapping at an address of the kernel's choice.
        let begin =
            unsafe { libc::mmap(place, bytes, protection, libc::MAP_SHARED, edu.0.as_raw_fd(), offset) };
        assert_ne!(begin, libc::MAP_FAILED);
        Self(begin.cast())
    }
}

impl Drop for Registers {
    #[expect(unsafe_code, reason = "unmaps memory")]
    fn drop(&mut self) {
        // SAFETY: this is what `of` mapped, and no pointer into it is left.
        unsafe { libc::munmap(self.0.cast(), PAGE as usize) };
    }
}

/// Registered memory, and a container without devices.
struct Host {
    ram: GuestMemory,
    registration: Registration,
    vfio: Arc<PinnedVfio>,
    before: KernelCount,
}

impl Host {
    fn new() -> Self {
        let before = KernelCount::now().unwrap();
        let space = Arc::new(AddressSpace::builder(IoUring::new().unwrap()).build().unwrap());
        let ram = GuestMemory::memfd("guest", RAM).unwrap();
        let registration = space.register(&ram).unwrap();
        let inner: Arc<dyn VfioOps> = Arc::new(VfioContainer::new(None).unwrap());
        Self { ram, registration, vfio: PinnedVfio::new(space, inner, 1).unwrap(), before }
    }

    /// Maps the page at `offset` to `iova`.
    #[expect(unsafe_code, reason = "a promise about the memory")]
    fn map(&self, iova: u64, offset: u64, access: Access) {
        let ua = self.ram.ua().checked_add(offset).unwrap();
        // SAFETY: `ram` lives as long as the mappings, and is only copied in and out of.
        unsafe { self.vfio.mappings().map(Iova::new(iova), ua, PAGE, access, MemoryKind::Ram) }.unwrap();
    }

    /// Maps all of the memory.
    #[expect(unsafe_code, reason = "a promise about the memory")]
    fn map_all(&self) {
        // SAFETY: `ram` lives as long as the mappings, and is only copied in and out of.
        unsafe { self.vfio.vfio_dma_map(IOVA, RAM as usize, self.ram.as_ptr()) }.unwrap();
    }

    fn page(&self, offset: u64) -> Vec<u8> {
        let mut bytes = vec![0; PAGE as usize];
        self.ram.read(offset, &mut bytes).unwrap();
        bytes
    }

    fn fill(&self, offset: u64, seed: u8) -> Vec<u8> {
        let bytes: Vec<u8> = (0..PAGE).map(|at| (at as u8).wrapping_mul(7).wrapping_add(seed)).collect();
        self.ram.write(offset, &bytes).unwrap();
        bytes
    }

    /// Locked and pinned bytes since the beginning.
    fn counted(&self) -> (u64, u64) {
        let now = KernelCount::now().unwrap();
        (now.locked - self.before.locked, now.pinned - self.before.pinned)
    }

    /// Unregisters the memory, closes the container and compares the kernel's counts.
    fn end(self) {
        let Self { ram, registration, vfio, before } = self;
        registration.unregister().unwrap();
        drop((vfio, ram));
        assert_eq!(KernelCount::now(), Some(before), "nothing is left locked or pinned");
    }
}

/// The two devices, or `None`: the test is skipped.
fn devices() -> Option<[String; 2]> {
    let Ok(named) = std::env::var("PREREG_EDU") else {
        eprintln!("skipped: PREREG_EDU names no edu devices");
        return None;
    };
    let named: Vec<String> = named.split_whitespace().map(str::to_owned).collect();
    Some(named.try_into().unwrap())
}

/// Checks that `edu` reads the page at `offset` and writes what it read to the next one.
fn assert_reaches(host: &Host, edu: &Edu, iova: u64, offset: u64, seed: u8) {
    let bytes = host.fill(offset, seed);
    host.fill(offset + PAGE, !seed);
    edu.read(iova);
    edu.write(iova + PAGE);
    assert!(host.page(offset + PAGE) == bytes, "the device copies a page to the next one");
}

#[test]
fn a_device_reaches_what_is_mapped_until_it_is_unmapped() {
    let Some([device, _]) = devices() else { return };
    let host = Host::new();
    let edu = Edu::open(&host.vfio, &device);
    assert_eq!(host.counted(), (0, RAM), "registered memory is pinned without a mapping");
    host.map_all();
    assert_eq!(host.counted(), (RAM, RAM), "the container locks what it maps");
    assert_reaches(&host, &edu, IOVA, 0, 1);

    let Host { ram, registration, vfio, before } = host;
    let busy = registration.unregister().expect_err("a device reaches the memory");
    assert_eq!((busy.errno(), busy.mapped()), (Errno::EBUSY, 1));
    let host = Host { ram, registration: busy.into_inner(), vfio, before };
    host.vfio.vfio_dma_unmap(IOVA, PAGE as usize).expect_err("it would cut the mapping");
    assert_reaches(&host, &edu, IOVA + RAM - 2 * PAGE, RAM - 2 * PAGE, 2);

    host.vfio.vfio_dma_unmap(IOVA, RAM as usize).unwrap();
    assert_eq!(host.counted(), (0, RAM), "unmapped memory stays registered");
    let bytes = host.fill(PAGE, 3);
    edu.write(IOVA + PAGE);
    assert!(host.page(PAGE) == bytes, "the device does not write what was unmapped");
    let secret = host.fill(0, 4);
    host.map(OTHER_IOVA, PAGE, Access::ReadWrite);
    edu.read(IOVA);
    edu.write(OTHER_IOVA);
    assert!(host.page(PAGE) != bytes, "the device writes what is mapped");
    assert!(host.page(PAGE) != secret, "the device does not read what was unmapped");
    host.vfio.vfio_dma_unmap(OTHER_IOVA, PAGE as usize).unwrap();
    drop(edu);
    host.end();
}

#[test]
fn a_device_does_not_write_what_is_mapped_for_reading() {
    let Some([device, _]) = devices() else { return };
    let host = Host::new();
    let edu = Edu::open(&host.vfio, &device);
    host.map(IOVA, 0, Access::Read);
    host.map(IOVA + PAGE, PAGE, Access::ReadWrite);
    assert_reaches(&host, &edu, IOVA, 0, 5);
    let bytes = host.fill(0, 6);
    edu.write(IOVA);
    assert!(host.page(0) == bytes, "the device does not write it");
    host.vfio.vfio_dma_unmap(IOVA, 2 * PAGE as usize).unwrap();
    drop(edu);
    host.end();
}

#[test]
#[expect(unsafe_code, reason = "a promise about the memory")]
fn a_device_reaches_the_registers_of_another_which_cannot_be_pinned() {
    let Some([device, other]) = devices() else { return };
    let host = Host::new();
    let (edu, other) = (Edu::open(&host.vfio, &device), Edu::open(&host.vfio, &other));
    let registers = Registers::of(&other);
    host.map(OTHER_IOVA, 0, Access::ReadWrite);
    // SAFETY: `registers` live as long as the mapping, and are not used otherwise.
    unsafe { host.vfio.vfio_dma_map(IOVA, PAGE as usize, registers.0) }.unwrap();
    let mappings = host.vfio.mappings().snapshot().mappings;
    assert_eq!(mappings.iter().map(|mapping| mapping.pinned).collect::<Vec<_>>(), [false, true]);
    assert_eq!(host.counted(), (PAGE, RAM), "the memory only");
    edu.read_u32(IOVA);
    edu.write(OTHER_IOVA);
    assert_eq!(host.page(0)[..4], ID.to_le_bytes(), "the device read a register of the other one");
    host.vfio.vfio_dma_unmap(IOVA, PAGE as usize).unwrap();
    host.vfio.vfio_dma_unmap(OTHER_IOVA, PAGE as usize).unwrap();
    drop((registers, edu, other));
    host.end();
}

#[test]
fn the_next_device_reaches_what_was_mapped_for_the_one_that_left() {
    let Some([first, second]) = devices() else { return };
    let host = Host::new();
    let edu = Edu::open(&host.vfio, &first);
    host.map_all();
    host.map(OTHER_IOVA, 0, Access::ReadWrite);
    assert_reaches(&host, &edu, IOVA, 0, 7);

    drop(edu);
    assert!(host.vfio.mappings().snapshot().dormant);
    assert_eq!(host.counted(), (0, RAM), "the kernel's container lost its mappings");
    host.vfio.vfio_dma_unmap(OTHER_IOVA, PAGE as usize).unwrap();
    host.map(OTHER_IOVA + PAGE, 2 * PAGE, Access::ReadWrite);

    let edu = Edu::open(&host.vfio, &second);
    assert_eq!(host.counted(), (RAM + PAGE, RAM), "both mappings are made");
    assert_reaches(&host, &edu, IOVA, 0, 8);
    let bytes = host.fill(0, 9);
    edu.write(OTHER_IOVA);
    assert!(host.page(0) == bytes, "what was unmapped without a device is not mapped again");
    edu.write(OTHER_IOVA + PAGE);
    assert!(host.page(2 * PAGE) == host.page(PAGE), "what was mapped without a device is mapped");

    // A second device beside it reaches the same, and so does the one that is left.
    let beside = Edu::open(&host.vfio, &first);
    assert_reaches(&host, &beside, IOVA, 0, 10);
    drop(edu);
    assert_reaches(&host, &beside, IOVA, 0, 11);
    host.vfio.vfio_dma_unmap(IOVA, 1 << 28).expect_err("less than that was mapped");
    assert_eq!(host.counted(), (0, RAM), "everything is unmapped");
    drop(beside);
    host.end();
}
