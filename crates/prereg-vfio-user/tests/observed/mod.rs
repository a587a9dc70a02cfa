//! An observer that keeps all events.

use std::sync::Mutex;

use prereg_vfio_user::server::{EventSource, Observer};

/// The events of a test with their sources, in order.
pub(crate) struct Recorder<E>(Mutex<Vec<(EventSource, E)>>);

impl<E> Default for Recorder<E> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<E: Clone + Send> Observer<E> for Recorder<E> {
    fn observe(&self, source: &EventSource, event: &E) {
        self.0.lock().unwrap().push((source.clone(), event.clone()));
    }
}

impl<E: Clone> Recorder<E> {
    /// The events so far, with their sources.
    pub(crate) fn all(&self) -> Vec<(EventSource, E)> {
        self.0.lock().unwrap().clone()
    }

    /// The events so far.
    pub(crate) fn events(&self) -> Vec<E> {
        self.all().into_iter().map(|(_, event)| event).collect()
    }
}
