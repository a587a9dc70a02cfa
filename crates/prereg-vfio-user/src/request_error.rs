//! Errors of requests, and errors that end a session.
//!
//! A [`RequestError`] has one errno and changes neither the stream nor the session. A [`SessionError`] ends the session.

use prereg::Errno;

/// The engine's reason to refuse a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// The command is not supported. EOPNOTSUPP.
    #[error("command {command} is not supported")]
    Command {
        /// The number.
        command: u16,
    },
    /// The type is neither command nor reply, or a VERSION wants no reply. EINVAL.
    #[error("header flags {flags:#x} with error field {error} are invalid for this command")]
    Header {
        /// The header's flags.
        flags: u32,
        /// The header's error field.
        error: u32,
    },
    /// The length of the body is invalid for the command. EINVAL.
    #[error("the body has {found} bytes and the command takes {least} to {most}")]
    Size {
        /// Bytes received.
        found: u32,
        /// The shortest.
        least: u32,
        /// The longest.
        most: u32,
    },
    /// The message is too long for the server; its body was skipped. E2BIG.
    #[error("the message has {size} bytes and the server reads {most}; keep to its max_data_xfer_size")]
    Oversized {
        /// The size in the header.
        size: u32,
        /// The longest that is read.
        most: u32,
    },
    /// `argsz` is smaller than the fixed part of the message. EINVAL.
    #[error("argsz is {argsz} and must be at least {needed}")]
    ArgSize {
        /// The given size.
        argsz: u32,
        /// The needed size.
        needed: u32,
    },
    /// Flags that are unknown, contradict each other, or are missing. EINVAL.
    #[error("flags {flags:#x} are unknown or do not go together")]
    Flags {
        /// The flags.
        flags: u32,
    },
    /// A field that must be zero is not. EINVAL.
    #[error("field {field} must be zero and is {found:#x}")]
    NotZero {
        /// The field.
        field: &'static str,
        /// The value.
        found: u64,
    },
    /// A range is empty or passes the end of its space. EINVAL.
    #[error("{bytes:#x} bytes at {start:#x} are an invalid range")]
    Range {
        /// The first byte.
        start: u64,
        /// The length.
        bytes: u64,
    },
    /// An address or length is not a multiple of the smallest negotiated page size. EINVAL.
    #[error("{value:#x} is not a multiple of the page size {page:#x}")]
    Unaligned {
        /// The address, length or offset.
        value: u64,
        /// The page size in bytes.
        page: u64,
    },
    /// A count is zero, or does not match the data. EINVAL.
    #[error("count {count} does not fit the message")]
    Count {
        /// The count.
        count: u64,
    },
    /// More data than the server moves in one message. E2BIG.
    #[error("{count} bytes are more than the server's max_data_xfer_size of {most}")]
    TooMuchData {
        /// The count.
        count: u32,
        /// The limit.
        most: u32,
    },
    /// The number of descriptors is wrong for the request. EINVAL.
    #[error("{found} descriptors came with the message, which takes {expected}")]
    Descriptors {
        /// Descriptors received; those beyond the server's max_msg_fds are counted as one.
        found: u32,
        /// Descriptors expected, or at most accepted.
        expected: u32,
    },
    /// The system dropped descriptors of this message. EMFILE.
    #[error("descriptors of the message were dropped; raise the server's limit of open files")]
    DescriptorsLost,
    /// A dirty bitmap was requested. EOPNOTSUPP.
    #[error("dirty bitmaps are not supported")]
    DirtyBitmap,
    /// A request came before VERSION. EINVAL.
    #[error("the first message must be VERSION")]
    NotNegotiated,
    /// A second VERSION. EINVAL.
    #[error("the version was negotiated before")]
    Negotiated,
    /// The capabilities are not JSON, have wrong types, or have nothing in common with the server's. EINVAL.
    #[error("capability {name} is malformed or has nothing in common with the server's")]
    Capability {
        /// The capability; `capabilities` for the whole.
        name: &'static str,
    },
    /// The major version is not supported; the session ends. EINVAL.
    #[error("version {major}.{minor} is not supported; use 0.1")]
    Version {
        /// The client's.
        major: u16,
        /// The client's.
        minor: u16,
    },
    /// Too many unanswered requests. EAGAIN.
    #[error("the session holds {held} bytes of unanswered requests; wait for replies")]
    Busy {
        /// Bytes counted for them.
        held: usize,
    },
}

impl RequestError {
    /// A word for each variant, for counts.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Command { .. } => "command",
            Self::Header { .. } => "header",
            Self::Size { .. } => "size",
            Self::Oversized { .. } => "oversized",
            Self::ArgSize { .. } => "argsz",
            Self::Flags { .. } => "flags",
            Self::NotZero { .. } => "not-zero",
            Self::Range { .. } => "range",
            Self::Unaligned { .. } => "unaligned",
            Self::Count { .. } => "count",
            Self::TooMuchData { .. } => "too-much-data",
            Self::Descriptors { .. } => "descriptors",
            Self::DescriptorsLost => "descriptors-lost",
            Self::DirtyBitmap => "dirty-bitmap",
            Self::NotNegotiated => "not-negotiated",
            Self::Negotiated => "negotiated",
            Self::Capability { .. } => "capability",
            Self::Version { .. } => "version",
            Self::Busy { .. } => "busy",
        }
    }

    /// The errno of the reply.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Command { .. } | Self::DirtyBitmap => Errno::EOPNOTSUPP,
            Self::Oversized { .. } | Self::TooMuchData { .. } => Errno::E2BIG,
            // EMFILE, for which `Errno` has no constant.
            Self::DescriptorsLost => Errno::from_raw(24),
            Self::Busy { .. } => Errno::EAGAIN,
            Self::Header { .. }
            | Self::Size { .. }
            | Self::ArgSize { .. }
            | Self::Flags { .. }
            | Self::NotZero { .. }
            | Self::Range { .. }
            | Self::Unaligned { .. }
            | Self::Count { .. }
            | Self::Descriptors { .. }
            | Self::NotNegotiated
            | Self::Negotiated
            | Self::Capability { .. }
            | Self::Version { .. } => Errno::EINVAL,
        }
    }
}

/// The reason why a session ended. Unsent frames are still to be sent; nothing more is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// The size in a header is smaller than a header, so the start of the next message is unknown. EINVAL.
    #[error("message {id} has a size of {size} bytes, less than its header; the stream is lost")]
    ShortMessage {
        /// The message's id.
        id: u16,
        /// The size in its header.
        size: u32,
    },
    /// The size in a header is larger than that of any message. E2BIG.
    #[error(
        "message {id} has a size of {size} bytes, more than the {most} that are skipped; the stream is lost"
    )]
    LongMessage {
        /// The message's id.
        id: u16,
        /// The size in its header.
        size: u32,
        /// The longest message that is skipped.
        most: u32,
    },
    /// The client has another major version. EINVAL.
    #[error("the client has version {major}.{minor}, the server 0.1; use a client of major version 0")]
    Version {
        /// The client's.
        major: u16,
        /// The client's.
        minor: u16,
    },
    /// The server rejected the client, with this errno.
    #[error("the client was rejected: {errno}")]
    Rejected {
        /// The errno of the reply to VERSION.
        errno: Errno,
    },
    /// The client disconnected inside a message. EIO.
    #[error("the client disconnected after {found} of a message's {size} bytes")]
    MidMessage {
        /// Bytes received.
        found: u32,
        /// The size in the header; that of a header if it is incomplete.
        size: u32,
    },
    /// The session was closed. ENXIO.
    #[error("the session is closed")]
    Closed,
}

impl SessionError {
    /// The errno.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::ShortMessage { .. } | Self::Version { .. } => Errno::EINVAL,
            Self::LongMessage { .. } => Errno::E2BIG,
            Self::MidMessage { .. } => Errno::EIO,
            Self::Rejected { errno } => *errno,
            Self::Closed => Errno::ENXIO,
        }
    }
}
