//! A small NVMe driver over a vfio-user connection: one admin queue, one I/O queue, completions are polled.
//!
//! Queues and data are in memory shared with the server. Only doorbells go through the socket, or through the server's doorbell
//! page.

use std::path::Path;
use std::time::{Duration, Instant};

use prereg::{Access, Iova};
use prereg_linux::{GuestMemory, MemoryError, SharedFile, SharedMemory};
use prereg_vfio_user::client::Client;
use prereg_vfio_user::server::Layout;

use crate::error::BenchError;

const PAGE: u64 = 4096;
/// Entries of each queue.
const ENTRIES: u32 = 256;
/// Commands that may be in flight; a queue of 256 entries has room for 255.
pub const MOST_DEPTH: u32 = 128;
/// Commands of more than a page that may be in flight.
pub const MOST_LARGE: u32 = 32;

/// Offsets in the shared memory.
mod place {
    pub(super) const ADMIN_COMMANDS: u64 = 0;
    pub(super) const ADMIN_COMPLETIONS: u64 = 0x4000;
    pub(super) const COMMANDS: u64 = 0x5000;
    pub(super) const COMPLETIONS: u64 = 0x9000;
    pub(super) const IDENTITY: u64 = 0xa000;
    /// A page per command.
    pub(super) const LISTS: u64 = 0x10_0000;
    /// Data: a slot of [`MOST_BYTES`](super::MOST_BYTES) per command, or of a page for commands of a page or less.
    pub(super) const DATA: u64 = 0x20_0000;
}

/// The largest transfer of one command.
pub const MOST_BYTES: u64 = 128 << 10;

/// Registers and numbers of the NVMe base specification 1.4, section 3.1 and figures of sections 5 and 6.
mod register {
    pub(super) const CAP: u64 = 0x00;
    pub(super) const CC: u64 = 0x14;
    pub(super) const CSTS: u64 = 0x1c;
    pub(super) const AQA: u64 = 0x24;
    pub(super) const ASQ: u64 = 0x28;
    pub(super) const ACQ: u64 = 0x30;
    pub(super) const DOORBELLS: u64 = 0x1000;
    /// Enabled, commands of 64 bytes, completions of 16.
    pub(super) const CC_ENABLE: u32 = 1 | 6 << 16 | 4 << 20;
}

mod opcode {
    pub(super) const CREATE_COMMANDS: u8 = 0x01;
    pub(super) const CREATE_COMPLETIONS: u8 = 0x05;
    pub(super) const IDENTIFY: u8 = 0x06;
    pub(super) const SET_FEATURES: u8 = 0x09;
    pub(super) const WRITE: u8 = 0x01;
    pub(super) const READ: u8 = 0x02;
}

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// From the disk.
    Read,
    /// To the disk.
    Write,
}

/// The driver's side of a queue pair.
#[derive(Debug)]
struct Queue {
    number: u64,
    commands: u64,
    completions: u64,
    tail: u32,
    head: u32,
    /// The phase bit of a new completion.
    phase: bool,
}

impl Queue {
    const fn new(number: u64, commands: u64, completions: u64) -> Self {
        Self { number, commands, completions, tail: 0, head: 0, phase: true }
    }
}

/// An enabled controller and its first I/O queue.
#[derive(Debug)]
pub struct Driver {
    client: Client,
    /// The shared memory.
    memory: GuestMemory,
    doorbells: Option<SharedMemory>,
    stride: u64,
    admin: Queue,
    io: Queue,
    /// Blocks of namespace 1.
    pub blocks: u64,
    /// Bytes of a block.
    pub block: u64,
}

impl Driver {
    /// Connects to the controller at `socket` and enables it, with room for the data of `slots` commands of more than a page in flight.
    ///
    /// # Errors
    /// [`BenchError::Failed`] with the server's error.
    pub fn start(socket: &Path, slots: u32) -> Result<Self, BenchError> {
        let data = (MOST_BYTES * u64::from(slots.clamp(1, MOST_LARGE))).max(PAGE * u64::from(MOST_DEPTH));
        let bytes = place::DATA + data;
        let mut client = Client::connect(socket).map_err(wrong("connecting to the server"))?;
        let memory = GuestMemory::memfd("bench", bytes).map_err(wrong("making the shared memory"))?;
        let descriptor = memory
            .descriptor()
            .ok_or_else(|| BenchError::failed("making the shared memory", "no descriptor"))?;
        client
            .dma_map(Iova::new(0), bytes, Access::ReadWrite, Some((descriptor, 0)))
            .map_err(wrong("DMA_MAP of the shared memory"))?;
        let doorbells = doorbell_page(&mut client)?;
        let mut driver = Self {
            client,
            memory,
            doorbells,
            stride: 4,
            admin: Queue::new(0, place::ADMIN_COMMANDS, place::ADMIN_COMPLETIONS),
            io: Queue::new(1, place::COMMANDS, place::COMPLETIONS),
            blocks: 0,
            block: 0,
        };
        driver.enable()?;
        driver.make_queue()?;
        driver.identify()?;
        Ok(driver)
    }

    /// The server's process.
    ///
    /// # Errors
    /// The system's, as [`BenchError::Failed`].
    pub fn server_process(&self) -> Result<u32, BenchError> {
        self.client.server_process().map_err(wrong("asking for the server's process"))
    }

    /// Whether doorbells are written in memory.
    #[must_use]
    pub fn has_doorbell_page(&self) -> bool {
        self.doorbells.is_some()
    }

    fn register(&mut self, offset: u64) -> Result<u32, BenchError> {
        let mut bytes = [0; 4];
        self.client.region_read(Layout::BAR0, offset, &mut bytes).map_err(wrong("reading a register"))?;
        Ok(u32::from_le_bytes(bytes))
    }

    fn set(&mut self, offset: u64, bytes: &[u8]) -> Result<(), BenchError> {
        self.client.region_write(Layout::BAR0, offset, bytes).map_err(wrong("writing a register"))
    }

    fn enable(&mut self) -> Result<(), BenchError> {
        // Memory space and bus mastering.
        let command = 6u16.to_le_bytes();
        self.client.region_write(Layout::CONFIG, 4, &command).map_err(wrong("enabling bus mastering"))?;
        let strides = self.register(register::CAP + 4)? & 0xf;
        self.stride = 4 << strides;
        self.set(register::AQA, &((ENTRIES - 1) | ((ENTRIES - 1) << 16)).to_le_bytes())?;
        self.set(register::ASQ, &place::ADMIN_COMMANDS.to_le_bytes())?;
        self.set(register::ACQ, &place::ADMIN_COMPLETIONS.to_le_bytes())?;
        self.set(register::CC, &register::CC_ENABLE.to_le_bytes())?;
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match self.register(register::CSTS)? & 3 {
                1 => return Ok(()),
                0 if Instant::now() < until => std::thread::sleep(Duration::from_millis(1)),
                status => {
                    return Err(BenchError::failed(
                        "enabling the controller",
                        format!("CSTS is {status:#x}"),
                    ));
                }
            }
        }
    }

    fn make_queue(&mut self) -> Result<(), BenchError> {
        let one_queue = [7, 0];
        self.command(opcode::SET_FEATURES, 0, 0, one_queue)?;
        let size = 1 | (ENTRIES - 1) << 16;
        self.command(opcode::CREATE_COMPLETIONS, 0, place::COMPLETIONS, [size, 1])?;
        self.command(opcode::CREATE_COMMANDS, 0, place::COMMANDS, [size, 1 | 1 << 16])
    }

    fn identify(&mut self) -> Result<(), BenchError> {
        self.command(opcode::IDENTIFY, 1, place::IDENTITY, [0, 0])?;
        let word = |offset: u64| self.memory.load_u32(place::IDENTITY + offset).unwrap_or(0);
        self.blocks = u64::from(word(0)) | u64::from(word(4)) << 32;
        // FLBAS is byte 26, the formats begin at byte 128.
        let format = u64::from(word(24) >> 16 & 0xf);
        self.block = 1 << (word(128 + 4 * format) >> 16 & 0x1f);
        Ok(())
    }

    /// Executes an admin command.
    fn command(&mut self, opcode: u8, nsid: u32, data: u64, words: [u32; 2]) -> Result<(), BenchError> {
        let at = self.admin.commands + u64::from(self.admin.tail) * 64;
        let entry =
            [u32::from(opcode) | self.admin.tail << 16, nsid, 0, 0, 0, 0, low(data), high(data), 0, 0];
        self.put(at, &entry)?;
        self.put(at + 40, &[words[0], words[1], 0, 0, 0, 0])?;
        self.admin.tail = (self.admin.tail + 1) % ENTRIES;
        self.ring_commands(true)?;
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            if let Some((_, status)) = self.next_completion(true) {
                self.ring_completions(true)?;
                return match status {
                    0 => Ok(()),
                    status => Err(BenchError::failed(
                        format!("admin command {opcode:#x}"),
                        format!("status {status:#x}"),
                    )),
                };
            }
            if Instant::now() > until {
                return Err(BenchError::failed(
                    format!("admin command {opcode:#x}"),
                    "no completion within 10 s",
                ));
            }
            std::thread::yield_now();
        }
    }

    /// Writes a command for `bytes` at block `block` into the queue, with the data in slot `slot`, without ringing the
    /// doorbell.
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn put_command(
        &mut self,
        direction: Direction,
        slot: u32,
        block: u64,
        bytes: u64,
    ) -> Result<(), BenchError> {
        let data = place::DATA + u64::from(slot) * if bytes <= PAGE { PAGE } else { MOST_BYTES };
        let list = place::LISTS + u64::from(slot) * PAGE;
        let pages = bytes.div_ceil(PAGE);
        let second = match pages {
            0 | 1 => 0,
            2 => data + PAGE,
            _ => {
                for page in 1..pages {
                    self.memory.store_u64(list + (page - 1) * 8, data + page * PAGE).map_err(outside)?;
                }
                list
            }
        };
        let opcode = match direction {
            Direction::Read => opcode::READ,
            Direction::Write => opcode::WRITE,
        };
        let blocks = u32::try_from(bytes / self.block).unwrap_or(1);
        let at = self.io.commands + u64::from(self.io.tail) * 64;
        let entry =
            [u32::from(opcode) | slot << 16, 1, 0, 0, 0, 0, low(data), high(data), low(second), high(second)];
        self.put(at, &entry)?;
        self.put(at + 40, &[low(block), high(block), blocks - 1, 0, 0, 0])?;
        self.io.tail = (self.io.tail + 1) % ENTRIES;
        Ok(())
    }

    /// Writes a number into the data of a slot of [`MOST_BYTES`], at byte `offset` (a multiple of 4).
    ///
    /// # Errors
    /// If there is no such slot.
    pub fn put_data(&self, slot: u32, offset: u64, value: u32) -> Result<(), BenchError> {
        let at = place::DATA + u64::from(slot) * MOST_BYTES + offset;
        self.memory.store_u32(at, value).map_err(outside)
    }

    /// The number in the data of a slot of [`MOST_BYTES`]; 0 outside.
    #[must_use]
    pub fn data(&self, slot: u32, offset: u64) -> u32 {
        self.memory.load_u32(place::DATA + u64::from(slot) * MOST_BYTES + offset).unwrap_or(0)
    }

    /// Rings the doorbell for the commands in the queue.
    ///
    /// # Errors
    /// If the server is gone.
    pub fn ring(&mut self) -> Result<(), BenchError> {
        self.ring_commands(false)
    }

    /// Consumes all completions and rings their doorbell.
    ///
    /// # Errors
    /// If a command failed, or the server is gone.
    pub fn take(&mut self, mut done: impl FnMut(u32)) -> Result<u32, BenchError> {
        let mut taken = 0;
        while let Some((slot, status)) = self.next_completion(false) {
            if status != 0 {
                return Err(BenchError::failed("an I/O command", format!("status {status:#x}")));
            }
            done(slot);
            taken += 1;
        }
        if taken > 0 {
            self.ring_completions(false)?;
        }
        Ok(taken)
    }

    fn put(&self, at: u64, words: &[u32]) -> Result<(), BenchError> {
        let mut offsets = (at..).step_by(4).zip(words);
        offsets.try_for_each(|(offset, word)| self.memory.store_u32(offset, *word)).map_err(outside)
    }

    fn next_completion(&mut self, admin: bool) -> Option<(u32, u32)> {
        let queue = if admin { &mut self.admin } else { &mut self.io };
        let at = queue.completions + u64::from(queue.head) * 16;
        let last = self.memory.load_u32(at + 12).ok()?;
        if (last >> 16 & 1 == 1) != queue.phase {
            return None;
        }
        queue.head = (queue.head + 1) % ENTRIES;
        queue.phase ^= queue.head == 0;
        Some((last & 0xffff, last >> 17))
    }

    fn ring_commands(&mut self, admin: bool) -> Result<(), BenchError> {
        let queue = if admin { &self.admin } else { &self.io };
        self.doorbell(queue.number * 2, queue.tail)
    }

    fn ring_completions(&mut self, admin: bool) -> Result<(), BenchError> {
        let queue = if admin { &self.admin } else { &self.io };
        self.doorbell(queue.number * 2 + 1, queue.head)
    }

    fn doorbell(&mut self, index: u64, value: u32) -> Result<(), BenchError> {
        let offset = index * self.stride;
        if let Some(page) = &self.doorbells {
            return page.store_u32(offset, value).map_err(wrong("ringing a doorbell"));
        }
        self.client
            .region_post(Layout::BAR0, register::DOORBELLS + offset, &value.to_le_bytes())
            .map_err(wrong("ringing a doorbell"))
    }
}

/// The doorbell page, if the server allows mapping it.
fn doorbell_page(client: &mut Client) -> Result<Option<SharedMemory>, BenchError> {
    let (info, descriptor) = client.region_info(Layout::BAR0).map_err(wrong("asking for BAR 0"))?;
    let Some(descriptor) = descriptor else { return Ok(None) };
    let offset = info.offset + register::DOORBELLS;
    let page = SharedFile::of(descriptor).and_then(|file| file.map(offset, PAGE));
    page.map(Some).map_err(wrong("mapping the doorbells"))
}

fn outside(error: MemoryError) -> BenchError {
    BenchError::failed("putting it into the shared memory", error)
}

fn wrong<E: ToString>(what: &'static str) -> impl FnOnce(E) -> BenchError {
    move |error| BenchError::failed(what, error)
}

const fn low(value: u64) -> u32 {
    value as u32
}

const fn high(value: u64) -> u32 {
    (value >> 32) as u32
}
