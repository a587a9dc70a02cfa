//! The commands by number (vfio-user specification, "Commands").

use std::fmt;

/// A command's number, known or not.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Command(u16);

macro_rules! commands {
    ($($name:ident = $number:literal;)*) => {
        #[expect(missing_docs, reason = "the names are the specification's, without VFIO_USER_")]
        impl Command {
            $(pub const $name: Self = Self($number);)*

            /// The specification's name without its prefix, or `None` for an unknown number.
            #[must_use]
            pub const fn name(self) -> Option<&'static str> {
                match self.0 {
                    $($number => Some(stringify!($name)),)*
                    _ => None,
                }
            }
        }
    };
}

commands! {
    VERSION = 1;
    DMA_MAP = 2;
    DMA_UNMAP = 3;
    DEVICE_GET_INFO = 4;
    DEVICE_GET_REGION_INFO = 5;
    DEVICE_GET_REGION_IO_FDS = 6;
    DEVICE_GET_IRQ_INFO = 7;
    DEVICE_SET_IRQS = 8;
    REGION_READ = 9;
    REGION_WRITE = 10;
    DMA_READ = 11;
    DMA_WRITE = 12;
    DEVICE_RESET = 13;
    DIRTY_PAGES = 14;
    REGION_WRITE_MULTI = 15;
    DEVICE_FEATURE = 16;
    MIG_DATA_READ = 17;
    MIG_DATA_WRITE = 18;
}

impl Command {
    /// Any number.
    #[must_use]
    pub const fn new(number: u16) -> Self {
        Self(number)
    }

    /// The number.
    #[must_use]
    pub const fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => f.write_str(name),
            None => write!(f, "command {}", self.0),
        }
    }
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
