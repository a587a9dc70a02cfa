//! A progress bar on standard error, where somebody is looking; silence everywhere else.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// Where bars are shown, if anywhere.
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

    /// A bar of `length` steps, gone when it is dropped.
    #[must_use]
    pub fn stage(self, what: &str, length: u64) -> Stage {
        if !self.shown {
            return Stage(ProgressBar::hidden());
        }
        let bar = ProgressBar::new(length);
        // The template is a constant; a bad one falls back to the plain bar.
        if let Ok(style) = ProgressStyle::with_template("{msg:30} [{bar:40}] {percent:>3} % {eta:>5}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(what.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        Stage(bar)
    }
}

/// One bar.
#[derive(Debug)]
pub struct Stage(ProgressBar);

impl Stage {
    /// `done` of the steps are done.
    pub fn at(&self, done: u64) {
        self.0.set_position(done);
    }

    /// The same from another thread, with the length if it was not known before.
    pub fn at_of(&self, done: u64, length: u64) {
        self.0.set_length(length);
        self.0.set_position(done);
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
