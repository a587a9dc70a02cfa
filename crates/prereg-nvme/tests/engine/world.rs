//! A guest and its controller on one thread: simulated memory, disks and interrupts.
//!
//! More than 500 lines, because the fuzz target includes it by its path.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use prereg::{Access, Iova};
use prereg_nvme::disk::{DiskFault, Done, Operation, Request};
use prereg_nvme::engine::admin_queue::AdminQueue;
use prereg_nvme::engine::async_event::AsyncEvent;
use prereg_nvme::engine::identify::Identity;
use prereg_nvme::engine::log_page::Health;
use prereg_nvme::engine::memory::{GuestGuard, GuestMemory, Unreachable};
use prereg_nvme::engine::namespace::{Namespace, Namespaces};
use prereg_nvme::engine::poll_group::{PollGroup, PollResult};
use prereg_nvme::engine::queue_table::{QueueTable, TrappedDoorbells, head_of, tail_of};
use prereg_nvme::engine::registers::{AdminQueueConfig, Effect, Registers};
use prereg_nvme::engine::shared::{Limits, Shared};
use prereg_nvme::engine::storage::{Broken, Storage};
use prereg_nvme::spec::register::{CC, DOORBELLS, page_shift};
use prereg_nvme::spec::{Completion, Status};

/// Guest memory from address 0 on, with holes.
#[derive(Clone, Debug)]
pub(crate) struct Ram(Rc<RefCell<RamInner>>);

#[derive(Debug)]
struct RamInner {
    bytes: Vec<u8>,
    holes: Vec<Range<u64>>,
    holds: usize,
    settled: bool,
}

impl Ram {
    pub(crate) fn new(bytes: usize) -> Self {
        Self(Rc::new(RefCell::new(RamInner {
            bytes: vec![0; bytes],
            holes: Vec::new(),
            holds: 0,
            settled: true,
        })))
    }

    /// Unmaps `range`.
    pub(crate) fn hole(&self, range: Range<u64>) {
        self.0.borrow_mut().holes.push(range);
    }

    /// Maps everything again.
    pub(crate) fn mend(&self) {
        self.0.borrow_mut().holes.clear();
    }

    /// Sets whether holds may be kept.
    pub(crate) fn settle(&self, settled: bool) {
        self.0.borrow_mut().settled = settled;
    }

    /// Live holds.
    pub(crate) fn holds(&self) -> usize {
        self.0.borrow().holds
    }

    pub(crate) fn put(&self, at: u64, bytes: &[u8]) {
        self.0.borrow_mut().bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    pub(crate) fn put_u64(&self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }

    pub(crate) fn get(&self, at: u64, bytes: u64) -> Vec<u8> {
        self.0.borrow().bytes[at as usize..(at + bytes) as usize].to_vec()
    }

    pub(crate) fn get_u32(&self, at: u64) -> u32 {
        let bytes = self.get(at, 4);
        u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
    }

    fn check(&self, at: u64, bytes: u64) -> Result<Range<usize>, Unreachable> {
        let inner = self.0.borrow();
        let end = at.checked_add(bytes).filter(|end| *end <= inner.bytes.len() as u64).ok_or(Unreachable)?;
        if inner.holes.iter().any(|hole| at < hole.end && hole.start < end) {
            return Err(Unreachable);
        }
        Ok(at as usize..end as usize)
    }
}

impl GuestMemory for Ram {
    type Guard = RamHold;

    fn hold(&self, iova: Iova, bytes: u64, _access: Access) -> Result<RamHold, Unreachable> {
        self.check(iova.raw(), bytes)?;
        self.0.borrow_mut().holds += 1;
        Ok(RamHold { ram: self.clone(), at: iova.raw(), bytes })
    }

    fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), Unreachable> {
        let range = self.check(iova.raw(), into.len() as u64)?;
        into.copy_from_slice(&self.0.borrow().bytes[range]);
        Ok(())
    }

    fn write(&self, iova: Iova, from: &[u8]) -> Result<(), Unreachable> {
        let range = self.check(iova.raw(), from.len() as u64)?;
        self.0.borrow_mut().bytes[range].copy_from_slice(from);
        Ok(())
    }

    fn may_keep_holds(&self) -> bool {
        self.0.borrow().settled
    }
}

#[derive(Debug)]
pub(crate) struct RamHold {
    ram: Ram,
    at: u64,
    bytes: u64,
}

impl RamHold {
    fn at(&self, offset: u64, bytes: usize) -> Iova {
        assert!(offset + bytes as u64 <= self.bytes, "an access outside of its hold");
        Iova::new(self.at + offset)
    }
}

impl GuestGuard for RamHold {
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), Unreachable> {
        self.ram.read(self.at(offset, into.len()), into)
    }

    fn write(&self, offset: u64, from: &[u8]) -> Result<(), Unreachable> {
        self.ram.write(self.at(offset, from.len()), from)
    }

    fn load_u32(&self, offset: u64) -> Result<u32, Unreachable> {
        assert_eq!((self.at + offset) % 4, 0, "misaligned");
        let mut bytes = [0; 4];
        self.read(offset, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn store_u32(&self, offset: u64, value: u32) -> Result<(), Unreachable> {
        assert_eq!((self.at + offset) % 4, 0, "misaligned");
        self.write(offset, &value.to_le_bytes())
    }
}

impl Drop for RamHold {
    fn drop(&mut self) {
        self.ram.0.borrow_mut().holds -= 1;
    }
}

/// Disks that perform requests when they are polled.
#[derive(Clone, Debug)]
pub(crate) struct Disks(Rc<RefCell<DisksInner>>);

#[derive(Debug, Default)]
pub(crate) struct DisksInner {
    pub(crate) images: Vec<Vec<u8>>,
    /// Completed operations, with their namespace.
    pub(crate) done: Vec<(u32, Operation)>,
    /// Requests that may wait.
    pub(crate) room: usize,
    /// Set to perform nothing.
    pub(crate) stuck: bool,
    pub(crate) broken: bool,
    queue: VecDeque<(u32, Request<RamHold>)>,
}

impl Disks {
    pub(crate) fn inner(&self) -> std::cell::RefMut<'_, DisksInner> {
        self.0.borrow_mut()
    }

    /// Performs one request.
    fn perform(inner: &mut DisksInner, nsid: u32, request: Request<RamHold>) -> Done {
        let Request { tag, operation, data } = request;
        let image = &mut inner.images[nsid as usize - 1];
        inner.done.push((nsid, operation.clone()));
        let bytes: u64 = data.iter().map(|segment| segment.bytes).sum();
        let range = |offset: u64, bytes: u64| offset as usize..(offset + bytes) as usize;
        let mut result = Ok(());
        match operation {
            Operation::Read { offset } => {
                let mut at = offset;
                for segment in &data {
                    let moved = segment.hold.write(0, &image[range(at, segment.bytes)]);
                    result = result.and(moved.map_err(|_| DiskFault::Range));
                    at += segment.bytes;
                }
            }
            Operation::Write { offset, .. } => {
                let mut at = offset;
                for segment in &data {
                    let moved = segment.hold.read(0, &mut image[range(at, segment.bytes)]);
                    result = result.and(moved.map_err(|_| DiskFault::Range));
                    at += segment.bytes;
                }
            }
            Operation::Compare { offset } => {
                let mut theirs = vec![0; bytes as usize];
                let mut at = 0;
                for segment in &data {
                    let moved = segment.hold.read(0, &mut theirs[range(at, segment.bytes)]);
                    result = result.and(moved.map_err(|_| DiskFault::Range));
                    at += segment.bytes;
                }
                if theirs != image[range(offset, bytes)] {
                    result = Err(DiskFault::Mismatch);
                }
            }
            Operation::WriteZeroes { offset, bytes, .. } => image[range(offset, bytes)].fill(0),
            Operation::Discard { ranges } => {
                for (offset, bytes) in ranges {
                    image[range(offset, bytes)].fill(0xdd);
                }
            }
            Operation::Flush => {}
        }
        Done { tag, result }
    }
}

impl Storage<RamHold> for Disks {
    fn submit(&mut self, nsid: u32, request: Request<RamHold>) -> Result<(), Request<RamHold>> {
        let mut inner = self.inner();
        if inner.queue.len() >= inner.room {
            return Err(request);
        }
        inner.queue.push_back((nsid, request));
        Ok(())
    }

    fn collect(&mut self, done: &mut Vec<Done>) -> Result<(), Broken> {
        let inner = &mut *self.inner();
        if inner.broken {
            inner.queue.clear();
            return Err(Broken);
        }
        while !inner.stuck {
            let Some((nsid, request)) = inner.queue.pop_front() else { break };
            done.push(Self::perform(inner, nsid, request));
        }
        Ok(())
    }
}

/// Block size of the first two disks.
pub(crate) const BLOCK: u64 = 512;
/// Entries of all queues.
pub(crate) const ENTRIES: u32 = 16;
pub(crate) const RAM: usize = 8 << 20;
pub(crate) const DISK: usize = 4 << 20;

/// A controller and the guest around it.
pub(crate) struct Machine {
    pub(crate) ram: Ram,
    pub(crate) disks: Disks,
    pub(crate) shared: Arc<Shared>,
    pub(crate) registers: Registers,
    pub(crate) admin_queue: AdminQueue<Ram>,
    pub(crate) poll_group: PollGroup<Ram, Disks>,
    pub(crate) now: u64,
    /// Completion queues that interrupted, and their vectors.
    pub(crate) signals: Vec<(u16, u16)>,
    /// Events of the poll group.
    pub(crate) events: Vec<AsyncEvent>,
    /// When to poll again.
    pub(crate) until: Option<u64>,
    stopping: bool,
    /// Enabled again before it had stopped.
    again: Option<AdminQueueConfig>,
}

impl Machine {
    /// Two disks of 512-byte blocks, the second one write protected; and one of 4096.
    pub(crate) fn new() -> Self {
        Self::with_transfer_shift(5)
    }

    pub(crate) fn with_transfer_shift(transfer_shift: u8) -> Self {
        Self::sized(transfer_shift, RAM, DISK)
    }

    /// With this much memory, and disks of this size.
    pub(crate) fn sized(transfer_shift: u8, ram: usize, disk: usize) -> Self {
        let limits = Limits { io_queues: 4, entries: 64, vectors: 5, transfer_shift };
        let namespaces = Namespaces::new(vec![
            Namespace::new(disk as u64, 9, [1; 16]).zero_when_deallocated(),
            Namespace::new(disk as u64, 9, [2; 16]).write_protected(),
            Namespace::new(disk as u64, 12, [3; 16]),
        ]);
        let queue_table = QueueTable::new(5, Box::new(TrappedDoorbells::new(5)));
        let shared = Arc::new(Shared::new(limits, namespaces, queue_table));
        let ram = Ram::new(ram);
        let disks = Disks(Rc::new(RefCell::new(DisksInner {
            images: (0..3).map(|_| vec![0; disk]).collect(),
            room: 64,
            ..DisksInner::default()
        })));
        let identity = Identity {
            vendor: 0x5052,
            subsystem_vendor: 0x5052,
            serial: "S1".to_owned(),
            model: "prereg NVMe".to_owned(),
            firmware: "0.1.0".to_owned(),
            uuid: [7; 16],
            controller: 1,
            shadow_doorbells: true,
            shared: false,
        };
        let admin_queue = AdminQueue::new(Arc::clone(&shared), identity, ram.clone());
        let poll_group = PollGroup::new(Arc::clone(&shared), Arc::default(), ram.clone(), disks.clone());
        Self {
            registers: Registers::new(limits.entries),
            ram,
            disks,
            shared,
            admin_queue,
            poll_group,
            now: 1,
            signals: Vec::new(),
            events: Vec::new(),
            until: None,
            stopping: false,
            again: None,
        }
    }

    /// A write to BAR 0.
    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) {
        if offset >= DOORBELLS {
            let at = (offset - DOORBELLS) / 4;
            for (at, value) in (at..).zip(from.chunks_exact(4)) {
                self.ring(at as usize, u32::from_le_bytes([value[0], value[1], value[2], value[3]]));
            }
            return;
        }
        let mut effects = Vec::new();
        self.registers.write(offset, from, &mut effects);
        for effect in effects {
            match effect {
                Effect::Enable(queues) if self.stopping => self.again = Some(queues),
                Effect::Enable(queues) => self.open(queues),
                Effect::Disable => {
                    self.admin_queue.close();
                    self.poll_group.halt();
                    self.stopping = true;
                    self.again = None;
                }
                Effect::Shutdown => self.poll_group.flush(self.now, &mut PollResult::default()),
                Effect::Masked(_) | Effect::Unmasked(_) => {}
            }
        }
    }

    fn open(&mut self, queues: AdminQueueConfig) {
        let cc = self.registers.configuration();
        self.poll_group.set_page_shift(page_shift(cc));
        self.shared.queue_table.open_submission(0, queues.submission_entries, 9);
        self.shared.queue_table.open_completion(0, queues.completion_entries, Some(0), 9);
        match self.admin_queue.open(queues, cc) {
            Ok(()) => self.registers.ready(),
            Err(_) => self.registers.fatal(),
        }
    }

    pub(crate) fn write_u32(&mut self, offset: u64, value: u32) {
        self.write(offset, &value.to_le_bytes());
    }

    pub(crate) fn read_u32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.registers.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    /// Writes doorbell `at`.
    pub(crate) fn ring(&mut self, at: usize, value: u32) {
        if let Err(bad) = self.shared.queue_table.ring(at, value) {
            self.admin_queue.admin().raise(bad.into());
        }
    }

    /// Polls the controller until there is nothing to do.
    pub(crate) fn run(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the controller works without end");
    }

    /// One round; returns whether there was something to do.
    pub(crate) fn step(&mut self) -> bool {
        self.now += 1000;
        let cc = self.registers.configuration();
        self.admin_queue.reconfigure(cc);
        let admin = self.admin_queue.poll(self.now, &Health::default);
        if admin.signal {
            self.signals.push((0, 0));
        }
        if admin.fatal {
            self.registers.fatal();
        }
        let mut polled = PollResult::default();
        if let Some(op) = admin.op {
            if let Some(how) = self.poll_group.execute(op, 0, self.now, &mut polled) {
                self.admin_queue.op_done(how);
            }
            self.settle(&polled);
        }
        if self.poll_group.poll(self.now, &mut polled).is_err() {
            self.disks.inner().broken = false;
            self.poll_group.fail_all(self.now, &mut polled);
        }
        self.settle(&polled);
        self.until = admin.until.into_iter().chain(polled.until).min();
        if self.stopping && self.poll_group.in_flight() == 0 {
            self.stopping = false;
            self.shared.queue_table.close_all();
            self.registers.stopped();
            if let Some(queues) = self.again.take() {
                self.open(queues);
            }
        }
        admin.progress || polled.progress
    }

    fn settle(&mut self, polled: &PollResult) {
        self.signals.extend(&polled.signals);
        for event in &polled.events {
            self.events.push(*event);
            self.admin_queue.admin().raise(*event);
        }
        for _ in &polled.closed {
            self.admin_queue.op_done(Ok(0));
        }
        if let Some(status) = polled.durable {
            self.admin_queue.op_done(if status.is_success() { Ok(0) } else { Err(status) });
            self.registers.shut_down();
        }
    }

    /// Lets time pass.
    pub(crate) fn pass(&mut self, nanoseconds: u64) {
        self.now += nanoseconds;
    }
}

/// CC as Linux sets it.
pub(crate) const LINUX: u32 = 0x0046_0001;

/// The address of queue `id`; the admin queue is 0.
pub(crate) const fn submission_at(id: u16) -> u64 {
    0x10_0000 + id as u64 * 0x2000
}

pub(crate) const fn completion_at(id: u16) -> u64 {
    0x11_0000 + id as u64 * 0x2000
}

/// The guest's side of a pair of queues.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pair {
    pub(crate) id: u16,
    pub(crate) tail: u32,
    pub(crate) head: u32,
    pub(crate) phase: bool,
}

/// A guest that drives the controller as a driver does.
pub(crate) struct Guest {
    pub(crate) machine: Machine,
    pub(crate) pairs: Vec<Pair>,
    pub(crate) next_cid: u16,
}

/// A command: dwords by number.
pub(crate) fn command(opcode: u8, nsid: u32, words: &[(usize, u32)]) -> [u32; 16] {
    let mut command = [0; 16];
    command[0] = u32::from(opcode);
    command[1] = nsid;
    for (at, word) in words {
        command[*at] = *word;
    }
    command
}

/// `command` with two PRP entries.
pub(crate) fn with_prp(mut command: [u32; 16], first: u64, second: u64) -> [u32; 16] {
    for (at, value) in [(6, first), (8, second)] {
        command[at] = value as u32;
        command[at + 1] = (value >> 32) as u32;
    }
    command
}

/// Read, write or compare of `count` blocks from `lba`.
pub(crate) fn transfer(opcode: u8, nsid: u32, lba: u64, count: u32, first: u64, second: u64) -> [u32; 16] {
    let words = [(10, lba as u32), (11, (lba >> 32) as u32), (12, count.wrapping_sub(1) & 0xffff)];
    with_prp(command(opcode, nsid, &words), first, second)
}

impl Guest {
    /// Enabled, with the admin queue only.
    pub(crate) fn enabled() -> Self {
        Self::over(Machine::new())
    }

    pub(crate) fn over(machine: Machine) -> Self {
        let mut guest = Self { machine, pairs: Vec::new(), next_cid: 0 };
        guest.enable(LINUX);
        guest
    }

    pub(crate) fn enable(&mut self, cc: u32) {
        let entries = ENTRIES - 1;
        self.machine.write_u32(0x24, entries | entries << 16);
        self.machine.write(0x28, &submission_at(0).to_le_bytes());
        self.machine.write(0x30, &completion_at(0).to_le_bytes());
        self.machine.write_u32(CC, cc);
        self.machine.run();
        assert_eq!(self.machine.read_u32(0x1c), 1, "ready");
        self.pairs = vec![Pair { id: 0, tail: 0, head: 0, phase: true }];
        self.machine.ram.put(completion_at(0), &[0; 0x2000]);
    }

    /// Enabled, with `pairs` I/O queues.
    pub(crate) fn with_queues(pairs: u16) -> Self {
        let mut guest = Self::enabled();
        for id in 1..=pairs {
            guest.create_pair(id);
        }
        guest
    }

    pub(crate) fn create_pair(&mut self, id: u16) {
        self.machine.ram.put(completion_at(id), &[0; 0x1000]);
        let size = (ENTRIES - 1) << 16 | u32::from(id);
        let cq = command(0x05, 0, &[(10, size), (11, u32::from(id) << 16 | 3)]);
        assert_eq!(self.admin(with_prp(cq, completion_at(id), 0)).status, Status::SUCCESS);
        let sq = command(0x01, 0, &[(10, size), (11, u32::from(id) << 16 | 1)]);
        assert_eq!(self.admin(with_prp(sq, submission_at(id), 0)).status, Status::SUCCESS);
        self.pairs.push(Pair { id, tail: 0, head: 0, phase: true });
    }

    /// Puts a command into a queue; returns its identifier.
    pub(crate) fn put(&mut self, at: usize, mut command: [u32; 16]) -> u16 {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        command[0] = command[0] & 0xffff | u32::from(cid) << 16;
        let pair = &mut self.pairs[at];
        let bytes: Vec<u8> = command.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.machine.ram.put(submission_at(pair.id) + u64::from(pair.tail) * 64, &bytes);
        pair.tail = (pair.tail + 1) % ENTRIES;
        cid
    }

    /// Writes the tail doorbell.
    pub(crate) fn ring(&mut self, at: usize) {
        let pair = self.pairs[at];
        self.machine.ring(tail_of(pair.id), pair.tail);
    }

    /// The next completion, if there is one; the head doorbell is written.
    pub(crate) fn take(&mut self, at: usize) -> Option<Completion> {
        let completion = self.peek(at)?;
        let pair = &mut self.pairs[at];
        pair.head += 1;
        if pair.head == ENTRIES {
            pair.head = 0;
            pair.phase = !pair.phase;
        }
        let (id, head) = (pair.id, pair.head);
        self.machine.ring(head_of(id), head);
        Some(completion)
    }

    /// The next completion, if there is one.
    pub(crate) fn peek(&self, at: usize) -> Option<Completion> {
        let pair = self.pairs[at];
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.machine.ram.get(completion_at(pair.id) + u64::from(pair.head) * 16, 16));
        let (completion, phase) = Completion::from_bytes(&bytes);
        (phase == pair.phase).then_some(completion)
    }

    /// A command on the queue at `at`, from doorbell to completion.
    pub(crate) fn run(&mut self, at: usize, command: [u32; 16]) -> Completion {
        let cid = self.put(at, command);
        self.ring(at);
        self.machine.run();
        let completion = self.take(at).expect("a completion");
        assert_eq!((completion.cid, completion.sq_id), (cid, self.pairs[at].id));
        completion
    }

    pub(crate) fn admin(&mut self, command: [u32; 16]) -> Completion {
        self.run(0, command)
    }

    /// On the first I/O queue.
    pub(crate) fn io(&mut self, command: [u32; 16]) -> Status {
        self.run(1, command).status
    }
}
