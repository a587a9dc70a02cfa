//! A small virtio-blk device over `virtio-queue`, whose ring and buffers are behind an IOMMU; and the driver that uses it.
//!
//!     cargo run -p prereg-vmm --features vm-memory --example virtio_blk
//!
//! As in existing VMMs the device has a `Queue`, and a `Reader` and a `Writer` for each request. Both are made from a `HeldMemory`: the
//! memory of the request stays pinned and mapped until the request is done, so an unmap is completed after the last access. Pins are
//! real (io_uring).

use std::error::Error;
use std::io::{Read, Write};
use std::sync::Arc;

use prereg::{Access, AddressSpace, Holder};
use prereg_iommu::iova::IovaLimits;
use prereg_linux::IoUring;
use prereg_vmm::vm_memory::{HeldMemory, PinnedIommu, RegisteredRam};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{DescriptorChain, Queue, QueueT, Reader, Writer};
use vm_memory::{Bytes, GuestAddress, GuestMemory, GuestMemoryMmap, IommuMemory, Permissions};

const PAGE: u64 = 4096;
const SECTOR: usize = 512;
const QUEUE_SIZE: u16 = 16;

// Request types and status of the virtio specification, 5.2.6.
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const OK: u8 = 0;
const IO_ERROR: u8 = 1;
const UNSUPPORTED: u8 = 2;

type Memory = IommuMemory<GuestMemoryMmap, PinnedIommu>;

/// The device.
struct Disk {
    queue: Queue,
    data: Vec<u8>,
    flushes: u64,
}

/// A header that every request begins with: type, reserved, sector.
struct Header {
    kind: u32,
    sector: u64,
}

impl Header {
    fn read(reader: &mut impl Read) -> Option<Self> {
        let mut bytes = [0; 16];
        reader.read_exact(&mut bytes).ok()?;
        let (kind, rest) = bytes.split_first_chunk::<4>()?;
        let (_, sector) = rest.split_last_chunk::<8>()?;
        Some(Self { kind: u32::from_le_bytes(*kind), sector: u64::from_le_bytes(*sector) })
    }
}

impl Disk {
    /// Serves all available requests; returns their number.
    fn serve(&mut self, memory: &Memory) -> Result<usize, virtio_queue::Error> {
        let mut served = 0;
        while let Some(chain) = self.queue.pop_descriptor_chain(memory) {
            let head = chain.head_index();
            let written = self.request(memory, chain);
            self.queue.add_used(memory, head, written)?;
            served += 1;
        }
        Ok(served)
    }

    /// Serves one request; returns the number of bytes written.
    fn request(&mut self, memory: &Memory, chain: DescriptorChain<&Memory>) -> u32 {
        // Everything below is held until the end of the request.
        let held = HeldMemory::new(memory);
        let Ok(mut writer) = Writer::new(&held, chain.clone()) else { return 0 };
        // The last byte is for the status. Without one there is no reply.
        let Some(data_bytes) = writer.available_bytes().checked_sub(1) else { return 0 };
        let Ok(mut status) = writer.split_at(data_bytes) else { return 0 };
        let result = match Reader::new(&held, chain) {
            Ok(mut reader) => self.execute(&mut reader, &mut writer),
            Err(_) => IO_ERROR,
        };
        match status.write_all(&[result]) {
            Ok(()) => u32::try_from(writer.bytes_written() + 1).unwrap_or(u32::MAX),
            Err(_) => 0,
        }
    }

    fn execute(&mut self, reader: &mut Reader<'_>, writer: &mut Writer<'_>) -> u8 {
        let Some(Header { kind, sector }) = Header::read(reader) else { return IO_ERROR };
        let done = match kind {
            IN => {
                self.range(sector, writer.available_bytes()).map(|range| writer.write_all(&self.data[range]))
            }
            OUT => self
                .range(sector, reader.available_bytes())
                .map(|range| reader.read_exact(&mut self.data[range])),
            FLUSH => {
                self.flushes += 1;
                Some(Ok(()))
            }
            GET_ID => Some(writer.write_all(b"prereg-disk\0")),
            _ => return UNSUPPORTED,
        };
        if matches!(done, Some(Ok(()))) { OK } else { IO_ERROR }
    }

    /// The bytes of a request, if they are whole sectors of the disk.
    fn range(&self, sector: u64, bytes: usize) -> Option<std::ops::Range<usize>> {
        let start = usize::try_from(sector).ok()?.checked_mul(SECTOR)?;
        let end = start.checked_add(bytes)?;
        (bytes % SECTOR == 0 && end <= self.data.len()).then_some(start..end)
    }
}

/// The driver's ring and buffers: guest addresses, and I/O virtual addresses.
const TABLE: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const HEADER: u64 = 0x4000;
const STATUS: u64 = 0x5000;
const DATA: u64 = 0x10_0000;
/// The I/O virtual address of guest page `gpa`.
const IOVA: u64 = 0x8000_0000;

/// An invalid request: name, type, sector and buffers, and the expected status.
type Mistake<'a> = (&'a str, u32, u64, &'a [Buffer], Option<u8>);

/// The guest's driver.
struct Driver {
    guest: GuestMemoryMmap,
    requests: u16,
}

/// A buffer of a request: its I/O virtual address, its length, whether the device writes it.
type Buffer = (u64, u32, bool);

impl Driver {
    /// Makes one request available.
    fn submit(&mut self, kind: u32, sector: u64, buffers: &[Buffer]) -> Result<(), Box<dyn Error>> {
        let mut header = [0; 16];
        header[..4].copy_from_slice(&kind.to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        self.guest.write_slice(&header, GuestAddress(HEADER))?;
        self.guest.write_obj(0xffu8, GuestAddress(STATUS))?;
        let mut chain = vec![(IOVA + HEADER, 16, false)];
        chain.extend_from_slice(buffers);
        for (at, &(address, bytes, writes)) in chain.iter().enumerate() {
            let next = at + 1;
            let flags = u16::from(next < chain.len()) | u16::from(writes) << 1;
            let descriptor = Descriptor::new(address, bytes, flags, u16::try_from(next)?);
            self.guest.write_obj(descriptor, GuestAddress(TABLE + at as u64 * 16))?;
        }
        let slot = u64::from(self.requests % QUEUE_SIZE);
        self.guest.write_obj(0u16, GuestAddress(AVAILABLE + 4 + slot * 2))?;
        self.requests = self.requests.wrapping_add(1);
        self.guest.write_obj(self.requests.to_le(), GuestAddress(AVAILABLE + 2))?;
        Ok(())
    }

    /// Lets `disk` serve one request; returns its status, `None` if the device could not write one, and the bytes it wrote.
    fn run(
        &mut self,
        (disk, memory): (&mut Disk, &Memory),
        kind: u32,
        sector: u64,
        buffers: &[Buffer],
    ) -> Result<(Option<u8>, u32), Box<dyn Error>> {
        self.submit(kind, sector, buffers)?;
        assert_eq!(disk.serve(memory)?, 1);
        let used: u16 = self.guest.read_obj(GuestAddress(USED + 2))?;
        assert_eq!(u16::from_le(used), self.requests, "every request is answered");
        let slot = u64::from(self.requests.wrapping_sub(1) % QUEUE_SIZE);
        let written: u32 = self.guest.read_obj(GuestAddress(USED + 4 + slot * 8 + 4))?;
        let status: u8 = self.guest.read_obj(GuestAddress(STATUS))?;
        Ok(((status != 0xff).then_some(status), u32::from_le(written)))
    }
}

const ANSWER: Buffer = (IOVA + STATUS, 1, true);

pub(crate) fn main() -> Result<(), Box<dyn Error>> {
    let pins = match IoUring::new() {
        Ok(pins) => pins,
        Err(error) => {
            eprintln!("skipped: {error}");
            return Ok(());
        }
    };
    let space = Arc::new(AddressSpace::builder(pins).build()?);
    let guest = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)])?;
    let ram = Arc::new(RegisteredRam::register(&space, &guest, Holder::default())?);
    let iommu = PinnedIommu::new(&space, ram, IovaLimits::default(), Holder::default())?;

    // The driver maps its ring, the header for reading, and four pages of data, the last for reading only.
    for (gpa, bytes, access) in [
        (TABLE, 2 * PAGE, Access::Read),
        (USED, PAGE, Access::ReadWrite),
        (HEADER, PAGE, Access::Read),
        (STATUS, PAGE, Access::Write),
        (DATA, 3 * PAGE, Access::ReadWrite),
        (DATA + 3 * PAGE, PAGE, Access::Read),
    ] {
        iommu.map(GuestAddress(IOVA + gpa), bytes, GuestAddress(gpa), access)?;
    }
    let memory = IommuMemory::new(guest.clone(), iommu, true, ());
    let mut queue = Queue::new(QUEUE_SIZE)?;
    queue.set_desc_table_address(Some((IOVA + TABLE) as u32), Some(0));
    queue.set_avail_ring_address(Some((IOVA + AVAILABLE) as u32), Some(0));
    queue.set_used_ring_address(Some((IOVA + USED) as u32), Some(0));
    queue.set_ready(true);
    assert!(queue.is_valid(&memory));
    let mut disk = Disk { queue, data: vec![0; 64 * SECTOR], flushes: 0 };
    let mut driver = Driver { guest: guest.clone(), requests: 0 };

    // Three sectors written from two buffers, flushed, and read into two others.
    let pattern: Vec<u8> = (0..3 * SECTOR).map(|at| (at % 251) as u8).collect();
    guest.write_slice(&pattern[..SECTOR], GuestAddress(DATA + 0xf00))?;
    guest.write_slice(&pattern[SECTOR..], GuestAddress(DATA + 3 * PAGE))?;
    let (one, two) = (SECTOR as u32, 2 * SECTOR as u32);
    let from = [(IOVA + DATA + 0xf00, one, false), (IOVA + DATA + 3 * PAGE, two, false), ANSWER];
    assert_eq!(driver.run((&mut disk, &memory), OUT, 5, &from)?, (Some(OK), 1));
    assert_eq!(driver.run((&mut disk, &memory), FLUSH, 0, &[ANSWER])?, (Some(OK), 1));
    let into = [(IOVA + DATA + 2 * PAGE, two, true), (IOVA + DATA + PAGE, one, true), ANSWER];
    assert_eq!(driver.run((&mut disk, &memory), IN, 5, &into)?, (Some(OK), 3 * one + 1));
    let mut back = vec![0; 3 * SECTOR];
    guest.read_slice(&mut back[..2 * SECTOR], GuestAddress(DATA + 2 * PAGE))?;
    guest.read_slice(&mut back[2 * SECTOR..], GuestAddress(DATA + PAGE))?;
    assert_eq!(back, pattern);
    println!("wrote, flushed ({}) and read 3 sectors through the IOMMU", disk.flushes);
    let id = [(IOVA + DATA, 20, true), ANSWER];
    assert_eq!(driver.run((&mut disk, &memory), GET_ID, 0, &id)?, (Some(OK), 13));
    let mut name = [0; 11];
    guest.read_slice(&mut name, GuestAddress(DATA))?;
    println!("the disk calls itself {}", String::from_utf8_lossy(&name));

    // Invalid requests: each gets a status, and nothing is written beyond its buffers.
    let mistakes: [Mistake<'_>; 8] = [
        ("an unknown request", 77, 0, &[ANSWER], Some(UNSUPPORTED)),
        ("a sector past the end", OUT, 64, &[(IOVA + DATA, one, false), ANSWER], Some(IO_ERROR)),
        ("the last sector of all", IN, u64::MAX, &[(IOVA + DATA, one, true), ANSWER], Some(IO_ERROR)),
        ("half a sector", IN, 0, &[(IOVA + DATA, 100, true), ANSWER], Some(IO_ERROR)),
        ("a buffer that is not mapped", OUT, 0, &[(0xdead_0000, one, false), ANSWER], Some(IO_ERROR)),
        ("a target that is not mapped", IN, 0, &[(0xdead_0000, one, true), ANSWER], None),
        ("a target that is read-only", IN, 0, &[(IOVA + DATA + 3 * PAGE, one, true), ANSWER], None),
        ("no status byte", OUT, 0, &[(IOVA + DATA, one, false)], None),
    ];
    for (what, kind, sector, buffers, status) in mistakes {
        let (answer, _) = driver.run((&mut disk, &memory), kind, sector, buffers)?;
        assert_eq!(answer, status, "{what}");
        println!("{what}: status {answer:?}");
    }

    // A request in flight holds its memory: the unmap is done at its end.
    let held = HeldMemory::new(&memory);
    let slices = held.get_slices(GuestAddress(IOVA + DATA), 3 * SECTOR, Permissions::Write)?.count();
    let unmapping = memory.iommu().unmap(GuestAddress(IOVA + DATA), 3 * PAGE)?;
    println!("the guest unmaps under a request of {slices} slices: done {}", unmapping.is_done());
    assert!(!unmapping.is_done());
    drop(held);
    assert!(unmapping.is_done());
    let gone = [(IOVA + DATA, one, false), ANSWER];
    assert_eq!(driver.run((&mut disk, &memory), OUT, 0, &gone)?.0, Some(IO_ERROR));
    println!("the request ends: done {}, and the next one finds nothing there", unmapping.is_done());
    Ok(())
}
