//! State that outlives a client: the counts of the health log, and the list of controllers.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use prereg::Errno;

use super::shared::ControllerShared;
use super::stats::NvmeState;
use crate::engine::log_page::Health;

/// The state of a model that outlives a client.
#[derive(Debug)]
pub(super) struct Subsystem {
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    health: Health,
    controllers: Vec<Weak<ControllerShared>>,
    /// Controller identifiers in use.
    clients: BTreeSet<u16>,
}

/// A client's controller identifier, until the controller has released everything.
#[derive(Debug)]
pub(super) struct Lease {
    subsystem: Arc<Subsystem>,
    /// The controller identifier (CNTLID).
    pub(super) number: u16,
}

impl Default for Subsystem {
    fn default() -> Self {
        Self { began: Instant::now(), inner: Mutex::default() }
    }
}

impl Subsystem {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // It has counts and lists, each valid by itself.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a controller identifier for a client.
    ///
    /// # Errors
    /// EBUSY when there is another client and `shares` is false.
    pub(super) fn attach_client(subsystem: &Arc<Self>, shares: bool) -> Result<Lease, Errno> {
        /// The largest controller identifier.
        const LAST: u16 = 0xffef;
        let mut inner = subsystem.lock();
        if !inner.clients.is_empty() && !shares {
            return Err(Errno::EBUSY);
        }
        let free = (1..=LAST).find(|number| !inner.clients.contains(number));
        let number = free.ok_or(Errno::EBUSY)?;
        inner.clients.insert(number);
        inner.health.power_cycles += 1;
        inner.controllers.retain(|shared| shared.strong_count() > 0);
        Ok(Lease { subsystem: Arc::clone(subsystem), number })
    }

    /// Adds a controller, and calls `with` before another call of [`for_each`](Self::for_each).
    pub(super) fn add_controller(
        &self,
        shared: &Arc<ControllerShared>,
        with: impl FnOnce(&ControllerShared),
    ) {
        let mut inner = self.lock();
        inner.controllers.push(Arc::downgrade(shared));
        with(shared);
    }

    /// Calls `with` for each controller; none is added meanwhile.
    pub(super) fn for_each(&self, with: impl FnMut(&Arc<ControllerShared>)) {
        let inner = self.lock();
        let controllers: Vec<Arc<ControllerShared>> =
            inner.controllers.iter().filter_map(Weak::upgrade).collect();
        controllers.iter().for_each(with);
        drop(inner);
    }

    /// All controllers.
    pub(super) fn controllers(&self) -> Vec<Arc<ControllerShared>> {
        self.lock().controllers.iter().filter_map(Weak::upgrade).collect()
    }

    /// The current health log of a controller.
    pub(super) fn health(&self, shared: &ControllerShared) -> Health {
        let mut health = self.lock().health;
        NvmeState::of(shared).add_to(&mut health);
        health.power_on_hours = self.began.elapsed().as_secs() / 3600;
        health
    }
}

impl Lease {
    /// The controller stopped.
    pub(super) fn end(self, shared: &ControllerShared, was_safe: bool) {
        let state = NvmeState::of(shared);
        let mut inner = self.subsystem.lock();
        state.add_to(&mut inner.health);
        inner.health.unsafe_shutdowns += u64::from(!was_safe);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.subsystem.lock().clients.remove(&self.number);
    }
}
