//! Ctrl-C as a flag: whoever works long looks at it between two steps and goes home through ordinary drops.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set once by SIGINT, SIGTERM or SIGHUP; clones see the same flag.
#[derive(Clone, Debug, Default)]
pub struct Interrupt(Arc<AtomicBool>);

/// The user asked to stop. Everything was released on the way here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted; everything that was pinned is released")]
pub struct Interrupted;

impl Interrupt {
    /// A flag that the signals set. At most one in a process.
    ///
    /// # Errors
    /// When the handler cannot be installed.
    pub fn on_signals() -> Result<Self, ctrlc::Error> {
        let interrupt = Self::default();
        let flag = Arc::clone(&interrupt.0);
        // Relaxed: the flag orders nothing, it is only looked at.
        ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
        Ok(interrupt)
    }

    /// Whether to go on.
    ///
    /// # Errors
    /// [`Interrupted`] once a signal came.
    #[inline]
    pub fn check(&self) -> Result<(), Interrupted> {
        if self.0.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
    }

    /// The flag itself, for work in other crates that can be cancelled.
    #[must_use]
    pub fn flag(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0)
    }
}
