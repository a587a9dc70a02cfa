//! Controller registers (section 3.1): offsets and bits.

/// Controller Capabilities, 8 bytes, read only.
pub const CAP: u64 = 0x00;
/// Version, read only.
pub const VS: u64 = 0x08;
/// Interrupt Mask Set.
pub const INTMS: u64 = 0x0c;
/// Interrupt Mask Clear.
pub const INTMC: u64 = 0x10;
/// Controller Configuration.
pub const CC: u64 = 0x14;
/// Controller Status, read only.
pub const CSTS: u64 = 0x1c;
/// Admin Queue Attributes.
pub const AQA: u64 = 0x24;
/// Admin Submission Queue Base Address, 8 bytes.
pub const ASQ: u64 = 0x28;
/// Admin Completion Queue Base Address, 8 bytes.
pub const ACQ: u64 = 0x30;
/// The first doorbell: the tail of the admin submission queue.
pub const DOORBELLS: u64 = 0x1000;

/// Version 1.4.0.
pub(crate) const VERSION: u32 = 0x0001_0400;

/// CC.EN: enabled.
pub const CC_ENABLE: u32 = 1;
/// CSTS.RDY: ready.
pub(crate) const CSTS_READY: u32 = 1;
/// CSTS.CFS: fatal error.
pub(crate) const CSTS_FATAL: u32 = 1 << 1;
/// CSTS.SHST: shutdown in progress.
pub(crate) const CSTS_SHUTTING: u32 = 1 << 2;
/// CSTS.SHST: shutdown complete.
pub(crate) const CSTS_SHUT: u32 = 2 << 2;
/// All bits of CSTS.SHST.
pub(crate) const CSTS_SHUTDOWN: u32 = 3 << 2;

/// CC.CSS: the command set; 0 is the NVM command set.
pub(crate) const fn command_set(cc: u32) -> u32 {
    cc >> 4 & 7
}

/// CC.MPS as a shift: 12 and up.
#[must_use]
pub const fn page_shift(cc: u32) -> u32 {
    12 + (cc >> 7 & 0xf)
}

/// CC.AMS: 0 is round robin.
pub(crate) const fn arbitration(cc: u32) -> u32 {
    cc >> 11 & 7
}

/// CC.SHN: 0 no shutdown, 1 normal, 2 abrupt.
#[must_use]
pub const fn shutdown(cc: u32) -> u32 {
    cc >> 14 & 3
}

/// CC.IOSQES, as a shift.
pub(crate) const fn submission_shift(cc: u32) -> u32 {
    cc >> 16 & 0xf
}

/// CC.IOCQES, as a shift.
pub(crate) const fn completion_shift(cc: u32) -> u32 {
    cc >> 20 & 0xf
}

/// The bits of CC that revision 1.4 defines.
pub(crate) const CC_DEFINED: u32 = 0x00ff_fff1;

/// CAP for queues of up to `entries`, memory pages of 4 KiB to 64 KiB, round robin, contiguous queues, the NVM command set, and
/// a timeout of `half_seconds`.
pub(crate) const fn capabilities(entries: u32, half_seconds: u8) -> u64 {
    const CONTIGUOUS: u64 = 1 << 16;
    const NVM_COMMANDS: u64 = 1 << 37;
    const LARGEST_PAGE: u64 = ((MAX_PAGE_SHIFT - 12) as u64) << 52;
    (entries - 1) as u64 | CONTIGUOUS | (half_seconds as u64) << 24 | NVM_COMMANDS | LARGEST_PAGE
}

/// The largest memory page: 64 KiB.
pub(crate) const MAX_PAGE_SHIFT: u32 = 16;
