//! Opcodes, identifiers and sizes.

/// Bytes of a submission queue entry.
pub const SUBMISSION_BYTES: u64 = 64;
/// Bytes of a completion queue entry.
pub const COMPLETION_BYTES: u64 = 16;
/// The namespace identifier for all namespaces.
pub const BROADCAST: u32 = 0xffff_ffff;

/// Admin command opcodes (figure 139).
pub mod admin {
    #![expect(missing_docs, reason = "the names are the specification's own")]
    pub const DELETE_SQ: u8 = 0x00;
    pub const CREATE_SQ: u8 = 0x01;
    pub const GET_LOG_PAGE: u8 = 0x02;
    pub const DELETE_CQ: u8 = 0x04;
    pub const CREATE_CQ: u8 = 0x05;
    pub const IDENTIFY: u8 = 0x06;
    pub const ABORT: u8 = 0x08;
    pub const SET_FEATURES: u8 = 0x09;
    pub const GET_FEATURES: u8 = 0x0a;
    pub const ASYNC_EVENT: u8 = 0x0c;
    pub const DOORBELL_BUFFER: u8 = 0x7c;
}

/// I/O command opcodes of the NVM command set (figure 346).
pub mod io {
    #![expect(missing_docs, reason = "the names are the specification's own")]
    pub const FLUSH: u8 = 0x00;
    pub const WRITE: u8 = 0x01;
    pub const READ: u8 = 0x02;
    pub const COMPARE: u8 = 0x05;
    pub const WRITE_ZEROES: u8 = 0x08;
    pub const DATASET: u8 = 0x09;
}

/// Log page identifiers (figure 191).
pub mod log {
    #![expect(missing_docs, reason = "the names are the specification's own")]
    pub const ERROR: u8 = 0x01;
    pub const SMART: u8 = 0x02;
    pub const FIRMWARE: u8 = 0x03;
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    pub const EFFECTS: u8 = 0x05;
}

/// Feature identifiers (figure 271).
pub mod feature {
    #![expect(missing_docs, reason = "the names are the specification's own")]
    pub const ARBITRATION: u8 = 0x01;
    pub const POWER: u8 = 0x02;
    pub const TEMPERATURE: u8 = 0x04;
    pub const ERROR_RECOVERY: u8 = 0x05;
    pub const WRITE_CACHE: u8 = 0x06;
    pub const QUEUES: u8 = 0x07;
    pub const COALESCING: u8 = 0x08;
    pub const VECTOR: u8 = 0x09;
    pub const ATOMICITY: u8 = 0x0a;
    pub const ASYNC_EVENTS: u8 = 0x0b;
    pub const HOST_IDENTIFIER: u8 = 0x81;
}

/// Values of CNS for Identify (figure 244).
pub mod cns {
    #![expect(missing_docs, reason = "the names are the specification's own")]
    pub const NAMESPACE: u8 = 0x00;
    pub const CONTROLLER: u8 = 0x01;
    pub const ACTIVE: u8 = 0x02;
    pub const DESCRIPTORS: u8 = 0x03;
    pub const COMMAND_SET_NAMESPACE: u8 = 0x05;
    pub const COMMAND_SET_CONTROLLER: u8 = 0x06;
    pub const ALLOCATED: u8 = 0x10;
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    pub const ATTACHED_CONTROLLERS: u8 = 0x12;
    pub const CONTROLLERS: u8 = 0x13;
}
