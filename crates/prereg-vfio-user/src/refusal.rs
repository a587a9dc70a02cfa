//! What a client did wrong: a message that is refused, and a stream that cannot go on.
//!
//! Every [`Refusal`] has one errno and leaves the stream in step and the session as it was. A [`SessionError`] is the end.

use prereg::Errno;

/// Why the engine refused a message by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// The command is not one that a server answers. EOPNOTSUPP.
    #[error("command {command} is not supported")]
    Command {
        /// Its number.
        command: u16,
    },
    /// The header is of a type that is neither command nor reply, or a VERSION that wants no reply. EINVAL.
    #[error("header flags {flags:#x} with error field {error} are not those of this command")]
    Header {
        /// The header's flags.
        flags: u32,
        /// The header's error field.
        error: u32,
    },
    /// The body has a length that the command cannot have. EINVAL.
    #[error("the body has {found} bytes and the command takes {least} to {most}")]
    Size {
        /// Bytes there.
        found: u32,
        /// The shortest.
        least: u32,
        /// The longest.
        most: u32,
    },
    /// The message is longer than the server reads; its body was skipped. E2BIG.
    #[error("the message has {size} bytes and the server reads {most}; keep to its max_data_xfer_size")]
    Oversized {
        /// The size in the header.
        size: u32,
        /// The longest that is read.
        most: u32,
    },
    /// `argsz` is less than the fixed part of the message. EINVAL.
    #[error("argsz is {argsz} and must be at least {needed}")]
    ArgSize {
        /// What the client said.
        argsz: u32,
        /// What is needed.
        needed: u32,
    },
    /// Flags that are unknown, exclude each other or say nothing. EINVAL.
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
        /// What is there.
        found: u64,
    },
    /// A range is empty or runs past the end of its space. EINVAL.
    #[error("{bytes:#x} bytes at {start:#x} are no range")]
    Range {
        /// The first byte.
        start: u64,
        /// The length.
        bytes: u64,
    },
    /// An address or a length is not a multiple of the smallest page size agreed on. EINVAL.
    #[error("{value:#x} is not a multiple of the page size {page:#x}")]
    Unaligned {
        /// The address, length or offset.
        value: u64,
        /// The page size in bytes.
        page: u64,
    },
    /// A count is zero, or does not fit what follows it. EINVAL.
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
        /// The most.
        most: u32,
    },
    /// Too many or too few descriptors for a message that uses them. EINVAL.
    #[error("{found} descriptors came with the message, which takes {expected}")]
    Descriptors {
        /// How many came; what is over the server's max_msg_fds is counted as one.
        found: u32,
        /// How many it takes at most.
        expected: u32,
    },
    /// The system dropped descriptors of this message. EMFILE.
    #[error(
        "descriptors of the message were lost on the way in; the server's limit of open files is too low"
    )]
    DescriptorsLost,
    /// A dirty bitmap was asked for. EOPNOTSUPP.
    #[error("dirty bitmaps are not supported")]
    DirtyBitmap,
    /// Something other than VERSION came first. EINVAL.
    #[error("the first message must be VERSION")]
    NotNegotiated,
    /// VERSION came again. EINVAL.
    #[error("the version was agreed on before")]
    Negotiated,
    /// The capabilities are not JSON, of the wrong type, or leave nothing to agree on. EINVAL.
    #[error("capability {name} is malformed or leaves nothing to agree on")]
    Capability {
        /// Which; `capabilities` for the whole.
        name: &'static str,
    },
    /// A major version that is not spoken; the session ends. EINVAL.
    #[error("version {major}.{minor} is not spoken here; 0.1 is")]
    Version {
        /// The client's.
        major: u16,
        /// The client's.
        minor: u16,
    },
    /// Too much is unanswered. EAGAIN.
    #[error("the session holds {held} bytes of unanswered requests; wait for replies")]
    Busy {
        /// What they are reckoned at.
        held: usize,
    },
}

impl Refusal {
    /// A word for each kind, for counts.
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

    /// The error number that the client is answered.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Command { .. } | Self::DirtyBitmap => Errno::EOPNOTSUPP,
            Self::Oversized { .. } | Self::TooMuchData { .. } => Errno::E2BIG,
            // "Too many open files": the contract has no other use for it, so it has no name there.
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

/// Why a session ended. What was to be sent before is still to be sent; nothing more is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SessionError {
    /// A header that says its message is shorter than a header: nobody knows where the next one starts. EINVAL.
    #[error("message {id} says it has {size} bytes, fewer than its header; the stream is lost")]
    ShortMessage {
        /// The message's id.
        id: u16,
        /// The size in its header.
        size: u32,
    },
    /// A header that says more than any message has. E2BIG.
    #[error(
        "message {id} says it has {size} bytes, more than the {most} that are skipped; the stream is lost"
    )]
    LongMessage {
        /// The message's id.
        id: u16,
        /// The size in its header.
        size: u32,
        /// The longest message that is skipped.
        most: u32,
    },
    /// The client speaks another major version. EINVAL.
    #[error("the client speaks version {major}.{minor}, the server 0.1; use a client of major version 0")]
    Version {
        /// The client's.
        major: u16,
        /// The client's.
        minor: u16,
    },
    /// The server had no place for the client. What it told the client.
    #[error("the client was turned away: {errno}")]
    TurnedAway {
        /// The answer to its VERSION.
        errno: Errno,
    },
    /// The client went away in the middle of a message. EIO.
    #[error("the client went away after {found} of a message's {size} bytes")]
    MidMessage {
        /// Bytes that came.
        found: u32,
        /// The size in its header; of the header itself where that did not come whole.
        size: u32,
    },
    /// The session was closed before. ENXIO.
    #[error("the session is closed")]
    Closed,
}

impl SessionError {
    /// The error number.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::ShortMessage { .. } | Self::Version { .. } => Errno::EINVAL,
            Self::LongMessage { .. } => Errno::E2BIG,
            Self::MidMessage { .. } => Errno::EIO,
            Self::TurnedAway { errno } => *errno,
            Self::Closed => Errno::ENXIO,
        }
    }
}
