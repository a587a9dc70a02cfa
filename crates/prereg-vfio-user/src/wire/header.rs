//! The 16-byte header of every message (vfio-user specification, "Header").

use prereg::Errno;

use super::bytes::{Put, length};
use super::command::Command;

/// The type of a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MessageType {
    /// A command.
    Command,
    /// The reply to the command with this id.
    Reply,
    /// A type that is not in the specification.
    Unknown,
}

/// A message's header.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Header {
    /// Chosen by the sender of the command, repeated in the reply. Any value is valid.
    pub id: u16,
    /// The command.
    pub command: Command,
    /// Bytes of the whole message, including this header.
    pub size: u32,
    /// Type and flags; unknown bits are kept.
    pub flags: u32,
    /// An errno, if [`Header::is_error`].
    pub error: u32,
}

impl Header {
    /// Bytes of a header.
    pub const BYTES: usize = 16;

    const TYPE: u32 = 0xf;
    const REPLY: u32 = 1;
    const NO_REPLY: u32 = 1 << 4;
    const ERROR: u32 = 1 << 5;

    /// A command that wants a reply; [`Header::frame`] sets the size.
    #[must_use]
    pub const fn command(id: u16, command: Command) -> Self {
        Self { id, command, size: 0, flags: 0, error: 0 }
    }

    /// Marks the command as one without reply.
    #[must_use]
    pub const fn without_reply(mut self) -> Self {
        self.flags |= Self::NO_REPLY;
        self
    }

    /// The reply to command `command` of id `id`.
    #[must_use]
    pub const fn reply(id: u16, command: Command) -> Self {
        Self { id, command, size: 0, flags: Self::REPLY, error: 0 }
    }

    /// An error reply, which has no body. A number that is no errno is sent as EIO, so that a failure is never taken for "0, no
    /// error".
    #[must_use]
    pub fn failure(id: u16, command: Command, errno: Errno) -> Self {
        let error = u32::try_from(errno.raw()).ok().filter(|error| *error != 0);
        let error = error.unwrap_or(Errno::EIO.raw().unsigned_abs());
        Self { id, command, size: 0, flags: Self::REPLY | Self::ERROR, error }
    }

    /// The type.
    #[must_use]
    pub const fn message_type(&self) -> MessageType {
        match self.flags & Self::TYPE {
            0 => MessageType::Command,
            Self::REPLY => MessageType::Reply,
            _ => MessageType::Unknown,
        }
    }

    /// Whether the sender of a command expects no reply.
    #[must_use]
    pub const fn wants_no_reply(&self) -> bool {
        self.flags & Self::NO_REPLY != 0
    }

    /// Whether a reply is an error.
    #[must_use]
    pub const fn is_error(&self) -> bool {
        self.flags & Self::ERROR != 0
    }

    /// The errno of an error reply. The specification allows 0, which is EIO here.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        let known = || i32::try_from(self.error).ok().filter(|error| *error != 0).map(Errno::from_raw);
        self.is_error().then(|| known().unwrap_or(Errno::EIO))
    }

    /// Reads a header; its size is not checked.
    #[must_use]
    pub fn read(bytes: &[u8; Self::BYTES]) -> Self {
        let u16_at = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        Self {
            id: u16_at(0),
            command: Command::new(u16_at(2)),
            size: u32_at(4),
            flags: u32_at(8),
            error: u32_at(12),
        }
    }

    /// Writes the header as it is.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u16(self.id).u16(self.command.number()).u32(self.size).u32(self.flags).u32(self.error);
    }

    /// Writes a message: the header with the final size, and the body that `body` writes.
    pub fn frame<R>(&self, out: &mut Vec<u8>, body: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let start = out.len();
        self.write(out);
        let result = body(out);
        let size = length(out.len() - start);
        if let Some(field) = out.get_mut(start + 4..start + 8) {
            field.copy_from_slice(&size.to_ne_bytes());
        }
        result
    }
}
