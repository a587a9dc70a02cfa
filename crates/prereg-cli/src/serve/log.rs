//! The log of `prereg serve`: events of the server and its devices as lines on standard error, by `tracing`.
//!
//! - [`output`]: the subscriber: a line of text, for a terminal or the journal, or JSON; levels and targets are filtered there;
//! - `line`: what a line says: who, what, why, and what to do; `repeats`: events that are counted instead of repeated.
//!
//! A client can cause any number of events, so each kind of event of a socket is written a few times and then counted: the count
//! is written once a minute, when the client leaves, and at the end.

mod line;
mod observed;
pub(crate) mod output;
mod repeats;

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use prereg_nvme::controller::NvmeEvent;
use prereg_vfio_user::server::{Event, EventSource, Observer};
use tracing::Dispatch;

pub(crate) use line::Remedies;
use line::{Line, Topic};
pub(crate) use observed::DiskEvent;
use observed::{AnyEvent, Observed};
use repeats::{Key, Repeated, Repeats};

/// The log. Dropping it writes the counts that were not written yet.
pub(crate) struct Log {
    dispatch: Dispatch,
    remedies: Arc<dyn Remedies>,
    repeats: Mutex<Repeats<Observed>>,
}

impl Log {
    /// A log that writes to `dispatch`, with remedies that the configuration determines.
    #[must_use]
    pub(crate) fn new(dispatch: Dispatch, remedies: Arc<dyn Remedies>) -> Self {
        Self { dispatch, remedies, repeats: Mutex::default() }
    }

    /// Writes a line about the server itself.
    pub(crate) fn info(&self, what: &str) {
        self.write(&EventSource::default(), &Line::info(Topic::Server, what), 0);
    }

    /// Writes a line about something of the server that the operator should look at.
    pub(crate) fn warn(&self, what: &str) {
        self.write(&EventSource::default(), &Line::warn(Topic::Server, what), 0);
    }

    /// Writes an event of a disk served at `socket`.
    pub(crate) fn disk(&self, socket: &Path, event: DiskEvent) {
        let mut source = EventSource::default();
        source.socket = Some(socket.to_owned());
        self.observe_at(Observed { source, event: AnyEvent::Disk(event) }, Instant::now());
    }

    /// Writes the counts that are due; call it every second or so.
    pub(crate) fn write_counts(&self, now: Instant) {
        let due = self.repeats().due(now);
        self.write_repeated(due);
    }

    // Every change is complete before a call that could panic.
    fn repeats(&self) -> MutexGuard<'_, Repeats<Observed>> {
        self.repeats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observe_at(&self, observed: Observed, now: Instant) {
        let socket = observed.source.socket.clone();
        let (kind, detail, burst) = observed.event.kind();
        let ends_client = matches!(observed.event, AnyEvent::Server(Event::Disconnected { .. }));
        let mut repeats = self.repeats();
        let key = Key { socket: socket.clone(), kind, detail };
        let Some(observed) = repeats.admit(key, observed, burst, now) else { return };
        let counted = if ends_client { repeats.take_counts(&socket) } else { Vec::new() };
        drop(repeats);
        self.write_repeated(counted);
        self.write(&observed.source, &observed.line(&*self.remedies), 0);
    }

    fn write_repeated(&self, repeated: Vec<Repeated<Observed>>) {
        for Repeated { last, count } in repeated {
            self.write(&last.source, &last.line(&*self.remedies), count);
        }
    }

    fn write(&self, source: &EventSource, line: &Line, repeated: u64) {
        tracing::dispatcher::with_default(&self.dispatch, || line.write(source, repeated));
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let rest = self.repeats().take_all();
        self.write_repeated(rest);
    }
}

impl Observer<Event> for Log {
    fn observe(&self, source: &EventSource, event: &Event) {
        let event = AnyEvent::Server(event.clone());
        self.observe_at(Observed { source: source.clone(), event }, Instant::now());
    }
}

impl Observer<NvmeEvent> for Log {
    fn observe(&self, source: &EventSource, event: &NvmeEvent) {
        let event = AnyEvent::Nvme(event.clone());
        self.observe_at(Observed { source: source.clone(), event }, Instant::now());
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
