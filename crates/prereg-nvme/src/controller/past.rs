//! What outlives a client: the health log's counts, and who is there.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use prereg::Errno;

use super::facts::NvmeState;
use super::hub::Hub;
use crate::engine::log_page::Health;

/// What outlives a client.
#[derive(Debug)]
pub(super) struct Past {
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    health: Health,
    present: Vec<Weak<Hub>>,
    /// The numbers of clients that have not left.
    clients: BTreeSet<u16>,
}

/// A client's place; it ends when its controller has given everything back.
#[derive(Debug)]
pub(super) struct Lease {
    past: Arc<Past>,
    /// The controller's number: no other that is there has it.
    pub(super) number: u16,
}

impl Default for Past {
    fn default() -> Self {
        Self { began: Instant::now(), inner: Mutex::default() }
    }
}

impl Past {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Whole between any two statements that matter: it is counts.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place for a client.
    ///
    /// # Errors
    /// EBUSY when there is a client already and `shares` is not said.
    pub(super) fn admit(past: &Arc<Self>, shares: bool) -> Result<Lease, Errno> {
        /// The largest number that a controller may have.
        const LAST: u16 = 0xffef;
        let mut inner = past.lock();
        if !inner.clients.is_empty() && !shares {
            return Err(Errno::EBUSY);
        }
        let free = (1..=LAST).find(|number| !inner.clients.contains(number));
        let number = free.ok_or(Errno::EBUSY)?;
        inner.clients.insert(number);
        inner.health.power_cycles += 1;
        inner.present.retain(|hub| hub.strong_count() > 0);
        Ok(Lease { past: Arc::clone(past), number })
    }

    /// A client's controller is there; `with` it is done before others do something [for each](Self::for_each).
    pub(super) fn arrived(&self, hub: &Arc<Hub>, with: impl FnOnce(&Hub)) {
        let mut inner = self.lock();
        inner.present.push(Arc::downgrade(hub));
        with(hub);
    }

    /// Does something with each controller that is there, while none arrives.
    pub(super) fn for_each(&self, with: impl FnMut(&Arc<Hub>)) {
        let inner = self.lock();
        let present: Vec<Arc<Hub>> = inner.present.iter().filter_map(Weak::upgrade).collect();
        present.iter().for_each(with);
        drop(inner);
    }

    /// The controllers that are there.
    pub(super) fn present(&self) -> Vec<Arc<Hub>> {
        self.lock().present.iter().filter_map(Weak::upgrade).collect()
    }

    /// The health log of a controller as of now.
    pub(super) fn health(&self, hub: &Hub) -> Health {
        let mut health = self.lock().health;
        NvmeState::of(hub).add_to(&mut health);
        health.power_on_hours = self.began.elapsed().as_secs() / 3600;
        health
    }
}

impl Lease {
    /// The controller stopped.
    pub(super) fn end(self, hub: &Hub, was_safe: bool) {
        let state = NvmeState::of(hub);
        let mut inner = self.past.lock();
        state.add_to(&mut inner.health);
        inner.health.unsafe_shutdowns += u64::from(!was_safe);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.past.lock().clients.remove(&self.number);
    }
}
