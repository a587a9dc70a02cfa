//! Loom models of the core: tests that explore the interleavings of a few threads over the real code, compiled with
//! `--cfg loom`. Run with `RUSTFLAGS="--cfg loom" cargo test -p prereg-models --release`. Without the flag the crate is empty.
//!
//! `tests/engine/` drives the engine through the public API. `tests/percpu_ref.rs`, `tests/rundown_ref.rs` and
//! `tests/hazard.rs` drive the primitives, where more threads are affordable and the protected memory is a loom cell.
//! `README.md` of this folder lists which model fails for which change of an ordering, a fence or the order of two
//! statements.

#[cfg(loom)]
pub mod world;

/// Runs `model` over all interleavings, and prints how many there were.
#[cfg(loom)]
pub fn explore(model: impl Fn() + Sync + Send + 'static) {
    run(None, model);
}

/// Runs `model` over all interleavings with up to `preemptions` preemptions, and prints how many there were.
#[cfg(loom)]
pub fn explore_to(preemptions: usize, model: impl Fn() + Sync + Send + 'static) {
    run(Some(preemptions), model);
}

#[cfg(loom)]
fn run(preemption_bound: Option<usize>, model: impl Fn() + Sync + Send + 'static) {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    let executions = Arc::new(AtomicU64::new(0));
    let count = executions.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = preemption_bound;
    // Setting up an address space alone takes several hundred steps of the one thread that there is then.
    builder.max_branches = 50_000;
    builder.check(move || {
        // Relaxed, both: for the printed report.
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    println!("{} executions", executions.load(Ordering::Relaxed));
}
