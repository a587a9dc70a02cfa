//! Results of failed calls: a negative errno, and a message in the caller's buffer.
//!
//! There is no state between calls or per thread: a caller that wants the message passes a struct for it.

use std::ffi::{c_char, c_int};
use std::fmt::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};

use prereg::{
    EntryBlockError, Errno, HostAddr, MapError, OutOfMemory, PageListError, PageShift, RangeError,
    RegisterError, UnregisterError,
};
use prereg_iommu::container::ContainerError;
use prereg_iommu::iova::{IovaAccessError, IovaMapError};
use prereg_iommu::{AttachError, CreateError, EntryError, GeometryError, SlotError, TableError};
use prereg_linux::{BackendError, IommufdTableError, SpaprTableError, VfioError};

/// Bytes of a message, its closing NUL included.
pub const PREREG_MESSAGE_BYTES: usize = 504;

/// The reason of a failed call. Every call that takes one also takes NULL; a call that succeeds sets `code` to 0 and the message to
/// the empty string.
///
/// Its size never changes, so it needs no member for that, and no preparation.
#[repr(C)]
#[derive(Debug)]
pub struct prereg_error {
    /// 0, or the negative errno that the call returned.
    pub code: i32,
    /// Bytes of the message without its closing NUL.
    pub length: u32,
    /// The request, the finding and the remedy; UTF-8, cut to fit.
    pub message: [c_char; PREREG_MESSAGE_BYTES],
}

/// "State not recoverable": used for defects of the library only, so that callers can distinguish them from refusals.
const ENOTRECOVERABLE: Errno = Errno::from_raw(131);

/// Everything a call can fail with.
#[derive(thiserror::Error)]
pub(crate) enum CallError {
    #[error("{0}")]
    Argument(&'static str),
    #[error("{what} is {found:#x}; it is one of {choices}")]
    Choice { what: &'static str, found: u64, choices: &'static str },
    #[error("{what} {found} does not exist: there are {count}, from 0 on")]
    Number { what: &'static str, found: usize, count: usize },
    #[error("{0} is NULL; pass the address of one, or a live handle")]
    Null(&'static str),
    #[error("the pointer to {0} is misaligned; pass the address of a variable of its type")]
    Misaligned(&'static str),
    #[error("{0} is not UTF-8 text")]
    NoText(&'static str),
    #[error("the argument is not a live {0}: it is released, a copy, of another type, or invalid")]
    Handle(&'static str),
    #[error(
        "the size member of struct {name} is {found}, and this library's struct has {known} bytes; set all of it to zero, then size \
         to sizeof"
    )]
    Size { name: &'static str, found: usize, known: usize },
    #[error(
        "struct {name} of {found} bytes has members beyond the {known} bytes that this library ({}) knows; set them to \
         zero, or use a newer library", env!("CARGO_PKG_VERSION")
    )]
    Newer { name: &'static str, found: usize, known: usize },
    #[error("the reserved member of struct {0} is not zero; set all of the struct to zero first")]
    Reserved(&'static str),
    #[error("{option} of prereg_options is set, and the back end {backend} does not use it; leave it zero")]
    Unused { option: &'static str, backend: &'static str },
    #[error("{host} is not the start of a page of {granule}; push the address of each page's first byte")]
    NoPage { host: HostAddr, granule: PageShift },
    #[error("{0}")]
    Refused(String, Errno),
    #[error("the process has no memory for the call")]
    OutOfMemory,
    #[error(
        "a defect of this library: it panicked, and the panic was caught; the result of the call is undefined"
    )]
    Defect,
    #[error(transparent)]
    Range(#[from] RangeError),
    #[error(transparent)]
    Register(#[from] RegisterError),
    #[error(transparent)]
    Map(#[from] MapError),
    #[error(transparent)]
    Pages(#[from] PageListError),
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error(transparent)]
    Vfio(#[from] VfioError),
    #[error(transparent)]
    Spapr(#[from] SpaprTableError),
    #[error(transparent)]
    Iommufd(#[from] IommufdTableError),
    #[error(transparent)]
    Geometry(#[from] GeometryError),
    #[error(transparent)]
    Entry(#[from] EntryError),
    #[error(transparent)]
    Create(#[from] CreateError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Slot(#[from] SlotError),
    #[error(transparent)]
    Container(#[from] ContainerError),
    #[error(transparent)]
    IovaMap(#[from] IovaMapError),
    #[error(transparent)]
    IovaAccess(#[from] IovaAccessError),
}

prereg::debug_as_display!(CallError);

impl CallError {
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Argument(_)
            | Self::Choice { .. }
            | Self::Number { .. }
            | Self::Null(_)
            | Self::Misaligned(_)
            | Self::NoText(_)
            | Self::Handle(_)
            | Self::Size { .. }
            | Self::Newer { .. }
            | Self::Reserved(_)
            | Self::NoPage { .. }
            | Self::Unused { .. } => Errno::EINVAL,
            Self::Refused(_, errno) => *errno,
            Self::OutOfMemory => Errno::ENOMEM,
            Self::Defect => ENOTRECOVERABLE,
            Self::Range(error) => error.errno(),
            Self::Register(error) => error.errno(),
            Self::Map(error) => error.errno(),
            Self::Pages(PageListError::OutOfMemory) => Errno::ENOMEM,
            Self::Pages(PageListError::Wraps { .. }) => Errno::EINVAL,
            Self::Pages(_) => Errno::E2BIG,
            Self::Backend(error) => error.errno(),
            Self::Vfio(error) => error.errno(),
            Self::Spapr(error) => error.errno(),
            Self::Iommufd(error) => error.errno(),
            Self::Geometry(error) => error.errno(),
            Self::Entry(error) => error.errno(),
            Self::Create(error) => error.errno(),
            Self::Attach(error) => error.errno(),
            Self::Slot(error) => error.errno(),
            Self::Container(error) => error.errno(),
            Self::IovaMap(error) => error.errno(),
            Self::IovaAccess(error) => error.errno(),
        }
    }

    /// The negative errno; never 0 or positive, whatever a port returned.
    pub(crate) fn code(&self) -> c_int {
        match self.errno().raw() {
            number @ 1..=4095 => -number,
            _ => -Errno::EIO.raw(),
        }
    }
}

impl From<EntryBlockError> for CallError {
    fn from(error: EntryBlockError) -> Self {
        match error {
            EntryBlockError::OutOfMemory(_) => Self::OutOfMemory,
            error => Self::Refused(error.to_string(), error.errno()),
        }
    }
}

impl From<OutOfMemory> for CallError {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<TableError> for CallError {
    fn from(error: TableError) -> Self {
        Self::Entry(error.into())
    }
}

impl From<&UnregisterError> for CallError {
    fn from(error: &UnregisterError) -> Self {
        Self::Refused(error.to_string(), error.errno())
    }
}

/// Runs a call and catches its panic, which would end the process at the boundary to C.
pub(crate) fn run_call(error: *mut prereg_error, work: impl FnOnce() -> Result<(), CallError>) -> c_int {
    let result = guarded(work);
    match &result {
        Ok(()) => {
            success(error);
            0
        }
        Err(failure) => refuse(error, failure),
    }
}

/// Like `run_call`, for a function without an error parameter: returns `otherwise` on every failure.
pub(crate) fn value_or<T>(otherwise: T, work: impl FnOnce() -> Result<T, CallError>) -> T {
    guarded(work).unwrap_or(otherwise)
}

fn guarded<T>(work: impl FnOnce() -> Result<T, CallError>) -> Result<T, CallError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        // Its destructor could panic again.
        std::mem::forget(payload);
        Err(CallError::Defect)
    })
}

#[cold]
fn refuse(error: *mut prereg_error, failure: &CallError) -> c_int {
    let code = failure.code();
    if !error.is_null() {
        let mut text = Text { bytes: [0; PREREG_MESSAGE_BYTES], length: 0 };
        // Cannot fail: `Text` truncates the message.
        let _ = write!(text, "{failure}");
        let filled = prereg_error { code, length: text.length as u32, message: text.bytes };
        #[expect(unsafe_code, reason = "the caller's struct")]
        // SAFETY: not NULL; the caller guarantees memory for one, at any alignment.
        unsafe {
            error.write_unaligned(filled);
        }
    }
    code
}

/// Writes code, length and an empty message; the rest of the message is unchanged.
fn success(error: *mut prereg_error) {
    const BYTES: usize = std::mem::offset_of!(prereg_error, message) + 1;
    if !error.is_null() {
        #[expect(unsafe_code, reason = "the caller's struct, which may not be initialised")]
        // SAFETY: the first bytes of the caller's struct.
        unsafe {
            error.cast::<u8>().write_bytes(0, BYTES);
        }
    }
}

/// A message being written, without an allocation, so that signal handlers can use it.
struct Text {
    bytes: [c_char; PREREG_MESSAGE_BYTES],
    length: usize,
}

impl Write for Text {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = PREREG_MESSAGE_BYTES - 1 - self.length;
        let mut fits = text.len().min(room);
        while !text.is_char_boundary(fits) {
            fits -= 1;
        }
        for (to, from) in self.bytes[self.length..].iter_mut().zip(&text.as_bytes()[..fits]) {
            *to = c_char::from_ne_bytes([*from]);
        }
        self.length += fits;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CStr;

    use super::*;

    fn result_of(work: impl FnOnce() -> Result<(), CallError>) -> (c_int, prereg_error) {
        // A struct that was used before.
        let mut error = prereg_error { code: 77, length: 77, message: [c_char::MAX; PREREG_MESSAGE_BYTES] };
        (run_call(&raw mut error, work), error)
    }

    fn text(error: &prereg_error) -> String {
        let bytes: Vec<u8> = error.message.iter().map(|byte| byte.to_ne_bytes()[0]).collect();
        CStr::from_bytes_until_nul(&bytes).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn success_says_nothing() {
        let (code, error) = result_of(|| Ok(()));
        assert_eq!((code, error.code, error.length, text(&error).as_str()), (0, 0, 0, ""));
    }

    #[test]
    fn a_refusal_says_its_number_and_its_sentence() {
        let (code, error) = result_of(|| Err(CallError::Refused("still mapped".to_owned(), Errno::EBUSY)));
        assert_eq!((code, error.code), (-16, -16));
        assert_eq!((text(&error).as_str(), error.length), ("still mapped", 12));
    }

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        let (_, error) = result_of(|| Err(CallError::Refused("ü".repeat(400), Errno::EBUSY)));
        assert_eq!((text(&error), error.length), ("ü".repeat(251), 502));
    }

    #[test]
    fn a_panic_is_an_answer() {
        let (code, error) = result_of(|| panic!("a test of panics"));
        assert_eq!(code, -131);
        assert!(text(&error).contains("defect"));
        assert_eq!(value_or(5, || panic!("a test of panics")), 5);
    }

    #[test]
    fn a_port_that_names_no_errno_still_gives_a_negative_number() {
        for raw in [0, -5, 70_000, i32::MIN] {
            assert_eq!(CallError::Refused(String::new(), Errno::from_raw(raw)).code(), -5);
        }
    }
}
