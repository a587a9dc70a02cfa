//! A driver as in an operating system, over a vfio-user client.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use prereg::{Access, Iova};
use prereg_linux::{GuestMemory, SharedFile, SharedMemory};
use prereg_nvme::spec::{Completion, Status};
use prereg_vfio_user::client::Client;

use crate::fixture::{Fixture, until};

/// Guest memory, from address 0 on. Little enough that two guests are within an ordinary user's limit of locked memory.
pub(crate) const RAM: u64 = 3 << 20;
/// Entries of every queue.
pub(crate) const ENTRIES: u32 = 32;
/// The address of data.
pub(crate) const DATA: u64 = 0x10_0000;
/// The address of PRP lists.
pub(crate) const LIST: u64 = 0x8_0000;

const BAR0: u32 = 0;
const CONFIG: u32 = 7;

/// CC as Linux sets it.
pub(crate) const LINUX: u32 = 0x0046_0001;

/// The address of queue `id`; the admin queue is 0.
pub(crate) const fn submission_at(id: u16) -> u64 {
    0x1_0000 + id as u64 * 0x2000
}

pub(crate) const fn completion_at(id: u16) -> u64 {
    0x4_0000 + id as u64 * 0x2000
}

#[derive(Clone, Copy)]
struct Pair {
    id: u16,
    tail: u32,
    head: u32,
    phase: bool,
}

/// How doorbells are written.
enum Doorbells {
    Posted,
    Mapped(SharedMemory),
}

/// A driver and its guest's memory.
pub(crate) struct Driver {
    pub(crate) client: Client,
    pub(crate) ram: GuestMemory,
    pairs: Vec<Pair>,
    doorbells: Doorbells,
    next_cid: u16,
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

/// Read (2), write (1) or compare (5) of `count` blocks from `lba`.
pub(crate) fn transfer(opcode: u8, nsid: u32, lba: u64, count: u32, first: u64, second: u64) -> [u32; 16] {
    let words = [(10, lba as u32), (11, (lba >> 32) as u32), (12, count - 1)];
    with_prp(command(opcode, nsid, &words), first, second)
}

pub(crate) const FLUSH: [u32; 16] = [0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

impl Driver {
    /// Connected, with its memory mapped and bus mastering enabled.
    pub(crate) fn connect(fixture: &Fixture) -> Self {
        let mut driver = Self::over(fixture.client(), GuestMemory::memfd("guest", RAM).unwrap());
        driver.client.region_write(CONFIG, 4, &[6, 0]).unwrap();
        driver
    }

    /// Over a client that has negotiated a version, with `ram` mapped.
    pub(crate) fn over(mut client: Client, ram: GuestMemory) -> Self {
        let descriptor = ram.descriptor().unwrap();
        client.dma_map(Iova::new(0), ram.bytes(), Access::ReadWrite, Some((descriptor, 0))).unwrap();
        Self { client, ram, pairs: Vec::new(), doorbells: Doorbells::Posted, next_cid: 0 }
    }

    /// Enabled, with `pairs` of I/O queues.
    pub(crate) fn ready(fixture: &Fixture, pairs: u16) -> Self {
        let mut driver = Self::connect(fixture);
        driver.enable();
        for id in 1..=pairs {
            driver.create_pair(id);
        }
        driver
    }

    pub(crate) fn read_u32(&mut self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        self.client.region_read(BAR0, offset, &mut bytes).unwrap();
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn write_u32(&mut self, offset: u64, value: u32) {
        self.client.region_write(BAR0, offset, &value.to_le_bytes()).unwrap();
    }

    /// Waits until CSTS has these bits.
    pub(crate) fn await_status(&mut self, mask: u32, value: u32) {
        until("CSTS says so", || self.read_u32(0x1c) & mask == value);
    }

    pub(crate) fn enable(&mut self) {
        self.write_u32(0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        self.client.region_write(BAR0, 0x28, &submission_at(0).to_le_bytes()).unwrap();
        self.client.region_write(BAR0, 0x30, &completion_at(0).to_le_bytes()).unwrap();
        self.ram.write(completion_at(0), &[0; 0x1000]).unwrap();
        self.write_u32(0x14, LINUX);
        self.await_status(3, 1);
        self.pairs = vec![Pair { id: 0, tail: 0, head: 0, phase: true }];
    }

    pub(crate) fn disable(&mut self) {
        self.write_u32(0x14, LINUX & !1);
        self.await_status(1, 0);
        self.pairs.clear();
    }

    /// Writes doorbells through mapped memory from now on.
    pub(crate) fn map_doorbells(&mut self) {
        let (info, descriptor) = self.client.region_info(BAR0).unwrap();
        assert_eq!(info.areas.len(), 1);
        let area = info.areas[0];
        let file = SharedFile::of(descriptor.unwrap()).unwrap();
        let page = file.map(info.offset + area.offset, area.bytes).unwrap();
        assert!(page.is_direct(), "the file is sealed against shrinking");
        self.doorbells = Doorbells::Mapped(page);
    }

    pub(crate) fn create_pair(&mut self, id: u16) {
        self.create_pair_with(id, u32::from(id));
    }

    /// With a vector other than its number.
    pub(crate) fn create_pair_with(&mut self, id: u16, vector: u32) {
        self.ram.write(completion_at(id), &[0; 0x1000]).unwrap();
        let size = (ENTRIES - 1) << 16 | u32::from(id);
        let cq = with_prp(command(5, 0, &[(10, size), (11, vector << 16 | 3)]), completion_at(id), 0);
        assert_eq!(self.admin(cq).status, Status::SUCCESS);
        let sq = with_prp(command(1, 0, &[(10, size), (11, u32::from(id) << 16 | 1)]), submission_at(id), 0);
        assert_eq!(self.admin(sq).status, Status::SUCCESS);
        self.pairs.push(Pair { id, tail: 0, head: 0, phase: true });
    }

    /// Puts a command into the queue at `at`; returns its identifier.
    pub(crate) fn put(&mut self, at: usize, mut command: [u32; 16]) -> u16 {
        let cid = self.next_cid;
        self.next_cid = self.next_cid.wrapping_add(1);
        command[0] = command[0] & 0xffff | u32::from(cid) << 16;
        let pair = &mut self.pairs[at];
        let bytes: Vec<u8> = command.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.ram.write(submission_at(pair.id) + u64::from(pair.tail) * 64, &bytes).unwrap();
        pair.tail = (pair.tail + 1) % ENTRIES;
        cid
    }

    pub(crate) fn tail(&self, at: usize) -> u32 {
        self.pairs[at].tail
    }

    pub(crate) fn head(&self, at: usize) -> u32 {
        self.pairs[at].head
    }

    /// Writes the tail doorbell.
    pub(crate) fn ring(&mut self, at: usize) {
        let Pair { id, tail, .. } = self.pairs[at];
        self.ring_raw(usize::from(id) * 2, tail);
    }

    /// Writes doorbell `at`.
    pub(crate) fn ring_raw(&mut self, at: usize, value: u32) {
        match &self.doorbells {
            Doorbells::Posted => {
                self.client.region_post(BAR0, 0x1000 + at as u64 * 4, &value.to_le_bytes()).unwrap();
            }
            Doorbells::Mapped(page) => page.store_u32(at as u64 * 4, value).unwrap(),
        }
    }

    /// The next completion, if there is one; the head doorbell is not written.
    pub(crate) fn peek(&self, at: usize) -> Option<Completion> {
        let pair = self.pairs[at];
        let place = completion_at(pair.id) + u64::from(pair.head) * 16;
        let mut phase = [0; 2];
        self.ram.read(place + 14, &mut phase).unwrap();
        if (phase[0] & 1 == 1) != pair.phase {
            return None;
        }
        let mut bytes = [0; 16];
        self.ram.read(place, &mut bytes).unwrap();
        Some(Completion::from_bytes(&bytes).0)
    }

    /// Waits for the next completion and writes the head doorbell.
    pub(crate) fn take(&mut self, at: usize) -> Completion {
        let mut found = None;
        until("a completion comes", || {
            found = self.peek(at);
            found.is_some()
        });
        let pair = &mut self.pairs[at];
        pair.head += 1;
        if pair.head == ENTRIES {
            pair.head = 0;
            pair.phase = !pair.phase;
        }
        let Pair { id, head, .. } = *pair;
        self.ring_raw(usize::from(id) * 2 + 1, head);
        found.unwrap()
    }

    /// A command on the queue at `at`, from doorbell to completion.
    pub(crate) fn run(&mut self, at: usize, command: [u32; 16]) -> Completion {
        let cid = self.put(at, command);
        self.ring(at);
        let completion = self.take(at);
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

    pub(crate) fn fill(&self, at: u64, bytes: u64, seed: u64) -> Vec<u8> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut data = Vec::with_capacity(bytes as usize + 8);
        while (data.len() as u64) < bytes {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend(state.to_le_bytes());
        }
        data.truncate(bytes as usize);
        self.ram.write(at, &data).unwrap();
        data
    }

    pub(crate) fn get(&self, at: u64, bytes: u64) -> Vec<u8> {
        let mut data = vec![0; bytes as usize];
        self.ram.read(at, &mut data).unwrap();
        data
    }

    pub(crate) fn put_u64(&self, at: u64, value: u64) {
        self.ram.write(at, &value.to_le_bytes()).unwrap();
    }
}
