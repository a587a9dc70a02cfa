//! What a call answers when it fails: a negative errno, and a sentence in the caller's own buffer.
//!
//! Nothing is kept between calls, in no thread: whoever wants the sentence passes room for it.

use std::ffi::{c_char, c_int};
use std::fmt::{self, Write};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};

use prereg::{
    EntryBlockError, Errno, MapError, OutOfMemory, PageListError, RangeError, RegisterError, UnregisterError,
};
use prereg_iommu::container::ContainerError;
use prereg_iommu::iova::{IovaAccessError, IovaMapError};
use prereg_iommu::{AttachError, CreateError, EntryError, GeometryError, SlotError, TableError};
use prereg_linux::{BackendError, VfioError};

/// Bytes of a message, its closing NUL included.
pub const PREREG_MESSAGE_BYTES: usize = 504;

/// Why a call failed. Every call that takes one also takes NULL; a call that succeeds sets `code` to 0 and the message to
/// the empty string.
#[repr(C)]
#[derive(Debug)]
pub struct prereg_error {
    /// 0, or the negative errno that the call returned.
    pub code: i32,
    /// Bytes of the message without its closing NUL.
    pub length: u32,
    /// What was asked, what was found, what to do; UTF-8, cut to fit.
    pub message: [c_char; PREREG_MESSAGE_BYTES],
}

/// No message for "state not recoverable" has another origin, so a defect of ours is told from any refusal.
const ENOTRECOVERABLE: Errno = Errno::from_raw(131);

/// Everything a call can fail with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Argument(&'static str),
    #[error("{0} is NULL")]
    Null(&'static str),
    #[error("the handle is not a live {0}: another type, freed, or never made")]
    Handle(&'static str),
    #[error("the struct's size member says {found}, this library's {name} has {known} bytes")]
    Size { name: &'static str, found: usize, known: usize },
    #[error("{0}")]
    Refused(String, Errno),
    #[error("no memory for it")]
    OutOfMemory,
    #[error(
        "a defect of this library: it panicked, and the panic was caught; what the call was to change is undefined"
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

impl Failure {
    pub(crate) fn errno(&self) -> Errno {
        match self {
            Self::Argument(_) | Self::Null(_) | Self::Handle(_) | Self::Size { .. } => Errno::EINVAL,
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

    /// The negative number; never 0 or positive, whatever a port said.
    pub(crate) fn code(&self) -> c_int {
        match self.errno().raw() {
            number @ 1..=4095 => -number,
            _ => -Errno::EIO.raw(),
        }
    }
}

impl From<EntryBlockError> for Failure {
    fn from(error: EntryBlockError) -> Self {
        match error {
            EntryBlockError::OutOfMemory(_) => Self::OutOfMemory,
            error => Self::Refused(error.to_string(), error.errno()),
        }
    }
}

impl From<OutOfMemory> for Failure {
    fn from(_: OutOfMemory) -> Self {
        Self::OutOfMemory
    }
}

impl From<TableError> for Failure {
    fn from(error: TableError) -> Self {
        Self::Entry(error.into())
    }
}

impl From<&UnregisterError> for Failure {
    fn from(error: &UnregisterError) -> Self {
        Self::Refused(error.to_string(), error.errno())
    }
}

/// Runs a call. A panic ends here: it would end the process at the border to C.
pub(crate) fn answer(
    error: Option<&mut MaybeUninit<prereg_error>>,
    work: impl FnOnce() -> Result<(), Failure>,
) -> c_int {
    let result = guarded(work);
    match &result {
        Ok(()) => {
            if let Some(error) = error {
                tell(error, 0, None);
            }
            0
        }
        Err(failure) => refuse(error, failure),
    }
}

/// The same for a question that has no error to give: `otherwise` stands for every failure.
pub(crate) fn value_or<T>(otherwise: T, work: impl FnOnce() -> Result<T, Failure>) -> T {
    guarded(work).unwrap_or(otherwise)
}

fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|payload| {
        // Its destructor could panic again.
        std::mem::forget(payload);
        Err(Failure::Defect)
    })
}

#[cold]
fn refuse(error: Option<&mut MaybeUninit<prereg_error>>, failure: &Failure) -> c_int {
    let code = failure.code();
    if let Some(error) = error {
        tell(error, code, Some(failure));
    }
    code
}

fn tell(error: &mut MaybeUninit<prereg_error>, code: c_int, failure: Option<&Failure>) {
    let mut text = Text { bytes: [0; PREREG_MESSAGE_BYTES], length: 0 };
    if let Some(failure) = failure {
        // Cannot fail: `Text` takes what fits and drops the rest.
        let _ = write!(text, "{failure}");
        error.write(prereg_error { code, length: text.length as u32, message: text.bytes });
    } else {
        success(error);
    }
}

/// Three words only: the message's room is left as it is.
#[expect(unsafe_code, reason = "writes single members of a struct that may not be initialised")]
fn success(error: &mut MaybeUninit<prereg_error>) {
    let error = error.as_mut_ptr();
    // SAFETY: in the caller's struct.
    let code = unsafe { &raw mut (*error).code };
    // SAFETY: as above.
    let length = unsafe { &raw mut (*error).length };
    // SAFETY: as above.
    let message = unsafe { &raw mut (*error).message };
    // SAFETY: a member of the caller's struct, which is his to lend.
    unsafe { code.write(0) };
    // SAFETY: as above.
    unsafe { length.write(0) };
    // SAFETY: its first byte.
    unsafe { message.cast::<c_char>().write(0) };
}

/// A message being written: without an allocation, so that it can be had in a signal handler.
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

    fn told(work: impl FnOnce() -> Result<(), Failure>) -> (c_int, prereg_error) {
        let error = prereg_error { code: 77, length: 77, message: [c_char::MAX; PREREG_MESSAGE_BYTES] };
        // A struct that is there already, as a caller's often is.
        let mut room = MaybeUninit::new(error);
        let code = answer(Some(&mut room), work);
        #[expect(unsafe_code, reason = "only a C caller has such a struct")]
        // SAFETY: every member was initialised above.
        let error = unsafe { room.assume_init() };
        (code, error)
    }

    fn text(error: &prereg_error) -> String {
        let bytes: Vec<u8> = error.message.iter().map(|byte| byte.to_ne_bytes()[0]).collect();
        CStr::from_bytes_until_nul(&bytes).unwrap().to_str().unwrap().to_owned()
    }

    #[test]
    fn success_says_nothing() {
        let (code, error) = told(|| Ok(()));
        assert_eq!((code, error.code, error.length, text(&error).as_str()), (0, 0, 0, ""));
    }

    #[test]
    fn a_refusal_says_its_number_and_its_sentence() {
        let (code, error) = told(|| Err(Failure::Refused("still mapped".to_owned(), Errno::EBUSY)));
        assert_eq!((code, error.code), (-16, -16));
        assert_eq!((text(&error).as_str(), error.length), ("still mapped", 12));
    }

    #[test]
    fn a_long_message_is_cut_between_two_characters() {
        let (_, error) = told(|| Err(Failure::Refused("ü".repeat(400), Errno::EBUSY)));
        assert_eq!((text(&error), error.length), ("ü".repeat(251), 502));
    }

    #[test]
    fn a_panic_is_an_answer() {
        let (code, error) = told(|| panic!("a test of panics"));
        assert_eq!(code, -131);
        assert!(text(&error).contains("defect"));
        assert_eq!(value_or(5, || panic!("a test of panics")), 5);
    }

    #[test]
    fn a_port_that_names_no_errno_still_gives_a_negative_number() {
        for raw in [0, -5, 70_000, i32::MIN] {
            assert_eq!(Failure::Refused(String::new(), Errno::from_raw(raw)).code(), -5);
        }
    }
}
