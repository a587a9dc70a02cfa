//! Status codes (section 4.6.1).

use std::fmt;

/// The status field of a completion without the phase tag: code in bits 7:0, type in bits 10:8, Do Not Retry in bit 14.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(u16);

const DO_NOT_RETRY: u16 = 1 << 14;

const GENERIC: u16 = 0;
const SPECIFIC: u16 = 1;
const MEDIA: u16 = 2;

macro_rules! statuses {
    ($($name:ident = $kind:ident, $code:literal, $again:ident, $text:literal;)*) => {
        impl Status {
            $(#[doc = concat!($text, ".")] pub const $name: Self = Self::new($kind, $code, Retry::$again);)*

            /// The specification's name; `None` for a code that this controller never returns.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 & 0x7ff {
                    $(code if code == Self::$name.0 & 0x7ff => Some($text),)*
                    _ => None,
                }
            }

            /// Every status that this controller returns.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Retry {
    /// A retry may succeed.
    Again,
    /// A retry would fail again.
    Never,
}

statuses! {
    SUCCESS = GENERIC, 0x00, Again, "Successful Completion";
    INVALID_OPCODE = GENERIC, 0x01, Never, "Invalid Command Opcode";
    INVALID_FIELD = GENERIC, 0x02, Never, "Invalid Field in Command";
    DATA_TRANSFER = GENERIC, 0x04, Again, "Data Transfer Error";
    INTERNAL = GENERIC, 0x06, Again, "Internal Error";
    ABORT_REQUESTED = GENERIC, 0x07, Again, "Command Abort Requested";
    ABORTED_BY_DELETION = GENERIC, 0x08, Again, "Command Aborted due to SQ Deletion";
    INVALID_NAMESPACE = GENERIC, 0x0b, Never, "Invalid Namespace or Format";
    SEQUENCE = GENERIC, 0x0c, Never, "Command Sequence Error";
    SGL_SEGMENT = GENERIC, 0x0d, Never, "Invalid SGL Segment Descriptor";
    SGL_COUNT = GENERIC, 0x0e, Never, "Invalid Number of SGL Descriptors";
    SGL_DATA_LENGTH = GENERIC, 0x0f, Never, "Data SGL Length Invalid";
    SGL_TYPE = GENERIC, 0x11, Never, "SGL Descriptor Type Invalid";
    PRP_OFFSET = GENERIC, 0x13, Never, "PRP Offset Invalid";
    SGL_GRANULARITY = GENERIC, 0x1e, Never, "SGL Data Block Granularity Invalid";
    WRITE_PROTECTED = GENERIC, 0x20, Never, "Namespace is Write Protected";
    LBA_RANGE = GENERIC, 0x80, Never, "LBA Out of Range";
    CAPACITY = GENERIC, 0x81, Never, "Capacity Exceeded";
    COMPLETION_QUEUE_INVALID = SPECIFIC, 0x00, Never, "Completion Queue Invalid";
    QUEUE_IDENTIFIER = SPECIFIC, 0x01, Never, "Invalid Queue Identifier";
    QUEUE_SIZE = SPECIFIC, 0x02, Never, "Invalid Queue Size";
    ASYNC_EVENT_LIMIT = SPECIFIC, 0x05, Never, "Asynchronous Event Request Limit Exceeded";
    INTERRUPT_VECTOR = SPECIFIC, 0x08, Never, "Invalid Interrupt Vector";
    LOG_PAGE = SPECIFIC, 0x09, Never, "Invalid Log Page";
    FORMAT = SPECIFIC, 0x0a, Never, "Invalid Format";
    QUEUE_DELETION = SPECIFIC, 0x0c, Never, "Invalid Queue Deletion";
    NOT_SAVEABLE = SPECIFIC, 0x0d, Never, "Feature Identifier Not Saveable";
    NOT_CHANGEABLE = SPECIFIC, 0x0e, Never, "Feature Not Changeable";
    NOT_NAMESPACE_SPECIFIC = SPECIFIC, 0x0f, Never, "Feature Not Namespace Specific";
    WRITE_FAULT = MEDIA, 0x80, Again, "Write Fault";
    READ_ERROR = MEDIA, 0x81, Again, "Unrecovered Read Error";
    COMPARE_FAILURE = MEDIA, 0x85, Never, "Compare Failure";
}

impl Status {
    const fn new(kind: u16, code: u16, retry: Retry) -> Self {
        let never = if matches!(retry, Retry::Never) { DO_NOT_RETRY } else { 0 };
        Self(kind << 8 | code | never)
    }

    /// From the status field of a completion, shifted right by the phase tag.
    pub(crate) const fn from_bits(bits: u16) -> Self {
        Self(bits & 0x7fff)
    }

    /// The field as in a completion, without the phase tag.
    #[must_use]
    pub const fn bits(self) -> u16 {
        self.0
    }

    /// Status Code Type: 0 generic, 1 command specific, 2 media and data.
    #[must_use]
    pub const fn kind(self) -> u8 {
        (self.0 >> 8 & 7) as u8
    }

    /// Status Code.
    #[must_use]
    pub const fn code(self) -> u8 {
        (self.0 & 0xff) as u8
    }

    /// Whether the command succeeded.
    #[must_use]
    pub const fn is_success(self) -> bool {
        self.0 & 0x7ff == 0
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "status {:x}h/{:02x}h", self.kind(), self.code()),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn fields_are_where_the_specification_has_them() {
        let status = Status::LBA_RANGE;
        assert_eq!((status.kind(), status.code()), (0, 0x80));
        assert_eq!(status.bits(), 0x4080, "a range that lies outside is not worth another try");
        assert_eq!((Status::COMPARE_FAILURE.kind(), Status::COMPARE_FAILURE.code()), (2, 0x85));
        assert_eq!(Status::DATA_TRANSFER.bits(), 4, "memory may come back");
        assert!(Status::SUCCESS.is_success());
        assert!(!Status::INTERNAL.is_success());
    }

    #[test]
    fn every_status_has_a_name_of_its_own() {
        for (at, one) in Status::ALL.iter().enumerate() {
            assert!(one.name().is_some());
            assert!(Status::ALL[at + 1..].iter().all(|other| other.name() != one.name()), "{one}");
        }
    }

    #[test]
    fn an_unknown_status_prints_its_numbers() {
        assert_eq!(Status::from_bits(0x7fe).to_string(), "status 7h/feh");
    }
}
