//! A guest that does anything, and what must hold whatever it does.
//!
//! A script is bytes. They say what the guest writes to registers, doorbells and its memory, which memory is unmapped and
//! mapped again, and what the disks do. Whatever that is: nothing panics; a reset completes; then no command is in flight, no
//! memory is held, and the write protected disk is unchanged.

use prereg::Iova;

use crate::world::{Machine, command, with_prp};

/// Bytes of guest memory, and of each disk.
const RAM: usize = 128 << 10;
const DISK: usize = 64 << 10;
/// Queue `id` is at `QUEUES + id * 0x2000`, its completion queue a page later.
const QUEUES: u64 = 0x1000;
const ENTRIES: u32 = 16;
const LINUX: u32 = 0x0046_0001;
/// Rounds within which a controller must stop.
const PATIENCE: u32 = 1000;

struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn word(&mut self) -> Option<u32> {
        let (first, rest) = self.0.split_first_chunk::<4>()?;
        self.0 = rest;
        Some(u32::from_le_bytes(*first))
    }

    fn bytes(&mut self, most: u8) -> Option<Vec<u8>> {
        let count = usize::from(self.byte()? % most + 1).min(self.0.len());
        let (first, rest) = self.0.split_at(count);
        self.0 = rest;
        Some(first.to_vec())
    }

    /// An address: mostly of a page that exists, sometimes anything.
    fn address(&mut self) -> Option<u64> {
        let (kind, page) = (self.byte()?, u64::from(self.byte()?));
        Some(match kind % 8 {
            0 => u64::MAX << (page % 64),
            1 => page % 32 * 0x1000 + u64::from(self.byte()?) * 8,
            2 => page % 32 * 0x1000 + 0xff8,
            _ => page % 32 * 0x1000,
        })
    }
}

/// The tails, and the next command identifier.
#[derive(Default)]
struct Guest {
    tails: [u32; 3],
    cid: u32,
}

impl Guest {
    fn put(&mut self, machine: &mut Machine, queue: usize, mut command: [u32; 16]) {
        self.cid += 1;
        command[0] = command[0] & 0xffff | self.cid << 16;
        let at = QUEUES + queue as u64 * 0x2000 + u64::from(self.tails[queue]) * 64;
        let bytes: Vec<u8> = command.iter().flat_map(|word| word.to_le_bytes()).collect();
        machine.ram.put(at, &bytes);
        self.tails[queue] = (self.tails[queue] + 1) % ENTRIES;
        machine.ring(queue * 2, self.tails[queue]);
    }

    /// As a driver starts: the admin queue and two pairs more.
    fn begin(&mut self, machine: &mut Machine) {
        machine.write_u32(0x24, (ENTRIES - 1) << 16 | (ENTRIES - 1));
        machine.write(0x28, &QUEUES.to_le_bytes());
        machine.write(0x30, &(QUEUES + 0x1000).to_le_bytes());
        machine.write_u32(0x14, LINUX);
        self.tails = [0; 3];
        for id in 1..=2u32 {
            let (at, size) = (QUEUES + u64::from(id) * 0x2000, (ENTRIES - 1) << 16 | id);
            let cq = command(5, 0, &[(10, size), (11, id << 16 | 3)]);
            self.put(machine, 0, with_prp(cq, at + 0x1000, 0));
            machine.run();
            self.put(machine, 0, with_prp(command(1, 0, &[(10, size), (11, id << 16 | 1)]), at, 0));
            machine.run();
        }
    }
}

/// Runs `script` and checks what must hold.
pub(crate) fn judge(script: &[u8]) {
    let mut script = Script(script);
    let mut machine = Machine::sized(4, RAM, DISK);
    machine.disks.inner().images[1].fill(0x77);
    let mut guest = Guest::default();
    if script.byte().is_some_and(|first| first % 4 != 0) {
        guest.begin(&mut machine);
    }
    while follow(&mut script, &mut machine, &mut guest).is_some() {}
    machine.ram.mend();
    machine.ram.settle(true);
    machine.disks.inner().stuck = false;
    machine.write_u32(0x14, LINUX & !1);
    // One that was never enabled is stopped already.
    for _ in 0..PATIENCE {
        machine.step();
    }
    assert_eq!(machine.read_u32(0x1c) & 1, 0, "it stops");
    assert_eq!((machine.poll_group.in_flight(), machine.ram.holds()), (0, 0), "nothing is under way");
    assert!(machine.disks.inner().images[1].iter().all(|byte| *byte == 0x77), "write protected");
    // It can be enabled again.
    guest.begin(&mut machine);
    assert_eq!(machine.read_u32(0x1c), 1, "it works");
}

fn follow(script: &mut Script<'_>, machine: &mut Machine, guest: &mut Guest) -> Option<()> {
    match script.byte()? % 16 {
        0 => {
            let offset = u64::from(script.byte()? % 0x40);
            let bytes = script.bytes(8)?;
            machine.write(offset, &bytes);
        }
        1 => {
            let (at, bytes) = (script.address()?, script.bytes(64)?);
            if at.checked_add(bytes.len() as u64).is_some_and(|end| end <= RAM as u64) {
                machine.ram.put(at, &bytes);
            }
        }
        // A PRP list.
        2 => {
            let (at, count) = (script.address()?, u64::from(script.byte()?));
            for entry in 0..count {
                let page = script.address()?;
                let place = at.checked_add(entry * 8)?;
                if place.checked_add(8)? <= RAM as u64 {
                    machine.ram.put_u64(place, page);
                }
            }
        }
        3 | 4 => {
            let (at, value) = (script.byte()?, script.byte()?);
            machine.ring(usize::from(at % 16), u32::from(value % 32));
        }
        5 => {
            let (at, value) = (script.byte()?, script.word()?);
            machine.ring(usize::from(at), value);
        }
        6 => {
            for _ in 0..script.byte()? % 32 {
                machine.step();
            }
        }
        7 => {
            let (at, pages) = (script.address()?, u64::from(script.byte()? % 4) + 1);
            machine.ram.hole(at..at.saturating_add(pages * 0x1000));
        }
        8 => machine.ram.mend(),
        9 => {
            let settled = script.byte()?;
            machine.ram.settle(settled % 2 == 0);
            let (at, bytes) = (Iova::new(script.address()?), u64::from(settled) * 0x400);
            machine.poll_group.release_in(at, bytes);
            machine.admin_queue.release_in(at, bytes);
        }
        10 => machine.pass(u64::from(script.byte()?) << 24),
        11 => {
            let (stuck, room) = (script.byte()?, script.byte()?);
            let mut disks = machine.disks.inner();
            disks.stuck = stuck % 2 == 1;
            disks.room = usize::from(room % 64) + 1;
            disks.broken = stuck > 250;
        }
        // A command: opcode, namespace, two pointers, and a few dwords.
        kind => {
            let (queue, opcode, nsid) = (script.byte()? % 3, script.byte()?, script.byte()?);
            let opcode = if kind == 12 { opcode } else { opcode % 16 };
            let nsid = if nsid % 8 == 7 { u32::MAX } else { u32::from(nsid % 6) };
            let (first, second) = (script.address()?, script.address()?);
            let mut words = with_prp(command(opcode, nsid, &[]), first, second);
            for _ in 0..script.byte()? % 4 {
                let (at, value) = (script.byte()?, script.word()?);
                words[usize::from(at % 16)] = value;
            }
            for (at, mask) in [(10, 0x3f), (12, 0xf)] {
                let value = u32::from(script.byte()?);
                if words[at] == 0 {
                    words[at] = value & mask;
                }
            }
            guest.put(machine, usize::from(queue), words);
            machine.step();
        }
    }
    Some(())
}
