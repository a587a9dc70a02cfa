//! Opcodes, identifiers and sizes.

/// Bytes of a submission queue entry.
pub(crate) const SUBMISSION_BYTES: u64 = 64;
/// Bytes of a completion queue entry.
pub(crate) const COMPLETION_BYTES: u64 = 16;
/// The namespace identifier for all namespaces.
pub(crate) const BROADCAST: u32 = 0xffff_ffff;

/// Admin command opcodes (figure 139).
pub(crate) mod admin {
    pub(crate) const DELETE_SQ: u8 = 0x00;
    pub(crate) const CREATE_SQ: u8 = 0x01;
    pub(crate) const GET_LOG_PAGE: u8 = 0x02;
    pub(crate) const DELETE_CQ: u8 = 0x04;
    pub(crate) const CREATE_CQ: u8 = 0x05;
    pub(crate) const IDENTIFY: u8 = 0x06;
    pub(crate) const ABORT: u8 = 0x08;
    pub(crate) const SET_FEATURES: u8 = 0x09;
    pub(crate) const GET_FEATURES: u8 = 0x0a;
    pub(crate) const ASYNC_EVENT: u8 = 0x0c;
    pub(crate) const DOORBELL_BUFFER: u8 = 0x7c;
}

/// I/O command opcodes of the NVM command set (figure 346).
pub(crate) mod io {
    pub(crate) const FLUSH: u8 = 0x00;
    pub(crate) const WRITE: u8 = 0x01;
    pub(crate) const READ: u8 = 0x02;
    pub(crate) const COMPARE: u8 = 0x05;
    pub(crate) const WRITE_ZEROES: u8 = 0x08;
    pub(crate) const DATASET: u8 = 0x09;
}

/// Log page identifiers (figure 191).
pub(crate) mod log {
    pub(crate) const ERROR: u8 = 0x01;
    pub(crate) const SMART: u8 = 0x02;
    pub(crate) const FIRMWARE: u8 = 0x03;
    pub(crate) const CHANGED_NAMESPACES: u8 = 0x04;
    pub(crate) const EFFECTS: u8 = 0x05;
}

/// Feature identifiers (figure 271).
pub(crate) mod feature {
    pub(crate) const ARBITRATION: u8 = 0x01;
    pub(crate) const POWER: u8 = 0x02;
    pub(crate) const TEMPERATURE: u8 = 0x04;
    pub(crate) const ERROR_RECOVERY: u8 = 0x05;
    pub(crate) const WRITE_CACHE: u8 = 0x06;
    pub(crate) const QUEUES: u8 = 0x07;
    pub(crate) const COALESCING: u8 = 0x08;
    pub(crate) const VECTOR: u8 = 0x09;
    pub(crate) const ATOMICITY: u8 = 0x0a;
    pub(crate) const ASYNC_EVENTS: u8 = 0x0b;
    pub(crate) const HOST_IDENTIFIER: u8 = 0x81;
}

/// Values of CNS for Identify (figure 244).
pub(crate) mod cns {
    pub(crate) const NAMESPACE: u8 = 0x00;
    pub(crate) const CONTROLLER: u8 = 0x01;
    pub(crate) const ACTIVE: u8 = 0x02;
    pub(crate) const DESCRIPTORS: u8 = 0x03;
    pub(crate) const COMMAND_SET_NAMESPACE: u8 = 0x05;
    pub(crate) const COMMAND_SET_CONTROLLER: u8 = 0x06;
    pub(crate) const ALLOCATED: u8 = 0x10;
    pub(crate) const ALLOCATED_NAMESPACE: u8 = 0x11;
    pub(crate) const ATTACHED_CONTROLLERS: u8 = 0x12;
    pub(crate) const CONTROLLERS: u8 = 0x13;
}
