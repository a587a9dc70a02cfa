//! The health log of an NVMe controller, asked through the kernel's passthrough.
//!
//! Numbers and layouts are those of the kernel's `linux/nvme_ioctl.h` and of NVMe 1.4 section 5.14.1.2.

#![expect(unsafe_code, reason = "an ioctl")]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::Failure;

/// `NVME_IOCTL_ADMIN_CMD`: `_IOWR('N', 0x41, struct nvme_passthru_cmd)`.
const ADMIN_COMMAND: libc::c_ulong = 0xc048_4e41;
const GET_LOG_PAGE: u8 = 0x02;
const SMART: u32 = 0x02;
const LOG_BYTES: usize = 512;
/// Number of Error Information Log Entries.
const ERRORS: usize = 176;

/// `struct nvme_passthru_cmd`.
#[repr(C)]
#[derive(Default)]
struct AdminCommand {
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

/// How many entries the error log of the controller at `path` ever had.
///
/// # Errors
/// When the controller cannot be asked.
pub(crate) fn errors(path: &Path) -> Result<u64, Failure> {
    let failed = |error: io::Error| format!("{}: {error}", path.display());
    let controller = File::open(path).map_err(failed)?;
    let mut log = [0u8; LOG_BYTES];
    let mut command = AdminCommand {
        opcode: GET_LOG_PAGE,
        nsid: u32::MAX,
        data: log.as_mut_ptr().expose_provenance() as u64,
        data_bytes: LOG_BYTES as u32,
        dwords_10_15: [SMART | ((LOG_BYTES / 4 - 1) as u32) << 16, 0, 0, 0, 0, 0],
        ..AdminCommand::default()
    };
    // SAFETY: the structure is what this ioctl takes; the kernel writes `data_bytes` to `log`, which lives until the end.
    let status = unsafe { libc::ioctl(controller.as_raw_fd(), ADMIN_COMMAND as _, &raw mut command) };
    match status {
        0 => Ok(log[ERRORS..ERRORS + 8].iter().rev().fold(0, |count, byte| count << 8 | u64::from(*byte))),
        ..0 => Err(failed(io::Error::last_os_error())),
        _ => Err(format!("{}: the health log was refused with status {status:#x}", path.display())),
    }
}
