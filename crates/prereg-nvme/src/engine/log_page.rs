//! Log pages (section 5.14.1) other than the error log.

use super::identify::TEMPERATURE;
use crate::spec::Page;
use crate::spec::number::{admin, io};

/// The counts in the health log, since the model was made.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Health {
    /// Bytes read by guests.
    pub bytes_read: u64,
    /// Bytes written by guests.
    pub bytes_written: u64,
    /// Read and Compare commands.
    pub reads: u64,
    /// Write commands.
    pub writes: u64,
    /// Sum of the latencies of all commands, in minutes.
    pub busy_minutes: u64,
    /// Controllers that were attached.
    pub power_cycles: u64,
    /// Hours since the model was made.
    pub power_on_hours: u64,
    /// Controllers that were detached without a shutdown.
    pub unsafe_shutdowns: u64,
    /// Commands that failed with a media error.
    pub media_errors: u64,
}

/// SMART / Health Information (figure 194).
pub(crate) fn smart(
    health: &Health,
    errors: u64,
    is_temperature_outside: bool,
    all_read_only: bool,
) -> Vec<u8> {
    // Critical warnings: bit 1 temperature, bit 3 media are read only.
    let warning = u8::from(is_temperature_outside) << 1 | u8::from(all_read_only) << 3;
    let mut page = Page::zeroed();
    page.put_u8(0, warning);
    page.put_u16(1, TEMPERATURE);
    page.put_u8(3, 100); // available spare, in percent
    page.put_u8(4, 10); // and its threshold
    // Units of 1000 times 512 bytes, rounded up.
    let units = |bytes: u64| u128::from(bytes.div_ceil(512_000));
    page.put_u128(32, units(health.bytes_read));
    page.put_u128(48, units(health.bytes_written));
    page.put_u128(64, u128::from(health.reads));
    page.put_u128(80, u128::from(health.writes));
    page.put_u128(96, u128::from(health.busy_minutes));
    page.put_u128(112, u128::from(health.power_cycles));
    page.put_u128(128, u128::from(health.power_on_hours));
    page.put_u128(144, u128::from(health.unsafe_shutdowns));
    page.put_u128(160, u128::from(health.media_errors));
    page.put_u128(176, u128::from(errors));
    page.bytes()[..512].to_vec()
}

/// Firmware Slot Information: one slot, active.
pub(crate) fn firmware(revision: &str) -> Vec<u8> {
    let mut page = Page::zeroed();
    page.put_u8(0, 1);
    page.put_text(8, 8, revision);
    page.bytes()[..512].to_vec()
}

/// Changed Namespace List.
pub(crate) fn changed(namespaces: &[u32]) -> Vec<u8> {
    let mut page = Page::zeroed();
    for (at, nsid) in namespaces.iter().enumerate() {
        page.put_u32(at * 4, *nsid);
    }
    page.bytes().to_vec()
}

/// Commands Supported and Effects.
pub(crate) fn effects(shadow_doorbells: bool) -> Vec<u8> {
    const SUPPORTED: u32 = 1;
    /// The command may change logical blocks (LBCC).
    const CONTENT: u32 = 1 << 1;
    let mut page = Page::zeroed();
    let plain = [
        admin::DELETE_SQ,
        admin::CREATE_SQ,
        admin::GET_LOG_PAGE,
        admin::DELETE_CQ,
        admin::CREATE_CQ,
        admin::IDENTIFY,
        admin::ABORT,
        admin::SET_FEATURES,
        admin::GET_FEATURES,
        admin::ASYNC_EVENT,
    ];
    for opcode in plain {
        page.put_u32(usize::from(opcode) * 4, SUPPORTED);
    }
    if shadow_doorbells {
        page.put_u32(usize::from(admin::DOORBELL_BUFFER) * 4, SUPPORTED);
    }
    for opcode in [io::FLUSH, io::READ, io::COMPARE] {
        page.put_u32(1024 + usize::from(opcode) * 4, SUPPORTED);
    }
    for opcode in [io::WRITE, io::WRITE_ZEROES, io::DATASET] {
        page.put_u32(1024 + usize::from(opcode) * 4, SUPPORTED | CONTENT);
    }
    page.bytes().to_vec()
}
