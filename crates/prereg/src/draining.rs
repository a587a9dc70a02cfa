//! Waiting until a region is released: by blocking, by a callback or as a future.
//!
//! The region is released by whatever drops its last mapping; nothing here is needed for that. A future and its callback share
//! `Done`; the region's entry in the registry owns the callback.

use alloc::sync::Arc;
use core::fmt;
use core::future::{Future, IntoFuture};
use core::pin::Pin;
use core::task::{Context, Poll, Waker};

use crate::engine::Engine;
use crate::engine::release::Claim;
use crate::sync::LockCondvar;

/// A region without registrations that takes no new mappings.
///
/// Dropping this changes nothing: the region is still released.
#[must_use = "wait or await, or drop it to let the last unmap release the region"]
pub struct Draining {
    engine: Arc<Engine>,
    claim: Claim,
    waiting: bool,
}

impl Draining {
    pub(crate) fn new(engine: Arc<Engine>, claim: Claim, waiting: bool) -> Self {
        Self { engine, claim, waiting }
    }

    /// Whether the region is released (or registered again). Releases it if nothing is mapped.
    #[must_use]
    pub fn is_done(&self) -> bool {
        !self.waiting || !self.engine.is_draining(self.claim)
    }

    /// Waits until [`is_done`](Self::is_done).
    pub fn wait(self) {
        if self.waiting {
            self.engine.wait_idle(self.claim);
        }
    }

    /// Calls `callback` once [`is_done`](Self::is_done): now, or on the thread that drops the last mapping or registers the
    /// range again, without a lock. For event loops: `prereg-linux` has an eventfd on it, and `.await` a future.
    ///
    /// # Panics
    /// If `callback` panics, that thread unwinds; the region is released nevertheless.
    pub fn on_done(self, callback: impl FnOnce() + Send + 'static) {
        if self.waiting {
            self.engine.on_idle(self.claim, callback);
        } else {
            callback();
        }
    }
}

/// Completes when the region is released (or registered again); needs no particular runtime.
impl IntoFuture for Draining {
    type Output = ();
    type IntoFuture = DrainFuture;

    fn into_future(self) -> DrainFuture {
        DrainFuture::new(self)
    }
}

impl fmt::Debug for Draining {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Draining").field("range", &self.claim.range).field("waiting", &self.waiting).finish()
    }
}

/// The future of a [`Draining`]. Dropping it changes nothing: the region is still released.
#[must_use = "futures do nothing unless awaited"]
pub struct DrainFuture(Arc<LockCondvar<Done>>);

/// Shared by a future and its callback.
#[derive(Default)]
struct Done {
    is_done: bool,
    waker: Option<Waker>,
}

impl DrainFuture {
    fn new(draining: Draining) -> Self {
        let shared = Arc::new(LockCondvar::new(Done::default()));
        let done = Arc::clone(&shared);
        draining.on_done(move || {
            let mut done = done.lock();
            done.is_done = true;
            let waker = done.waker.take();
            drop(done);
            if let Some(waker) = waker {
                waker.wake();
            }
        });
        Self(shared)
    }
}

impl Future for DrainFuture {
    type Output = ();

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let mut done = self.0.lock();
        if done.is_done {
            return Poll::Ready(());
        }
        let before = done.waker.replace(context.waker().clone());
        drop(done);
        // Its drop is the executor's code.
        drop(before);
        Poll::Pending
    }
}

impl fmt::Debug for DrainFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DrainFuture").field("is_done", &self.0.lock().is_done).finish()
    }
}
