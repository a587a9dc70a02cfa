//! An NVMe driver in user space: an admin queue and one pair of I/O queues.
//!
//! Registers, commands and identify fields are those of the NVMe base specification 2.0 (section 3.1, figures 91, 275, 97).
//! Completions are polled. The memory of each block is mapped before its command and unmapped after it, so a server behind the
//! guest's IOMMU gets one map per block.

use std::time::{Duration, Instant};

use crate::error::Error;
use crate::pattern::{BLOCK, difference, write};
use crate::vfio::{Device, Memory};

/// Registers.
const CC: u64 = 0x14;
const CSTS: u64 = 0x1c;
const AQA: u64 = 0x24;
const ASQ: u64 = 0x28;
const ACQ: u64 = 0x30;
const DOORBELLS: u64 = 0x1000;

/// Entries of every queue.
const ENTRIES: u16 = 16;

/// Enabled, entries of 64 and 16 bytes.
const ENABLE: u32 = 1 | 6 << 16 | 4 << 20;

/// Offsets of queues and data in the driver's memory, and their I/O virtual addresses.
const PAGE: usize = BLOCK;
const QUEUES: u64 = 0x10_0000;
const DATA: u64 = 0x20_0000;
const ADMIN: Rings = Rings { id: 0, submissions: 0, completions: PAGE };
const IO: Rings = Rings { id: 1, submissions: 2 * PAGE, completions: 3 * PAGE };
const ANSWER: usize = 4 * PAGE;
const BUFFER: usize = 5 * PAGE;

/// Time limit for every step of the controller.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The seed of the written blocks.
const SEED: u64 = 0x6e65_7374;

/// Offsets of a queue pair.
#[derive(Clone, Copy, Debug)]
struct Rings {
    id: u16,
    submissions: usize,
    completions: usize,
}

/// A pair of queues in use.
#[derive(Debug)]
struct Queue {
    rings: Rings,
    tail: u16,
    head: u16,
    /// The phase bit of a new completion.
    phase: u16,
}

#[derive(Debug)]
struct Controller {
    device: Device,
    memory: Memory,
}

/// Drives the controller at the PCI address `name` with `maps` blocks.
pub(crate) fn drive(name: &str, maps: u64) -> Result<String, Error> {
    let controller = Controller { device: Device::open(name)?, memory: Memory::new(6 * PAGE)? };
    controller.device.map(&controller.memory, 0, BUFFER, QUEUES)?;
    let mut admin = controller.enable()?;
    let model = controller.identify(&mut admin)?;
    let mut io = controller.create_queues(&mut admin)?;

    let mut block = [0; BLOCK];
    let iova = |number: u64| DATA + number % 512 * PAGE as u64;
    for number in 0..maps {
        write(&mut block, SEED, number);
        controller.memory.write(BUFFER, &block)?;
        controller.device.map(&controller.memory, BUFFER, PAGE, iova(number))?;
        // The disk is overwritten several times, so that it may be small.
        controller.transfer(&mut io, WRITE, number % 1024, iova(number))?;
        controller.memory.write(BUFFER, &[0; BLOCK])?;
        controller.transfer(&mut io, READ, number % 1024, iova(number))?;
        controller.device.unmap(iova(number), PAGE)?;
        controller.memory.read(BUFFER, &mut block)?;
        if let Some(at) = difference(&block, SEED, number) {
            return Err(format!("block {number} came back different from byte {at} on"));
        }
    }
    // The page is unmapped: the command fails and the memory does not change.
    controller.memory.write(BUFFER, &[0x5a; BLOCK])?;
    if controller.transfer(&mut io, READ, 0, iova(maps - 1)).is_ok() {
        return Err("a read into memory that is not mapped succeeded".to_owned());
    }
    controller.memory.read(BUFFER, &mut block)?;
    if block.iter().any(|byte| *byte != 0x5a) {
        return Err("memory that is not mapped was written".to_owned());
    }
    controller.device.write32(CC, 0)?;
    Ok(format!("{model}: {maps} blocks, each mapped, written, read back, unmapped"))
}

const WRITE: u8 = 1;
const READ: u8 = 2;

impl Controller {
    /// Resets the controller and configures its admin queue.
    fn enable(&self) -> Result<Queue, Error> {
        self.device.write32(CC, 0)?;
        self.wait_ready(false)?;
        let size = u32::from(ENTRIES - 1);
        self.device.write32(AQA, size << 16 | size)?;
        self.device.write64(ASQ, QUEUES + ADMIN.submissions as u64)?;
        self.device.write64(ACQ, QUEUES + ADMIN.completions as u64)?;
        self.device.write32(CC, ENABLE)?;
        self.wait_ready(true)?;
        Ok(Queue { rings: ADMIN, tail: 0, head: 0, phase: 1 })
    }

    fn wait_ready(&self, ready: bool) -> Result<(), Error> {
        let begin = Instant::now();
        while begin.elapsed() < TIMEOUT {
            let status = self.device.read32(CSTS)?;
            if status & 2 != 0 {
                return Err(format!("the controller failed: CSTS {status:#x}"));
            }
            if (status & 1 == 1) == ready {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Err(format!("CSTS.RDY did not become {ready}"))
    }

    /// The controller's model.
    fn identify(&self, admin: &mut Queue) -> Result<String, Error> {
        self.execute(admin, command(6, 0, QUEUES + ANSWER as u64, &[1]))?;
        let mut model = [0; 40];
        self.memory.read(ANSWER + 24, &mut model)?;
        Ok(String::from_utf8_lossy(&model).trim().to_owned())
    }

    /// Creates a completion queue that is polled and a submission queue for it.
    fn create_queues(&self, admin: &mut Queue) -> Result<Queue, Error> {
        let name = u32::from(ENTRIES - 1) << 16 | u32::from(IO.id);
        self.execute(admin, command(5, 0, QUEUES + IO.completions as u64, &[name, 1]))?;
        let for_completions = u32::from(IO.id) << 16;
        self.execute(admin, command(1, 0, QUEUES + IO.submissions as u64, &[name, for_completions | 1]))?;
        Ok(Queue { rings: IO, tail: 0, head: 0, phase: 1 })
    }

    /// Writes or reads the block `number` with the page at `iova`.
    fn transfer(&self, io: &mut Queue, opcode: u8, number: u64, iova: u64) -> Result<(), Error> {
        // In logical blocks of 512 bytes.
        let first = number * (BLOCK as u64 / 512);
        let low = u32::try_from(first & 0xffff_ffff).unwrap_or(0);
        let high = u32::try_from(first >> 32).unwrap_or(0);
        self.execute(io, command(opcode, 1, iova, &[low, high, BLOCK as u32 / 512 - 1]))
    }

    /// Submits a command and waits for its completion.
    fn execute(&self, queue: &mut Queue, entry: [u8; 64]) -> Result<(), Error> {
        self.memory.write(queue.rings.submissions + usize::from(queue.tail) * 64, &entry)?;
        queue.tail = (queue.tail + 1) % ENTRIES;
        let doorbell = DOORBELLS + u64::from(queue.rings.id) * 8;
        self.device.write32(doorbell, u32::from(queue.tail))?;
        let begin = Instant::now();
        let place = queue.rings.completions + usize::from(queue.head) * 16;
        let status = loop {
            let mut status = [0; 2];
            self.memory.read(place + 14, &mut status)?;
            let status = u16::from_le_bytes(status);
            if status & 1 == queue.phase {
                break status >> 1;
            }
            if begin.elapsed() > TIMEOUT {
                return Err(format!("command {:#x} was not completed", entry[0]));
            }
        };
        queue.head = (queue.head + 1) % ENTRIES;
        if queue.head == 0 {
            queue.phase ^= 1;
        }
        self.device.write32(doorbell + 4, u32::from(queue.head))?;
        if status == 0 { Ok(()) } else { Err(format!("command {:#x}: status {status:#x}", entry[0])) }
    }
}

/// A command with one page of data and `words` from dword 10 on.
fn command(opcode: u8, namespace: u32, page: u64, words: &[u32]) -> [u8; 64] {
    let mut entry = [0; 64];
    entry[0] = opcode;
    entry[4..8].copy_from_slice(&namespace.to_le_bytes());
    entry[24..32].copy_from_slice(&page.to_le_bytes());
    for (place, word) in entry[40..].chunks_exact_mut(4).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_has_its_fields_where_the_figure_has_them() {
        let entry = command(READ, 1, 0x1122_3344_5566_7788, &[0xaabb_ccdd, 1]);
        assert_eq!(entry[0], 2);
        assert_eq!(entry[4], 1);
        assert_eq!(entry[24..32], 0x1122_3344_5566_7788_u64.to_le_bytes());
        assert_eq!(entry[40..48], [0xdd, 0xcc, 0xbb, 0xaa, 1, 0, 0, 0]);
        assert!(entry[48..].iter().all(|byte| *byte == 0));
    }
}
