//! The gate: users inside against the one that closes.
#![cfg(loom)]
#![expect(unsafe_code, reason = "the protected memory is a loom cell")]
#![expect(clippy::unwrap_used, reason = "a test says by panicking")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use prereg::{Drain, Gate, Left};
use prereg_models::explore;
use prereg_models::twins::{RelaxedLeave, TwoSteps};

/// A gate and the memory it protects.
struct Guarded<G> {
    gate: G,
    memory: UnsafeCell<u64>,
}

// SAFETY: access to the cell is what the gate, and loom, watch over.
unsafe impl<G: Sync> Sync for Guarded<G> {}
// SAFETY: as above.
unsafe impl<G: Send> Send for Guarded<G> {}

impl<G> Guarded<G> {
    fn new(gate: G) -> Arc<Self> {
        Arc::new(Self { gate, memory: UnsafeCell::new(1) })
    }

    fn use_memory(&self) {
        // SAFETY: inside the gate.
        let seen = self.memory.with(|memory| unsafe { *memory });
        assert_eq!(seen, 1, "used after the release");
    }

    fn release(&self) {
        // SAFETY: the gate is closed and empty.
        self.memory.with_mut(|memory| unsafe { *memory = 0 });
    }
}

#[test]
fn two_users_against_the_last_unregister() {
    explore(|| {
        let guarded = Guarded::new(Gate::new());
        let users: Vec<_> = (0..2)
            .map(|_| {
                let guarded = guarded.clone();
                thread::spawn(move || {
                    if guarded.gate.enter().is_ok() {
                        guarded.use_memory();
                        assert_eq!(guarded.gate.leave(), Ok(Left::Others));
                        true
                    } else {
                        false
                    }
                })
            })
            .collect();
        let closed = guarded.gate.try_close().is_ok();
        if closed {
            guarded.release();
        }
        let entered = users.into_iter().map(|user| user.join().unwrap()).filter(|&entered| entered).count();
        assert!(closed || entered > 0, "the close was refused for nobody");
        if !closed {
            assert_eq!(guarded.gate.try_close(), Ok(()), "everybody left");
        }
    });
}

#[test]
fn a_unit_given_back_on_another_thread() {
    explore(|| {
        let guarded = Guarded::new(Gate::new());
        guarded.gate.enter().unwrap();
        guarded.use_memory();
        let other = {
            let guarded = guarded.clone();
            thread::spawn(move || {
                guarded.use_memory();
                guarded.gate.leave().unwrap()
            })
        };
        if guarded.gate.try_close().is_ok() {
            guarded.release();
        }
        let _ = other.join().unwrap();
    });
}

#[test]
fn the_last_to_leave_a_draining_gate_releases_once() {
    explore(|| {
        let guarded = Guarded::new(Gate::new());
        guarded.gate.enter().unwrap();
        guarded.gate.enter().unwrap();
        let users: Vec<_> = (0..2)
            .map(|_| {
                let guarded = guarded.clone();
                thread::spawn(move || {
                    guarded.use_memory();
                    let last = guarded.gate.leave() == Ok(Left::Last);
                    if last {
                        guarded.release();
                    }
                    last
                })
            })
            .collect();
        let empty = guarded.gate.close_and_drain() == Drain::Empty;
        if empty {
            guarded.release();
        }
        let releases = users.into_iter().map(|user| user.join().unwrap()).filter(|&last| last).count();
        assert_eq!(releases + usize::from(empty), 1, "released more or less than once");
    });
}

#[test]
fn a_reopen_and_the_last_leave_agree() {
    explore(|| {
        let guarded = Guarded::new(Gate::new());
        guarded.gate.enter().unwrap();
        assert_eq!(guarded.gate.close_and_drain(), Drain::Waiting(1));
        let user = {
            let guarded = guarded.clone();
            thread::spawn(move || {
                guarded.use_memory();
                let last = guarded.gate.leave() == Ok(Left::Last);
                if last {
                    guarded.release();
                }
                last
            })
        };
        let reopened = guarded.gate.reopen();
        if reopened {
            guarded.gate.enter().unwrap();
            guarded.use_memory();
            assert_eq!(guarded.gate.leave(), Ok(Left::Others));
        }
        let released = user.join().unwrap();
        assert_ne!(reopened, released, "reopened and released, or neither");
    });
}

#[test]
fn entering_a_reopened_gate_sees_what_was_done_while_it_was_closed() {
    explore(|| {
        let guarded = Guarded::new(Gate::new());
        guarded.gate.enter().unwrap();
        // Relaxed: tells the user that the gate was reopened, and orders nothing.
        let reopened = Arc::new(AtomicBool::new(false));
        let user = {
            let (guarded, reopened) = (guarded.clone(), reopened.clone());
            thread::spawn(move || {
                // It may find the gate closed all the same, because nothing is ordered before its look.
                if reopened.load(Ordering::Relaxed) && guarded.gate.enter().is_ok() {
                    guarded.use_memory();
                    assert_eq!(guarded.gate.leave(), Ok(Left::Others));
                }
            })
        };
        assert_eq!(guarded.gate.close_and_drain(), Drain::Waiting(1));
        // SAFETY: the only one inside is this thread, and nobody enters.
        guarded.memory.with_mut(|memory| unsafe { *memory = 1 });
        assert!(guarded.gate.reopen());
        reopened.store(true, Ordering::Relaxed);
        user.join().unwrap();
    });
}

#[test]
fn the_last_to_leave_sees_what_was_done_before_the_gate_was_closed() {
    explore(|| {
        let guarded = Guarded::new(Gate::new());
        guarded.gate.enter().unwrap();
        let user = {
            let guarded = guarded.clone();
            thread::spawn(move || {
                if guarded.gate.leave() == Ok(Left::Last) {
                    guarded.use_memory();
                    guarded.release();
                }
            })
        };
        // SAFETY: the user looks only after it was told that the gate is closed.
        guarded.memory.with_mut(|memory| unsafe { *memory = 1 });
        let _ = guarded.gate.close_and_drain();
        user.join().unwrap();
    });
}

/// The model of `two_users_against_the_last_unregister` with one user, over a twin.
macro_rules! twin {
    ($name:ident, $twin:ty) => {
        #[test]
        #[should_panic(expected = "Causality violation")]
        fn $name() {
            explore(|| {
                let guarded = Guarded::new(<$twin>::default());
                let user = {
                    let guarded = guarded.clone();
                    thread::spawn(move || {
                        if guarded.gate.enter() {
                            guarded.use_memory();
                            guarded.gate.leave();
                        }
                    })
                };
                if guarded.gate.try_close() {
                    guarded.release();
                }
                user.join().unwrap();
            });
        }
    };
}

twin!(broken_twin_with_a_relaxed_leave_is_caught, RelaxedLeave);
twin!(broken_twin_that_counts_in_two_steps_is_caught, TwoSteps);
