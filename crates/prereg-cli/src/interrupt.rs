//! Ctrl-C as a flag: long loops poll it and return, so destructors run.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that signals set; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// The error of an interrupted command. Everything it pinned is released.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; everything that was pinned is released")]
pub struct Interrupted;

prereg::debug_as_display!(Interrupted);

impl Interrupt {
    /// A flag that SIGINT, SIGTERM and SIGHUP set.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub fn on_signals() -> io::Result<Self> {
        let interrupt = Self::for_server()?;
        flag::register(SIGHUP, Arc::clone(&interrupt.0))?;
        Ok(interrupt)
    }

    /// A flag that SIGINT and SIGTERM set. SIGHUP does nothing: a server outlives the terminal from which it was started,
    /// because its guests would lose their disks.
    ///
    /// # Errors
    /// If a handler cannot be installed.
    pub fn for_server() -> io::Result<Self> {
        let interrupt = Self::default();
        for signal in [SIGINT, SIGTERM] {
            flag::register(signal, Arc::clone(&interrupt.0))?;
        }
        flag::register(SIGHUP, Arc::default())?;
        Ok(interrupt)
    }

    /// Succeeds until a signal arrives.
    ///
    /// # Errors
    /// [`Interrupted`] after a signal.
    #[inline]
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }

    /// The flag, for cancellable work of other crates.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
