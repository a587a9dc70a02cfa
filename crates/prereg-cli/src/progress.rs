//! Progress bars on standard error, if it is a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Whether bars are shown.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    shown: bool,
}

impl Progress {
    /// Bars on standard error if it is a terminal.
    #[must_use]
    pub fn on_terminal() -> Self {
        Self { shown: std::io::stderr().is_terminal() }
    }

    /// No bars.
    #[must_use]
    pub const fn none() -> Self {
        Self { shown: false }
    }

    /// A bar of `length` steps, removed when it is dropped.
    #[must_use]
    pub fn bar(self, what: &str, length: u64) -> Bar {
        if !self.shown {
            return Bar(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(length);
        // The template is a constant; a bad one falls back to the plain bar.
        if let Ok(style) = ProgressStyle::with_template("{msg:30} [{bar:40}] {percent:>3} % {eta:>5}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Bar(bar)
    }
}

/// A progress bar.
#[derive(Debug)]
pub struct Bar(ProgressBar);

impl Bar {
    /// `done` of the steps are done.
    pub fn position(&self, done: u64) {
        self.0.set_position(done);
    }

    /// As [`Self::position`], with a new length.
    pub fn position_of(&self, done: u64, length: u64) {
        self.0.set_length(length);
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
