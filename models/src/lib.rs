//! Loom models of the lock-free files of the core. The tests explore every interleaving (up to the preemption bound) of a
//! few threads over the real code, compiled with `--cfg loom`; beside each stands a broken twin, a copy with one flaw, that
//! loom must catch: a model that cannot fail proves nothing.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p prereg-models --release`. Without the flag there is nothing here.
//!
//! What is modelled as memory: an `UnsafeCell` that users read while they are inside and the owner writes when he releases
//! (the unpin, or the free). Loom reports a read and a write that are not ordered.
//!
//! Limits: three threads; bound 3 (measured: bound 2 catches every twin here, bound 1 does not); a SeqCst *fence* stands for
//! what may be a membarrier elsewhere; no model waits in a loop.

#[cfg(loom)]
pub mod twins;

/// Runs `model` over all interleavings with up to three preemptions.
#[cfg(loom)]
pub fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}
