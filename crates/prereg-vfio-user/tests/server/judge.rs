//! Plays scripts of a client that sends anything to a server, and checks invariants.
//!
//! One file, because the fuzz target includes it by its path.
//!
//! No socket and no second thread: the script is the transport. A step is a few bytes: a well-formed message with numbers of a
//! small world (so that maps meet, overlap and cover each other), arbitrary bytes, a reply to a request of the server, a
//! truncated file, or a pause. The client disconnects at the end of the script.
//!
//! Invariants: no panic; every reply belongs to a request, and no request has two; at the end the device was notified once,
//! nothing is registered, and no descriptor is open that was not before.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

use prereg::{Access, AddressSpace, Errno, Iova};
use prereg_linux::{GuestMemory, IoUring, Mlock};
use prereg_vfio_user::client::Eventfd;
use prereg_vfio_user::server::{
    Device, DeviceContext, DeviceFactory, DisconnectReason, DmaGuard, Interest, Ioeventfd, IrqKind, Layout,
    LayoutRegion, MemoryPolicy, MemoryStore, Ready, Received, ServerSettings, Sparse, Transport, serve,
};
use prereg_vfio_user::wire::{
    Command, DeviceInfo, DmaAccess, DmaDone, Header, IoRegionsInfo, IrqAction, IrqInfo, IrqSelection,
    MapMemory, MessageType, RegionAccess, RegionInfo, RegionWrite, RegionWrites, SetIrqs, SparseArea,
    UnmapMemory, Version,
};

const PAGE: u64 = 4096;
const FILE: u64 = 16 * PAGE;
const REGION: u64 = 0x100;

/// The outcome of a script.
#[derive(Default, Debug)]
pub(crate) struct Verdict {
    pub(crate) replies: usize,
    pub(crate) failures: usize,
    pub(crate) transfers: usize,
}

/// The bytes of a script; zeros at its end.
struct Script {
    bytes: Vec<u8>,
    at: usize,
}

impl Script {
    fn byte(&mut self) -> u8 {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        byte
    }

    fn is_over(&self) -> bool {
        self.at >= self.bytes.len()
    }

    fn number(&mut self) -> u64 {
        match self.byte() {
            byte @ 0..=0xef => u64::from(byte),
            0xf0..=0xf7 => u64::from(self.byte()) << 12,
            0xf8..=0xfb => u64::from(u32::MAX) - u64::from(self.byte()),
            _ => u64::MAX - u64::from(self.byte()),
        }
    }

    /// An address in a world of 32 pages, and at its ends.
    fn iova(&mut self) -> u64 {
        match self.byte() {
            byte @ 0..=0xdf => u64::from(byte % 32) * PAGE,
            0xe0..=0xef => u64::MAX - 4 * PAGE + 1 + u64::from(self.byte() % 4) * PAGE,
            _ => self.number(),
        }
    }

    fn length(&mut self) -> u64 {
        match self.byte() {
            byte @ 0..=0xdf => u64::from(byte % 16 + 1) * PAGE,
            0xe0..=0xef => u64::MAX - PAGE + 1,
            _ => self.number(),
        }
    }
}

/// The client's resources.
struct World {
    files: [GuestMemory; 2],
    changing: File,
    eventfd: Eventfd,
    folder: File,
    null: File,
}

impl World {
    fn new() -> Self {
        let memory = |name| GuestMemory::memfd(name, FILE).unwrap();
        Self {
            files: [memory("one"), memory("two")],
            changing: changing(),
            eventfd: Eventfd::new().unwrap(),
            folder: File::open("/").unwrap(),
            null: File::open("/dev/null").unwrap(),
        }
    }

    fn descriptor(&self, which: u8) -> OwnedFd {
        let descriptor = match which % 8 {
            0..=2 => self.files[0].descriptor().unwrap(),
            3 => self.files[1].descriptor().unwrap(),
            4 => self.changing.as_fd(),
            5 => self.eventfd.as_fd(),
            6 => self.folder.as_fd(),
            _ => self.null.as_fd(),
        };
        descriptor.try_clone_to_owned().unwrap()
    }
}

/// Memory that can be truncated, unlike a sealed memfd.
fn changing() -> File {
    static NAMES: AtomicU32 = AtomicU32::new(0);
    let name = format!("prereg-judge-{}-{}", std::process::id(), NAMES.fetch_add(1, Ordering::Relaxed));
    let folder = Path::new("/dev/shm");
    let path = if folder.is_dir() { folder.join(name) } else { std::env::temp_dir().join(name) };
    let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    file.set_len(FILE).unwrap();
    file
}

struct State {
    script: Script,
    world: World,
    next_id: u16,
    /// Bytes that the client sends, up to a cut, with the descriptors at their end.
    outgoing: VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    /// Bytes that it received and has not read.
    incoming: Vec<u8>,
    /// Replies that it waits for, by id and command.
    waiting: BTreeMap<(u16, Command), usize>,
    /// It sent bytes that are no messages.
    raw: bool,
    /// Requests of the server.
    asked: VecDeque<(Header, Vec<u8>)>,
    verdict: Verdict,
    idle: u32,
}

/// The script, as a transport.
struct Play(Arc<Mutex<State>>);

impl State {
    fn send(&mut self, command: Command, descriptors: Vec<OwnedFd>, body: impl FnOnce(&mut Vec<u8>)) {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let mut header = Header::command(id, command);
        if self.script.byte() >= 0xf8 {
            header = header.without_reply();
        } else {
            *self.waiting.entry((id, command)).or_default() += 1;
        }
        let mut bytes = Vec::new();
        header.frame(&mut bytes, body);
        self.outgoing.push_back((bytes, descriptors));
    }

    fn descriptors(&mut self) -> Vec<OwnedFd> {
        let count = match self.script.byte() {
            0..=0x7f => 1,
            0x80..=0xdf => 0,
            0xe0..=0xf7 => 2,
            _ => 20,
        };
        let which = self.script.byte();
        (0..count).map(|_| self.world.descriptor(which)).collect()
    }

    /// One step of the script.
    fn step(&mut self) {
        match self.script.byte() % 24 {
            0 => {
                let json: &[u8] = match self.script.byte() % 4 {
                    0 => b"{\"capabilities\":{\"max_dma_maps\":4}}\0",
                    1 => b"{\"capabilities\":{\"pgsizes\":8192}}\0",
                    _ => b"{\"capabilities\":{\"max_msg_fds\":8,\"write_multiple\":true}}\0",
                };
                self.send(Command::VERSION, Vec::new(), |out| {
                    Version { major: 0, minor: 1, data: json }.write(out);
                });
            }
            1..=5 => {
                let access = Access::from_bits(u64::from(self.script.byte() % 3 + 1)).unwrap();
                let (iova, bytes) = (Iova::new(self.script.iova()), self.script.length());
                let descriptors = self.descriptors();
                let offset =
                    if descriptors.is_empty() { 0 } else { u64::from(self.script.byte() % 20) * PAGE };
                let map = MapMemory { access, offset, iova, bytes };
                self.send(Command::DMA_MAP, descriptors, |out| map.write(out));
            }
            6..=7 => {
                let unmap =
                    UnmapMemory::Range { iova: Iova::new(self.script.iova()), bytes: self.script.length() };
                self.send(Command::DMA_UNMAP, Vec::new(), |out| unmap.write(out));
            }
            8 => self.send(Command::DMA_UNMAP, Vec::new(), |out| UnmapMemory::All.write(out)),
            9..=13 => self.write_region(),
            14 => {
                let (region, offset) = (self.script.byte() % 12, self.script.number());
                let count = self.script.byte() as u32;
                let access = RegionAccess { offset, region: region.into(), count, data: &[] };
                self.send(Command::REGION_READ, Vec::new(), |out| access.write(out));
            }
            15 => {
                let writes = (0..self.script.byte() % 5)
                    .filter_map(|_| {
                        RegionWrite::new(self.script.byte().into(), self.script.number(), &[1, 2, 3])
                    })
                    .collect();
                let writes = RegionWrites::new(writes);
                self.send(Command::REGION_WRITE_MULTI, Vec::new(), |out| writes.write(out));
            }
            16..=17 => self.set_irqs(),
            18 => {
                let (which, index, room) =
                    (self.script.byte(), self.script.byte() as u32 % 12, self.script.byte());
                match which % 5 {
                    0 => self.send(Command::DEVICE_GET_INFO, Vec::new(), DeviceInfo::write_command),
                    1 => self.send(Command::DEVICE_GET_IRQ_INFO, Vec::new(), |out| {
                        IrqInfo::write_command(index, out);
                    }),
                    2 => self.send(Command::DEVICE_GET_REGION_IO_FDS, Vec::new(), |out| {
                        IoRegionsInfo::write_command(index, u32::from(room) * 2, out);
                    }),
                    3 => self.send(Command::DEVICE_RESET, Vec::new(), |_| ()),
                    _ => self.send(Command::DEVICE_GET_REGION_INFO, Vec::new(), |out| {
                        RegionInfo::write_command(index, u32::from(room), out);
                    }),
                }
            }
            19 => {
                // Arbitrary bytes, perhaps with descriptors in the middle of a message.
                let bytes = (0..self.script.byte() % 40).map(|_| self.script.byte()).collect();
                let descriptors = self.descriptors();
                self.raw = true;
                self.outgoing.push_back((bytes, descriptors));
            }
            20..=21 => self.answer(),
            22 => {
                let pages = u64::from(self.script.byte() % 17);
                self.world.changing.set_len(pages * PAGE).unwrap();
            }
            _ => {
                self.world.eventfd.add();
            }
        }
    }

    fn write_region(&mut self) {
        let region = if self.script.byte() < 0xe0 { 1 } else { self.script.byte() % 12 };
        let offset = u64::from(self.script.byte());
        let data = [self.script.byte(), self.script.byte(), self.script.byte(), self.script.byte()];
        let count = if self.script.byte() < 0xf0 { 4 } else { 5 };
        let access = RegionAccess { offset, region: region.into(), count, data: &data };
        self.send(Command::REGION_WRITE, Vec::new(), |out| access.write(out));
    }

    fn set_irqs(&mut self) {
        let (index, start) = (u32::from(self.script.byte() % 6), u32::from(self.script.byte() % 5));
        let count = u32::from(self.script.byte() % 4);
        let action =
            [IrqAction::Trigger, IrqAction::Mask, IrqAction::Unmask][self.script.byte() as usize % 3];
        let each = [1, 0, 1, 1];
        let (selection, descriptors) = match self.script.byte() % 4 {
            0 => (IrqSelection::All, 0),
            1 => (IrqSelection::Each(&each[..count as usize]), 0),
            2 => (IrqSelection::Eventfds, 0),
            _ => (IrqSelection::Eventfds, count),
        };
        let which = if self.script.byte() < 0xe0 { 5 } else { self.script.byte() };
        let descriptors = (0..descriptors).map(|_| self.world.descriptor(which)).collect();
        let set = SetIrqs { index, start, count, action, selection };
        self.send(Command::DEVICE_SET_IRQS, descriptors, |out| set.write(out));
    }

    /// Replies to a request of the server, with success or an error.
    fn answer(&mut self) {
        let how = self.script.byte();
        let Some((header, body)) = self.asked.pop_front() else { return };
        let Ok(DmaAccess { iova, bytes, .. }) = DmaAccess::read(&body) else {
            panic!("the server's own body")
        };
        let mut out = Vec::new();
        let reply = Header::reply(header.id, header.command);
        let moved = if how & 8 == 0 { bytes } else { bytes.min(u64::from(how)) };
        match how {
            0xf0.. => Header::failure(header.id, header.command, Errno::ENODEV).frame(&mut out, |_| ()),
            0xe0..=0xef => reply.frame(&mut out, |out| out.extend_from_slice(&[how; 20])),
            _ if header.command == Command::DMA_READ => reply.frame(&mut out, |out| {
                DmaAccess { iova, bytes: moved, data: &vec![how; moved as usize] }.write(out);
            }),
            _ => reply.frame(&mut out, |out| DmaDone { iova, bytes: moved }.write(out)),
        }
        self.outgoing.push_back((out, Vec::new()));
    }

    /// Reads the server's bytes like a client.
    fn read(&mut self) {
        while let Some(head) = self.incoming.first_chunk() {
            let header = Header::read(head);
            let size = header.size as usize;
            assert!(size >= Header::BYTES, "a frame without an end");
            let Some(frame) = self.incoming.get(..size) else { return };
            let body = frame[Header::BYTES..].to_vec();
            if header.message_type() == MessageType::Reply {
                let waiting =
                    self.waiting.get_mut(&(header.id, header.command)).filter(|waiting| **waiting > 0);
                assert!(self.raw || waiting.is_some(), "nobody asked for {header:?}");
                if let Some(waiting) = waiting {
                    *waiting -= 1;
                }
                self.verdict.replies += 1;
                self.verdict.failures += usize::from(header.is_error());
                assert!(!header.is_error() || body.is_empty());
            } else {
                assert!([Command::DMA_READ, Command::DMA_WRITE].contains(&header.command));
                self.verdict.transfers += 1;
                self.asked.push_back((header, body));
            }
            self.incoming.drain(..size);
        }
    }
}

impl Transport for Play {
    fn receive(&self, into: &mut [u8], descriptors: &mut Vec<OwnedFd>) -> Result<Received, Errno> {
        let state = &mut *self.0.lock().unwrap();
        while state.outgoing.is_empty() {
            if state.script.is_over() {
                return Ok(Received { bytes: 0, truncated: false });
            }
            state.step();
        }
        let Some((bytes, theirs)) = state.outgoing.front_mut() else { return Err(Errno::EAGAIN) };
        if bytes.is_empty() {
            state.outgoing.pop_front();
            return Err(Errno::EAGAIN);
        }
        let most = match state.script.byte() {
            0..=0xdf => into.len(),
            byte => usize::from(byte & 0x1f) + 1,
        };
        let count = bytes.len().min(most).min(into.len());
        into[..count].copy_from_slice(&bytes[..count]);
        bytes.drain(..count);
        let truncated = !theirs.is_empty() && state.script.byte() >= 0xfc;
        if truncated {
            theirs.pop();
        }
        descriptors.append(theirs);
        Ok(Received { bytes: count, truncated })
    }

    fn send(&self, bytes: &[u8], _: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        let state = &mut *self.0.lock().unwrap();
        let count = match state.script.byte() {
            0..=0xef => bytes.len(),
            0xf0..=0xf7 => return Err(Errno::EAGAIN),
            byte => bytes.len().min(usize::from(byte & 7) + 1),
        };
        state.incoming.extend_from_slice(&bytes[..count]);
        state.read();
        Ok(count)
    }

    fn wait(&self, interest: Interest<'_>) -> Result<Ready, Errno> {
        let state = &mut *self.0.lock().unwrap();
        state.idle = if interest.readable { 0 } else { state.idle + 1 };
        // A client that is not read from can only disconnect.
        let over = state.idle > 1000;
        Ok(Ready { readable: interest.readable, over, eventfd: interest.eventfd.is_some() })
    }

    fn wake(&self) {}

    fn shut(&self) {}
}

/// A device whose accesses follow the client's writes.
struct Doer {
    bus: DeviceContext,
    held: Mutex<Vec<DmaGuard>>,
    gone: Arc<AtomicU32>,
    fd: Arc<OwnedFd>,
}

impl Device for Doer {
    fn layout(&self) -> Layout {
        let areas = vec![SparseArea { offset: 0, bytes: PAGE }];
        let ioeventfd = Ioeventfd { fd: self.fd.clone(), offset: 8, bytes: 4, datamatch: Some(1) };
        let mapped =
            LayoutRegion::read_write(PAGE).with_mmap(Sparse { fd: self.fd.clone(), offset: 0, areas });
        Layout::pci()
            .with_region(0, mapped.with_ioeventfd(ioeventfd))
            .with_region(1, LayoutRegion::read_write(REGION))
            .with_region(6, LayoutRegion::read_only(REGION))
            .with_irqs(IrqKind::Intx, 1)
            .with_irqs(IrqKind::Msix, 3)
    }

    fn read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        assert!(offset + into.len() as u64 <= if region == 0 { PAGE } else { REGION } && !into.is_empty());
        into.fill(0x5a);
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        assert!(region < 2 && offset + from.len() as u64 <= if region == 0 { PAGE } else { REGION });
        let [page, inside, pages, what] = *from else { return Err(Errno::EINVAL) };
        let iova = Iova::new(u64::from(page % 34) * PAGE + u64::from(inside));
        let bytes = usize::from(pages % 5) * PAGE as usize + usize::from(inside);
        let access = Access::from_bits(u64::from(what % 3 + 1)).ok_or(Errno::EINVAL)?;
        let errno = |error: prereg_vfio_user::server::DmaError| error.errno();
        let mut data = vec![what; bytes];
        match offset % 8 {
            0 => self.bus.dma.read(iova, &mut data).map_err(errno)?,
            1 => self.bus.dma.write(iova, &data).map_err(errno)?,
            2 => {
                let hold = self.bus.dma.hold(iova, bytes as u64, access).map_err(errno)?;
                self.held.lock().unwrap().push(hold);
            }
            3 => {
                self.held.lock().unwrap().pop();
            }
            4 => {
                let held = self.held.lock().unwrap();
                let hold = held.last().ok_or(Errno::ENOENT)?;
                let _ = hold.read(u64::from(inside), &mut data);
                let _ = hold.write(u64::from(inside), &data);
                let _ =
                    (hold.load_u32(inside.into()), hold.store_u64(inside.into(), 3), hold.pieces().count());
            }
            5 => self.bus.interrupts.set_level(what % 2 == 0),
            6 => {
                self.bus.interrupts.trigger(IrqKind::Msix, u32::from(what % 4));
                self.bus.interrupts.trigger(IrqKind::Intx, 0);
            }
            _ => {
                let _ = self.bus.dma.store_u32(iova, 7);
                self.bus.dma.load_u32(iova).map_err(errno)?;
            }
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), Errno> {
        self.held.lock().unwrap().clear();
        Ok(())
    }

    fn client_gone(&self) {
        self.gone.fetch_add(1, Ordering::Relaxed);
        self.held.lock().unwrap().clear();
    }
}

struct Doers {
    attached: AtomicU32,
    gone: Arc<AtomicU32>,
    fd: Arc<OwnedFd>,
}

impl DeviceFactory for Doers {
    fn name(&self) -> &str {
        "doer"
    }

    fn attach(&self, bus: DeviceContext) -> Result<Arc<dyn Device>, Errno> {
        self.attached.fetch_add(1, Ordering::Relaxed);
        Ok(Arc::new(Doer { bus, held: Mutex::default(), gone: self.gone.clone(), fd: self.fd.clone() }))
    }
}

thread_local! {
    /// One for all scripts of a thread: each must leave it as it was.
    static STORE: Arc<MemoryStore> = {
        let space = match IoUring::new() {
            Ok(ring) => AddressSpace::builder(ring).build().unwrap(),
            Err(_) => AddressSpace::builder(Mlock::new().unwrap()).build().unwrap(),
        };
        Arc::new(MemoryStore::new(space, MemoryPolicy::EAGER))
    };
}

/// Plays a script and checks the invariants.
///
/// # Panics
/// If one does not hold.
pub(crate) fn judge(script: &[u8]) -> Verdict {
    let store = STORE.with(Arc::clone);
    let world = World::new();
    let fd = Arc::new(world.files[0].descriptor().unwrap().try_clone_to_owned().unwrap());
    let mut state = State {
        script: Script { bytes: script.to_vec(), at: 0 },
        world,
        next_id: 0,
        outgoing: VecDeque::new(),
        incoming: Vec::new(),
        waiting: BTreeMap::new(),
        raw: false,
        asked: VecDeque::new(),
        verdict: Verdict::default(),
        idle: 0,
    };
    // Nearly every client sends its version.
    if state.script.byte() < 0xf0 {
        let data = b"{\"capabilities\":{\"max_msg_fds\":8,\"write_multiple\":true}}\0";
        state.send(Command::VERSION, Vec::new(), |out| Version { major: 0, minor: 1, data }.write(out));
    }
    let gone = Arc::new(AtomicU32::new(0));
    let doers = Arc::new(Doers { attached: AtomicU32::new(0), gone: gone.clone(), fd });
    let model: Arc<dyn DeviceFactory> = doers.clone();
    let mut settings = ServerSettings::default();
    settings.stall_timeout = None;
    settings.session.held_bytes = 64 << 10;
    settings.session.capabilities.max_data_xfer_size = 4096;
    settings.session.transfer_window = 8192;
    let state = Arc::new(Mutex::new(state));
    let ending = serve(Play(state.clone()), &model, &store, &settings);
    assert_ne!(ending, DisconnectReason::Panicked);

    let attached = doers.attached.load(Ordering::Relaxed);
    assert!(attached <= 1, "one device for a client");
    assert_eq!(gone.load(Ordering::Relaxed), attached, "a device is told once that its client is gone");
    let left = store.snapshot();
    assert!(left.files.is_empty() && left.space.regions.is_empty(), "{left:?}");
    let state = Arc::into_inner(state).expect("nobody else has the transport any more").into_inner().unwrap();
    state.verdict
}
