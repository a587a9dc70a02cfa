//! Noticing the end of a drain that has callbacks.
//!
//! A translator that unmaps writes its own counter and looks at nothing else, so the last unmap of a draining region can go
//! unnoticed until the next call of the address space. A blocked waiter looks by itself; callbacks and futures need a thread. It
//! runs only while there are callbacks, at most one for an address space, and owns a reference to the engine.

use crate::engine::Engine;
use crate::engine::registry::Registry;

#[cfg(all(feature = "std", not(loom)))]
impl Engine {
    /// Starts the thread unless it runs. If the system refuses one, the next call of the address space takes its place.
    pub(crate) fn watch_draining(&self, registry: &mut Registry) {
        if registry.is_watched {
            return;
        }
        let Some(engine) = self.this.upgrade() else { return };
        let thread = std::thread::Builder::new().name("prereg-drain".into());
        registry.is_watched = thread.spawn(move || engine.watch()).is_ok();
    }

    fn watch(&self) {
        loop {
            // A callback or a port that panics, which is reported as any panic is, does not stop the others.
            let _ = std::panic::catch_unwind(core::panic::AssertUnwindSafe(|| self.reap()));
            let mut registry = self.registry.lock();
            if registry.live().all(|entry| entry.on_done.is_empty()) {
                registry.is_watched = false;
                return;
            }
            drop(self.registry.wait(registry));
        }
    }
}

#[cfg(not(all(feature = "std", not(loom))))]
impl Engine {
    /// There are no threads here: the next call of the address space notices.
    #[expect(clippy::unused_self, reason = "the signature with threads")]
    pub(crate) fn watch_draining(&self, _: &mut Registry) {}
}
