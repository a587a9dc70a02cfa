//! Rare results of the kernel, fed to a queue by the test.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use prereg::{Access, AddressKind, AddressSpace, Holder, Iova};
use prereg_linux::{GuestMemory, IoUring};
use prereg_vfio_user::server::{
    DmaSpace, IovaLimits, MemoryPolicy, MemoryStore, OnDrained, Remote, RemoteError,
};

use super::*;
use crate::disk::{Disk, DiskOptions, FileDisk};

const BYTES: u64 = 1 << 20;

struct Fixture {
    disk: FileDisk,
    queue: FileQueue,
    ram: GuestMemory,
    space: DmaSpace,
    path: PathBuf,
    /// Ignores `on_drained`.
    _bell: UnixStream,
    _folder: tempfile::TempDir,
}

struct NoopDrain;

impl OnDrained for NoopDrain {
    fn on_drained(&self) {}
}

impl Remote for NoopDrain {
    fn read(&self, _: Iova, _: &mut [u8]) -> Result<(), RemoteError> {
        Err(RemoteError::Disconnected)
    }
    fn write(&self, _: Iova, _: &[u8]) -> Result<(), RemoteError> {
        Err(RemoteError::Disconnected)
    }
}

impl Fixture {
    /// A disk full of `0xdd` and a guest full of `0x99`; `None`, with the reason printed, where memory cannot be pinned.
    fn new() -> Option<Self> {
        let pins = match IoUring::builder().addresses(AddressKind::SlotOffset).build() {
            Ok(pins) => Arc::new(pins),
            Err(error) => {
                eprintln!("skipped: {error}");
                return None;
            }
        };
        let store = Arc::new(MemoryStore::new(
            AddressSpace::builder(Arc::clone(&pins)).build().unwrap(),
            MemoryPolicy::EAGER,
        ));
        let limits = IovaLimits::default();
        let no_callbacks = (Arc::new(NoopDrain), Arc::new(NoopDrain));
        let space = DmaSpace::new(&store, no_callbacks.0, no_callbacks.1, limits, Holder::default()).unwrap();
        let ram = GuestMemory::memfd("guest", BYTES).unwrap();
        ram.write(0, &vec![0x99; BYTES as usize]).unwrap();
        let descriptor = ram.descriptor().unwrap().try_clone_to_owned().unwrap();
        space.map(Iova::new(0), BYTES, Access::ReadWrite, Some((descriptor, 0))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk.img");
        std::fs::write(&path, vec![0xdd; 4 * BYTES as usize]).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
        let disk =
            FileDisk::open(&path, DiskOptions { buffers: Some(pins), ..DiskOptions::default() }).unwrap();
        // The kick eventfd.
        let (end, bell) = UnixStream::pair().unwrap();
        let queue = FileQueue::new(&disk.shared, Arc::new(OwnedFd::from(end))).unwrap();
        Some(Self { disk, queue, ram, space, path, _bell: bell, _folder: folder })
    }

    fn segment(&self, iova: u64, bytes: u64) -> Segment {
        let hold = self.space.dma().hold(Iova::new(iova), bytes, Access::ReadWrite).unwrap();
        Segment { hold, offset: 0, bytes }
    }

    fn submit(&mut self, operation: Operation, data: Vec<Segment>) {
        assert!(self.queue.submit(Request { tag: 1, operation, data }).is_ok());
    }

    /// Completes the next part with `result`, without the ring.
    fn answer(&mut self, result: Result<u32, Errno>, io_path: Option<IoPath>) -> (Option<u32>, IoMemory) {
        let (token, memory) = self.queue.pending.pop_front().unwrap();
        self.queue.completed(Completed { token, result, io_path, memory });
        let next = self.queue.pending.pop_front();
        let tries = next.as_ref().map(|(part, _)| u32::from(part.tries));
        if let Some((part, memory)) = next {
            let copy = match &memory {
                IoMemory::Guest(pieces) => IoMemory::Guest(pieces.clone()),
                _ => IoMemory::None,
            };
            self.queue.pending.push_front((part, memory));
            return (tries, copy);
        }
        (None, IoMemory::None)
    }

    fn finish(&mut self) -> Result<(), DiskFault> {
        let mut done = Vec::new();
        while done.is_empty() {
            self.queue.poll(Wait::Kick, &mut done).unwrap();
        }
        assert_eq!((done.len(), self.queue.in_flight()), (1, 0));
        done.remove(0).result
    }

    fn on_disk(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        File::open(&self.path).unwrap().read_exact_at(&mut into, offset).unwrap();
        into
    }

    fn in_guest(&self, offset: u64, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        self.ram.read(offset, &mut into).unwrap();
        into
    }
}

#[test]
fn a_short_write_goes_on_where_it_stopped_in_file_and_memory() {
    let Some(mut fixture) = Fixture::new() else { return };
    fixture.ram.write(8192, &[0x11; 4096]).unwrap();
    fixture.ram.write(20480, &[0x22; 4096]).unwrap();
    let data = vec![fixture.segment(8192, 4096), fixture.segment(20480, 4096)];
    fixture.submit(Operation::Write { offset: 65536, fua: false }, data);
    // A segment and a few bytes; those are transferred again if they are no whole block.
    let said = 4096 + 512 + 100;
    fixture.answer(Ok(said), Some(IoPath::Fixed));
    assert_eq!(fixture.finish(), Ok(()));
    let kept = if fixture.disk.direct().is_ok() { 4096 + 512 } else { said as usize };
    let expected = [vec![0xdd; kept], vec![0x22; 8192 - kept]].concat();
    assert!(fixture.on_disk(65536, 8192) == expected);
    assert_eq!(fixture.on_disk(65536 + 8192, 512), [0xdd; 512]);
    assert_eq!(fixture.disk.counters().continued, 1);
}

#[test]
fn a_short_read_goes_on_where_it_stopped_also_through_a_buffer() {
    let Some(mut fixture) = Fixture::new() else { return };
    let data = vec![fixture.segment(4096, 8192)];
    fixture.submit(Operation::Read { offset: 0 }, data);
    fixture.answer(Ok(4096), Some(IoPath::Fixed));
    assert_eq!(fixture.finish(), Ok(()));
    assert!(fixture.in_guest(4096, 8192) == [[0x99; 4096], [0xdd; 4096]].concat());
    if fixture.disk.direct().is_err() {
        return eprintln!("skipped in part: nothing is too odd for the page cache");
    }
    let data = vec![fixture.segment(32771, 8192)];
    fixture.submit(Operation::Read { offset: 0 }, data);
    fixture.answer(Ok(4096), Some(IoPath::Buffer));
    assert_eq!(fixture.finish(), Ok(()));
    assert!(fixture.in_guest(32771, 8192) == [[0; 4096], [0xdd; 4096]].concat());
    assert_eq!(fixture.disk.counters().continued, 2);
}

#[test]
fn a_transfer_of_nothing_is_the_end_of_the_file() {
    let Some(mut fixture) = Fixture::new() else { return };
    for operation in [Operation::Read { offset: 0 }, Operation::Write { offset: 0, fua: true }] {
        let data = vec![fixture.segment(0, 8192)];
        fixture.submit(operation, data);
        fixture.answer(Ok(0), Some(IoPath::Plain));
        assert_eq!(fixture.finish(), Err(DiskFault::Io(Errno::EIO)));
    }
}

#[test]
fn zeros_are_written_where_nothing_else_makes_them() {
    let Some(mut fixture) = Fixture::new() else { return };
    let bytes = 2 * BYTES + 4096;
    let zeroes = Operation::WriteZeroes { offset: 4096, bytes, deallocate: true, fua: true };
    fixture.submit(zeroes, Vec::new());
    // Neither holes nor zero ranges are supported here.
    fixture.answer(Err(Errno::EOPNOTSUPP), None);
    fixture.answer(Err(Errno::EOPNOTSUPP), None);
    fixture.answer(Ok(8192), Some(IoPath::Buffer));
    assert_eq!(fixture.finish(), Ok(()));
    assert!(fixture.on_disk(0, 4096 + 8192).iter().all(|byte| *byte == 0xdd));
    assert!(fixture.on_disk(4096 + 8192, (bytes - 8192) as usize).iter().all(|byte| *byte == 0));
    assert!(fixture.on_disk(4096 + bytes, 4096).iter().all(|byte| *byte == 0xdd));
    assert_eq!((fixture.disk.counters().syncs, fixture.disk.counters().zeroes), (1, 1));
    let shared = &fixture.disk.shared;
    assert_eq!((shared.zero_mode(true), shared.zero_mode(false)), (None, None), "not asked again");
}

#[test]
fn not_now_is_asked_again_but_not_for_ever() {
    let Some(mut fixture) = Fixture::new() else { return };
    let data = vec![fixture.segment(0, 512)];
    fixture.submit(Operation::Write { offset: 0, fua: false }, data);
    for (tries, errno) in (1..).zip([Errno::EAGAIN, Errno::EINTR].repeat(50)) {
        assert_eq!(fixture.answer(Err(errno), Some(IoPath::Fixed)).0, Some(tries));
    }
    fixture.answer(Err(Errno::EAGAIN), Some(IoPath::Fixed));
    assert_eq!(fixture.finish(), Err(DiskFault::Io(Errno::EAGAIN)));
    assert_eq!(fixture.disk.counters().retried, 100);
}

#[test]
fn a_refused_fixed_buffer_is_tried_the_plain_way() {
    let Some(mut fixture) = Fixture::new() else { return };
    let data = vec![fixture.segment(0, 512)];
    fixture.submit(Operation::Write { offset: 512, fua: false }, data);
    let (_, memory) = fixture.answer(Err(Errno::EFAULT), Some(IoPath::Fixed));
    assert!(matches!(memory, IoMemory::Guest(pieces) if pieces.slot().is_none()));
    assert_eq!(fixture.finish(), Ok(()));
    assert_eq!(fixture.on_disk(512, 512), [0x99; 512]);
    assert_eq!((fixture.disk.counters().plain, fixture.disk.counters().fixed), (1, 0));
    let data = vec![fixture.segment(0, 512)];
    fixture.submit(Operation::Write { offset: 512, fua: false }, data);
    fixture.answer(Err(Errno::EFAULT), Some(IoPath::Plain));
    assert_eq!(
        fixture.finish(),
        Err(DiskFault::Io(Errno::EFAULT)),
        "the memory is there, so it was not that"
    );
}

#[test]
fn errors_of_the_kernel_become_their_faults() {
    let Some(mut fixture) = Fixture::new() else { return };
    for (errno, fault) in [
        (libc::ENOSPC, DiskFault::NoSpace),
        (libc::EDQUOT, DiskFault::NoSpace),
        (libc::EFBIG, DiskFault::Io(Errno::from_raw(libc::EFBIG))),
        (libc::EROFS, DiskFault::ReadOnly),
        (libc::EIO, DiskFault::Io(Errno::EIO)),
    ] {
        let data = vec![fixture.segment(0, 512)];
        fixture.submit(Operation::Write { offset: 0, fua: false }, data);
        fixture.answer(Err(Errno::from_raw(errno)), Some(IoPath::Fixed));
        assert_eq!(fixture.finish(), Err(fault));
    }
    fixture.submit(Operation::Discard { ranges: vec![(0, 512)] }, Vec::new());
    if fixture.disk.discard_zeroes() {
        fixture.answer(Err(Errno::EOPNOTSUPP), None);
    }
    assert_eq!(fixture.finish(), Ok(()), "a discard is a hint");
    assert_eq!(fixture.disk.shared.lost(), None);
}

#[test]
fn after_a_failure_to_make_data_durable_nothing_claims_to_be() {
    let Some(mut fixture) = Fixture::new() else { return };
    let zeroes = |fua| Operation::WriteZeroes { offset: 0, bytes: 512, deallocate: false, fua };
    fixture.submit(Operation::Flush, Vec::new());
    fixture.answer(Err(Errno::EIO), None);
    assert_eq!(fixture.finish(), Err(DiskFault::Io(Errno::EIO)));
    fixture.disk.shared.set_lost(Errno::ENOSPC);
    let lost = Err(DiskFault::Lost(Errno::EIO));
    let write = Operation::Write { offset: 0, fua: true };
    for operation in [Operation::Flush, Operation::Flush, write, zeroes(true)] {
        fixture.submit(operation, Vec::new());
        assert_eq!(fixture.finish(), lost, "the first failure, again and again");
    }
    fixture.submit(zeroes(false), Vec::new());
    assert_eq!(fixture.finish(), Ok(()), "what promises nothing goes on");
}
