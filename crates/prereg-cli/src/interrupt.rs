//! Ctrl-C as a flag: long loops poll it and return, so destructors run.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that SIGINT, SIGTERM or SIGHUP sets; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// The error of an interrupted command. Everything it pinned is released.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; everything that was pinned is released")]
pub struct Interrupted;

prereg::debug_as_display!(Interrupted);

impl Interrupt {
    /// A flag that the signals set. At most one in a process.
    ///
    /// # Errors
    /// If the handler cannot be installed.
    pub fn on_signals() -> Result<Self, ctrlc::Error> {
        let interrupt = Self::default();
        let flag = Arc::clone(&interrupt.0);
        // Relaxed: the flag orders nothing.
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
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
