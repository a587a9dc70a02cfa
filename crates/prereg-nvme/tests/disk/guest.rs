//! A guest's memory, mapped for a device as by a client of the server, and requests on it.

use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use prereg::{Access, AddressKind, AddressSpace, Holder, Iova};
use prereg_linux::{GuestMemory, IoUring};
use prereg_nvme::disk::{Disk, DiskFault, DiskQueue, Done, Operation, Request, Segment, Wait};
use prereg_vfio_user::server::{
    Dma, DmaGuard, DmaSpace, IovaLimits, MemoryPolicy, MemoryStore, OnDrained, Remote, RemoteError,
};

/// The address of memory that only the client can reach.
pub(crate) const REMOTE: u64 = 1 << 40;
/// Bytes of each kind of memory.
pub(crate) const BYTES: u64 = 2 << 20;

pub(crate) struct Guest {
    pub(crate) pins: Arc<IoUring>,
    /// Mapped here too, so that the test can access it without the server.
    _ram: GuestMemory,
    pub(crate) client: Arc<Client>,
    space: DmaSpace,
}

/// The client's own memory, which it copies on request, with a delay if set.
pub(crate) struct Client {
    memory: Mutex<Vec<u8>>,
    dawdling: Mutex<bool>,
    goes_on: Condvar,
}

struct NoopDrain;

impl OnDrained for NoopDrain {
    fn on_drained(&self) {}
}

impl Client {
    pub(crate) fn delay(&self, yes: bool) {
        *self.dawdling.lock().unwrap_or_else(PoisonError::into_inner) = yes;
        self.goes_on.notify_all();
    }

    fn wait(&self) {
        let dawdling = self.dawdling.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.goes_on.wait_while(dawdling, |dawdling| *dawdling).unwrap_or_else(PoisonError::into_inner));
    }
}

impl Remote for Client {
    fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), RemoteError> {
        self.wait();
        let at = (iova.raw() - REMOTE) as usize;
        let memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        into.copy_from_slice(&memory[at..at + into.len()]);
        Ok(())
    }

    fn write(&self, iova: Iova, from: &[u8]) -> Result<(), RemoteError> {
        self.wait();
        let at = (iova.raw() - REMOTE) as usize;
        let mut memory = self.memory.lock().unwrap_or_else(PoisonError::into_inner);
        memory[at..at + from.len()].copy_from_slice(from);
        Ok(())
    }
}

impl Guest {
    /// `None`, with the reason printed, where memory cannot be pinned.
    pub(crate) fn new() -> Option<Self> {
        Self::of(BYTES, BYTES)
    }

    /// With this much memory, and slots of `slot` bytes.
    pub(crate) fn of(bytes: u64, slot: u64) -> Option<Self> {
        let pins = match IoUring::builder().addresses(AddressKind::SlotOffset).slot_limit(slot).build() {
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
        let client = Arc::new(Client {
            memory: Mutex::new(vec![0; BYTES as usize]),
            dawdling: Mutex::new(false),
            goes_on: Condvar::new(),
        });
        let remote: Arc<dyn Remote> = Arc::<Client>::clone(&client);
        let limits = IovaLimits::default();
        let space = DmaSpace::new(&store, remote, Arc::new(NoopDrain), limits, Holder::default()).unwrap();
        let ram = GuestMemory::memfd("guest", bytes).unwrap();
        let descriptor = ram.descriptor().unwrap().try_clone_to_owned().unwrap();
        if let Err(error) = space.map(Iova::new(0), bytes, Access::ReadWrite, Some((descriptor, 0))) {
            eprintln!("skipped: {error}");
            return None;
        }
        space.map(Iova::new(REMOTE), BYTES, Access::ReadWrite, None).unwrap();
        Some(Self { pins, client, space, _ram: ram })
    }

    pub(crate) fn dma(&self) -> Dma {
        self.space.dma()
    }

    pub(crate) fn hold(&self, iova: u64, bytes: u64) -> DmaGuard {
        self.dma().hold(Iova::new(iova), bytes, Access::ReadWrite).unwrap()
    }

    pub(crate) fn segment(&self, iova: u64, bytes: u64) -> Segment {
        // Held from the start of its page on, as by a controller that holds whole pages.
        let offset = iova % 4096;
        Segment { hold: self.hold(iova - offset, offset + bytes), offset, bytes }
    }

    pub(crate) fn segments(&self, parts: &[(u64, u64)]) -> Vec<Segment> {
        parts.iter().map(|(iova, bytes)| self.segment(*iova, *bytes)).collect()
    }

    pub(crate) fn put(&self, iova: u64, bytes: &[u8]) {
        self.dma().write(Iova::new(iova), bytes).unwrap();
    }

    pub(crate) fn get(&self, iova: u64, bytes: usize) -> Vec<u8> {
        let mut into = vec![0; bytes];
        self.dma().read(Iova::new(iova), &mut into).unwrap();
        into
    }
}

pub(crate) fn kick() -> Arc<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    assert!(fd >= 0);
    // SAFETY: made above and not used otherwise.
    Arc::new(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn queue(disk: &dyn Disk) -> Box<dyn DiskQueue> {
    disk.queue(kick()).unwrap()
}

pub(crate) fn start(queue: &mut dyn DiskQueue, tag: u64, operation: Operation, data: Vec<Segment>) {
    assert!(queue.submit(Request { tag, operation, data }).is_ok(), "the queue has room");
}

/// The next completions: at least one.
pub(crate) fn answers(queue: &mut dyn DiskQueue) -> Vec<Done> {
    let mut done = Vec::new();
    while done.is_empty() {
        queue.poll(Wait::Kick, &mut done).unwrap();
    }
    done
}

/// Performs one request alone.
pub(crate) fn perform(
    queue: &mut dyn DiskQueue,
    operation: Operation,
    data: Vec<Segment>,
) -> Result<(), DiskFault> {
    assert_eq!(queue.in_flight(), 0);
    start(queue, 1, operation, data);
    let mut done = answers(queue);
    assert_eq!((done.len(), done[0].tag, queue.in_flight()), (1, 1, 0));
    done.remove(0).result
}

pub(crate) fn write(offset: u64) -> Operation {
    Operation::Write { offset, fua: false }
}
