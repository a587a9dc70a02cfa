//! Linux error numbers.
//!
//! The core does not depend on Linux, but its errors are the kernel's: every error enum of the workspace has an
//! `errno()` that returns one of these, and each edge (ioctl, hypercall, wire protocol) translates from here in one
//! function.

use core::fmt;

/// A positive Linux error number, as in `include/uapi/asm-generic/errno-base.h` and `errno.h`.
///
/// Numbers without a constant here are kept unchanged.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident = $value:literal, $text:literal;)*) => {
        impl Errno {
            $(#[doc = concat!($text, ".")] pub const $name: Self = Self($value);)*

            /// The symbol of this number (`"EBUSY"`), or `None` for one without a constant.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($value => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

errnos! {
    EPERM = 1, "Operation not permitted";
    ENOENT = 2, "No such entry";
    ESRCH = 3, "No such process";
    EINTR = 4, "Interrupted";
    EIO = 5, "Input or output error";
    ENXIO = 6, "No such device or address";
    E2BIG = 7, "Argument too long";
    EBADF = 9, "Bad file descriptor";
    EAGAIN = 11, "Try again";
    ENOMEM = 12, "Out of memory, or over the locked-memory limit";
    EACCES = 13, "Permission denied";
    EFAULT = 14, "Bad address";
    EBUSY = 16, "Busy";
    EEXIST = 17, "Exists already";
    ENODEV = 19, "No such device";
    EINVAL = 22, "Invalid argument";
    ENFILE = 23, "Table overflow";
    ENOTTY = 25, "Not a request of this object";
    ENOSPC = 28, "No space left";
    ERANGE = 34, "Out of range";
    EDEADLK = 35, "Would wait for itself";
    ENOSYS = 38, "Not implemented";
    EOVERFLOW = 75, "Value too large";
    EOPNOTSUPP = 95, "Operation not supported";
}

impl Errno {
    /// Keeps `number` as it came from the system.
    #[must_use]
    pub const fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// The positive number.
    #[must_use]
    pub const fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "E{}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
