//! NVMe commands through the kernel's passthrough: the health log, and the statuses of a list of commands.
//!
//! Numbers and layouts are those of the kernel's `linux/nvme_ioctl.h` and of NVMe 1.4.

#![expect(unsafe_code, reason = "an ioctl")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::error::Error;

/// `NVME_IOCTL_ADMIN_CMD`: `_IOWR('N', 0x41, struct nvme_passthru_cmd)`.
const ADMIN: libc::c_ulong = 0xc048_4e41;
/// `NVME_IOCTL_IO_CMD`.
const IO: libc::c_ulong = 0xc048_4e43;
const EVERY: u32 = u32::MAX;
const BUFFER: usize = 4096;
/// Number of Error Information Log Entries in the health log (section 5.14.1.2).
const ERRORS: usize = 176;

/// `struct nvme_passthru_cmd`.
#[repr(C)]
#[derive(Default)]
struct Passthrough {
    opcode: u8,
    flags: u8,
    reserved: u16,
    nsid: u32,
    dwords_2_3: [u32; 2],
    metadata: u64,
    data: u64,
    metadata_bytes: u32,
    data_bytes: u32,
    dwords_10_15: [u32; 6],
    timeout_ms: u32,
    result: u32,
}

/// A command: opcode, namespace, dwords 10 to 15, and bytes of data.
#[derive(Clone, Copy)]
struct Command(u8, u32, [u32; 6], usize);

/// Sends `command`; returns its status: type and code, with Do Not Retry in bit 14.
fn send(file: &File, queue: libc::c_ulong, command: Command, data: &mut [u8; BUFFER]) -> io::Result<u32> {
    let Command(opcode, nsid, dwords_10_15, bytes) = command;
    let bytes = bytes.min(BUFFER);
    let mut raw = Passthrough {
        opcode,
        nsid,
        data: if bytes == 0 { 0 } else { data.as_mut_ptr().expose_provenance() as u64 },
        data_bytes: bytes as u32,
        dwords_10_15,
        timeout_ms: 10_000,
        ..Passthrough::default()
    };
    // SAFETY: the structure is what these ioctls take; the kernel reads or writes `data_bytes` of `data`, which lives until
    // it returns.
    let status = unsafe { libc::ioctl(file.as_raw_fd(), queue as _, &raw mut raw) };
    u32::try_from(status).map_err(|_| io::Error::last_os_error())
}

fn open(path: &Path) -> Result<File, Error> {
    File::open(path).map_err(|error| format!("{}: {error}", path.display()))
}

/// The number of entries that the error log of the controller at `path` ever had.
///
/// # Errors
/// If the command fails.
pub(crate) fn errors(path: &Path) -> Result<u64, Error> {
    let controller = open(path)?;
    let mut log = [0; BUFFER];
    let smart = Command(0x02, EVERY, [0x02 | 127 << 16, 0, 0, 0, 0, 0], 512);
    match send(&controller, ADMIN, smart, &mut log) {
        Ok(0) => {
            Ok(log[ERRORS..ERRORS + 8].iter().rev().fold(0, |count, byte| count << 8 | u64::from(*byte)))
        }
        Ok(status) => Err(format!("{}: the health log was refused with status {status:#x}", path.display())),
        Err(error) => Err(format!("{}: {error}", path.display())),
    }
}

/// The statuses of a list of commands to the controller at `controller` and to `namespace`, one per line. Overwrites blocks 0
/// to 7 of the namespace.
///
/// # Errors
/// If one of them cannot be opened.
pub(crate) fn statuses(controller: &Path, namespace: &Path) -> Result<String, Error> {
    let (admin, io) = (open(controller)?, open(namespace)?);
    let mut lines = Vec::new();
    let mut say = |name: String, file: &File, queue, command, fill: u8| {
        let mut data = [fill; BUFFER];
        let status = match send(file, queue, command, &mut data) {
            Ok(status) => format!("{status:04x}"),
            Err(error) => format!("errno {}", error.raw_os_error().unwrap_or(0)),
        };
        lines.push(format!("{name}: {status}"));
    };
    for (cns, nsid) in IDENTIFY {
        let command = Command(0x06, nsid, [cns, 0, 0, 0, 0, 0], BUFFER);
        say(format!("identify CNS {cns:02x} NSID {nsid:x}"), &admin, ADMIN, command, 0);
    }
    let other_set = Command(0x06, 1, [6, 2 << 24, 0, 0, 0, 0], BUFFER);
    say("identify CNS 06 CSI 2".to_owned(), &admin, ADMIN, other_set, 0);
    for (page, nsid, offset) in LOGS {
        let command = Command(0x02, nsid, [page | 127 << 16, 0, offset, 0, 0, 0], 512);
        say(format!("log {page:02x} NSID {nsid:x} offset {offset}"), &admin, ADMIN, command, 0);
    }
    for (feature, nsid, value) in FEATURES {
        let command = Command(0x0a, nsid, [feature, value, 0, 0, 0, 0], BUFFER);
        say(format!("get feature {feature:x} NSID {nsid:x} {value:x}"), &admin, ADMIN, command, 0);
    }
    for (feature, nsid, value) in SETTINGS {
        let command = Command(0x09, nsid, [feature, value, 0, 0, 0, 0], BUFFER);
        say(format!("set feature {feature:x} NSID {nsid:x} {value:x}"), &admin, ADMIN, command, 0);
    }
    for (name, opcode, words) in ADMIN_COMMANDS {
        say(name.to_owned(), &admin, ADMIN, Command(opcode, 0, words, 0), 0);
    }
    for (name, opcode, words, bytes, fill) in IO_COMMANDS {
        say(name.to_owned(), &io, IO, Command(opcode, 1, words, bytes), fill);
    }
    Ok(lines.join("\n"))
}

const IDENTIFY: [(u32, u32); 27] = [
    (0, 0),
    (0, 1),
    (0, 99),
    (0, EVERY),
    (1, 0),
    (2, 0),
    (2, EVERY - 1),
    (2, EVERY),
    (3, 0),
    (3, 1),
    (3, 99),
    (4, 0),
    (5, 0),
    (5, 1),
    (5, 99),
    (6, 0),
    (7, 0),
    (8, 1),
    (0x10, 0),
    (0x11, 1),
    (0x12, 1),
    (0x13, 0),
    (0x14, 0),
    (0x15, 0),
    (0x16, 0),
    (0x17, 0),
    (0x77, 0),
];

const LOGS: [(u32, u32, u32); 22] = [
    (0, EVERY, 0),
    (1, EVERY, 0),
    (1, 0, 0),
    (2, EVERY, 0),
    (2, 0, 0),
    (2, 1, 0),
    (2, 99, 0),
    (2, EVERY, 2),
    (2, EVERY, 512),
    (2, EVERY, 516),
    (3, EVERY, 0),
    (4, EVERY, 0),
    (5, EVERY, 0),
    (6, EVERY, 0),
    (7, EVERY, 0),
    (8, EVERY, 0),
    (9, EVERY, 0),
    (0xc, EVERY, 0),
    (0xd, EVERY, 0),
    (0x80, EVERY, 0),
    (0x81, EVERY, 0),
    (0xc0, EVERY, 0),
];

const FEATURES: [(u32, u32, u32); 46] = [
    (0, 0, 0),
    (1, 0, 0),
    (2, 0, 0),
    (3, 1, 0),
    (4, 0, 0),
    (4, 0, 1 << 20),
    (4, 0, 3 << 16),
    (4, 0, 0xf << 16),
    (5, 0, 0),
    (5, 1, 0),
    (5, 99, 0),
    (5, EVERY, 0),
    (6, 0, 0),
    (6, 1, 0),
    (6, 99, 0),
    (7, 0, 0),
    (8, 0, 0),
    (9, 0, 0),
    (9, 0, 31),
    (9, 0, 0xffff),
    (0xa, 0, 0),
    (0xb, 0, 0),
    (0xc, 0, 0),
    (0xd, 0, 0),
    (0xe, 0, 0),
    (0xf, 0, 0),
    (0x10, 0, 0),
    (0x11, 0, 0),
    (0x16, 0, 0),
    (0x17, 0, 0),
    (0x1d, 0, 0),
    (0x7f, 0, 0),
    (0x80, 0, 0),
    (0x81, 0, 0),
    (0x81, 0, 1),
    (0x82, 1, 0),
    (0x83, 1, 0),
    (0x84, 1, 0),
    (0x106, 0, 0),
    (0x206, 0, 0),
    (0x306, 0, 0),
    (0x406, 0, 0),
    (0x305, 0, 0),
    (0x305, 1, 0),
    (0x37f, 0, 0),
    (0x109, 0, 0),
];

/// Without 07h and 0Ch, which the kernel reserves.
const SETTINGS: [(u32, u32, u32); 21] = [
    (0, 0, 0),
    (1, 0, 4),
    (1, 1, 4),
    (2, 0, 0),
    (2, 0, 1),
    (3, 1, 0),
    (4, 0, 400),
    (4, 0, 3 << 16),
    (4, 0, 2 << 20),
    (5, 0, 0),
    (5, 1, 0),
    (5, 99, 0),
    (5, EVERY, 0),
    (5, 1, 1 << 16),
    (6, 99, 1),
    (8, 0, 0),
    (9, 0, 0xffff),
    (0xa, 0, 0),
    (0x7f, 0, 0),
    (6 | 1 << 31, 0, 1),
    (0x80, 0, 0),
];

const ADMIN_COMMANDS: [(&str, u8, [u32; 6]); 28] = [
    ("delete SQ 0", 0x00, [0; 6]),
    ("delete SQ 999", 0x00, [999, 0, 0, 0, 0, 0]),
    ("delete CQ 0", 0x04, [0; 6]),
    ("delete CQ 999", 0x04, [999, 0, 0, 0, 0, 0]),
    ("delete CQ 1, in use", 0x04, [1, 0, 0, 0, 0, 0]),
    ("create CQ 0", 0x05, [15 << 16, 1, 0, 0, 0, 0]),
    ("create CQ 1, exists", 0x05, [15 << 16 | 1, 1, 0, 0, 0, 0]),
    ("create CQ 999", 0x05, [15 << 16 | 999, 1, 0, 0, 0, 0]),
    ("create CQ 9, 1 entry", 0x05, [9, 1, 0, 0, 0, 0]),
    ("create CQ 9, 65536 entries", 0x05, [0xffff << 16 | 9, 1, 0, 0, 0, 0]),
    ("create CQ 9, vector 9999", 0x05, [15 << 16 | 9, 9999 << 16 | 3, 0, 0, 0, 0]),
    ("create CQ 9, not contiguous", 0x05, [15 << 16 | 9, 0, 0, 0, 0, 0]),
    ("create SQ 0", 0x01, [15 << 16, 1 << 16 | 1, 0, 0, 0, 0]),
    ("create SQ 1, exists", 0x01, [15 << 16 | 1, 1 << 16 | 1, 0, 0, 0, 0]),
    ("create SQ 9 of CQ 0", 0x01, [15 << 16 | 9, 1, 0, 0, 0, 0]),
    ("create SQ 9 of CQ 12, not there", 0x01, [15 << 16 | 9, 12 << 16 | 1, 0, 0, 0, 0]),
    ("create SQ 9 of CQ 999", 0x01, [15 << 16 | 9, 999 << 16 | 1, 0, 0, 0, 0]),
    ("create SQ 9, 1 entry", 0x01, [9, 1 << 16 | 1, 0, 0, 0, 0]),
    ("abort of nothing", 0x08, [1 | 0xfff0 << 16, 0, 0, 0, 0, 0]),
    ("abort in SQ 999", 0x08, [999, 0, 0, 0, 0, 0]),
    ("firmware commit", 0x10, [0; 6]),
    ("self-test", 0x14, [1, 0, 0, 0, 0, 0]),
    ("keep alive", 0x18, [0; 6]),
    ("virtualization management", 0x1c, [0; 6]),
    ("security receive", 0x82, [0; 6]),
    ("sanitize", 0x84, [2, 0, 0, 0, 0, 0]),
    ("LBA status", 0x86, [0; 6]),
    ("opcode ff", 0xff, [0; 6]),
];

const FAR: u32 = 0x7fff_fff0;

const IO_COMMANDS: [(&str, u8, [u32; 6], usize, u8); 28] = [
    ("write", 0x01, [0, 0, 7, 0, 0, 0], 4096, 7),
    ("write FUA", 0x01, [0, 0, 1 << 30 | 7, 0, 0, 0], 4096, 7),
    ("read", 0x02, [0, 0, 7, 0, 0, 0], 4096, 0),
    ("read FUA", 0x02, [0, 0, 1 << 30 | 7, 0, 0, 0], 4096, 0),
    ("compare, equal", 0x05, [0, 0, 7, 0, 0, 0], 4096, 7),
    ("compare, different", 0x05, [0, 0, 7, 0, 0, 0], 4096, 8),
    ("flush", 0x00, [0; 6], 0, 0),
    ("read beyond the end", 0x02, [FAR, 0, 7, 0, 0, 0], 4096, 0),
    ("read at 2^64 - 1", 0x02, [EVERY, EVERY, 7, 0, 0, 0], 4096, 0),
    ("write beyond the end", 0x01, [FAR, 0, 7, 0, 0, 0], 4096, 0),
    ("compare beyond the end", 0x05, [FAR, 0, 7, 0, 0, 0], 4096, 0),
    ("read with PRINFO", 0x02, [0, 0, 0xf << 26 | 7, 0, 0, 0], 4096, 0),
    ("write with a directive", 0x01, [0, 0, 1 << 20 | 7, 1 << 16, 0, 0], 4096, 7),
    ("write zeroes", 0x08, [0, 0, 7, 0, 0, 0], 0, 0),
    ("write zeroes, deallocate", 0x08, [0, 0, 1 << 25 | 7, 0, 0, 0], 0, 0),
    ("write zeroes, 65536 blocks beyond the end", 0x08, [FAR, 0, 0xffff, 0, 0, 0], 0, 0),
    ("dataset management, a hint", 0x09, [0, 1, 0, 0, 0, 0], 16, 0),
    ("deallocate no blocks", 0x09, [0, 4, 0, 0, 0, 0], 16, 0),
    ("deallocate beyond the end", 0x09, [0, 4, 0, 0, 0, 0], 16, 0x11),
    ("write uncorrectable", 0x04, [0, 0, 7, 0, 0, 0], 0, 0),
    ("verify", 0x0c, [0, 0, 7, 0, 0, 0], 0, 0),
    ("verify beyond the end", 0x0c, [FAR, 0, 7, 0, 0, 0], 0, 0),
    ("reservation register", 0x0d, [0; 6], 16, 0),
    ("reservation report", 0x0e, [15, 0, 0, 0, 0, 0], 64, 0),
    ("reservation acquire", 0x11, [0; 6], 16, 0),
    ("reservation release", 0x15, [0; 6], 8, 0),
    ("copy no range", 0x19, [0; 6], 32, 0),
    ("opcode 7f", 0x7f, [0; 6], 0, 0),
];
