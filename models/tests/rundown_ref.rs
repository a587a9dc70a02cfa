//! The gate: users inside against the one that closes.
#![cfg(loom)]
#![expect(unsafe_code, reason = "the protected memory is a loom cell")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use prereg::{DrainResult, LeaveResult, RundownRef};
use prereg_models::explore_to;

/// A gate and the memory it protects.
struct Guarded {
    rundown: RundownRef,
    memory: UnsafeCell<u64>,
}

// SAFETY: access to the cell is what the gate, and loom, watch over.
unsafe impl Sync for Guarded {}
// SAFETY: as above.
unsafe impl Send for Guarded {}

impl Guarded {
    fn new() -> Arc<Self> {
        Arc::new(Self { rundown: RundownRef::new(), memory: UnsafeCell::new(1) })
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
    explore_to(3, || {
        let guarded = Guarded::new();
        let users: Vec<_> = (0..2)
            .map(|_| {
                let guarded = guarded.clone();
                thread::spawn(move || {
                    if guarded.rundown.enter().is_ok() {
                        guarded.use_memory();
                        assert_eq!(guarded.rundown.leave(), Ok(LeaveResult::Others));
                        true
                    } else {
                        false
                    }
                })
            })
            .collect();
        let closed = guarded.rundown.try_close().is_ok();
        if closed {
            guarded.release();
        }
        let entered = users.into_iter().map(|user| user.join().unwrap()).filter(|&entered| entered).count();
        assert!(closed || entered > 0, "the close was refused for nobody");
        if !closed {
            assert_eq!(guarded.rundown.try_close(), Ok(()), "everybody left");
        }
    });
}

#[test]
fn a_unit_given_back_on_another_thread() {
    explore_to(3, || {
        let guarded = Guarded::new();
        guarded.rundown.enter().unwrap();
        guarded.use_memory();
        let other = {
            let guarded = guarded.clone();
            thread::spawn(move || {
                guarded.use_memory();
                guarded.rundown.leave().unwrap()
            })
        };
        if guarded.rundown.try_close().is_ok() {
            guarded.release();
        }
        let _ = other.join().unwrap();
    });
}

#[test]
fn the_last_to_leave_a_draining_rundown_ref_releases_once() {
    explore_to(3, || {
        let guarded = Guarded::new();
        guarded.rundown.enter().unwrap();
        guarded.rundown.enter().unwrap();
        let users: Vec<_> = (0..2)
            .map(|_| {
                let guarded = guarded.clone();
                thread::spawn(move || {
                    guarded.use_memory();
                    let last = guarded.rundown.leave() == Ok(LeaveResult::Last);
                    if last {
                        guarded.release();
                    }
                    last
                })
            })
            .collect();
        let empty = guarded.rundown.close_and_drain() == DrainResult::Empty;
        if empty {
            guarded.release();
        }
        let releases = users.into_iter().map(|user| user.join().unwrap()).filter(|&last| last).count();
        assert_eq!(releases + usize::from(empty), 1, "released more or less than once");
    });
}

#[test]
fn a_reopen_and_the_last_leave_agree() {
    explore_to(3, || {
        let guarded = Guarded::new();
        guarded.rundown.enter().unwrap();
        assert_eq!(guarded.rundown.close_and_drain(), DrainResult::Waiting(1));
        let user = {
            let guarded = guarded.clone();
            thread::spawn(move || {
                guarded.use_memory();
                let last = guarded.rundown.leave() == Ok(LeaveResult::Last);
                if last {
                    guarded.release();
                }
                last
            })
        };
        let reopened = guarded.rundown.reopen();
        if reopened {
            guarded.rundown.enter().unwrap();
            guarded.use_memory();
            assert_eq!(guarded.rundown.leave(), Ok(LeaveResult::Others));
        }
        let released = user.join().unwrap();
        assert_ne!(reopened, released, "reopened and released, or neither");
    });
}

#[test]
fn what_was_done_while_a_rundown_ref_was_closed_is_seen_by_who_enters_it_again() {
    explore_to(3, || {
        let guarded = Guarded::new();
        guarded.rundown.enter().unwrap();
        let user = {
            let guarded = guarded.clone();
            thread::spawn(move || {
                // Closed at first, so open again when this enters.
                if !guarded.rundown.is_closed() {
                    return;
                }
                if guarded.rundown.enter().is_ok() {
                    // SAFETY: inside the gate.
                    assert_eq!(guarded.memory.with(|memory| unsafe { *memory }), 2);
                    let _ = guarded.rundown.leave().unwrap();
                }
            })
        };
        let _ = guarded.rundown.close_and_drain();
        // SAFETY: closed, and the one inside is this thread: the other one enters only a gate that it found closed.
        guarded.memory.with_mut(|memory| unsafe { *memory = 2 });
        assert!(guarded.rundown.reopen());
        user.join().unwrap();
    });
}

#[test]
fn the_last_to_leave_sees_what_was_done_before_the_close() {
    explore_to(3, || {
        let guarded = Guarded::new();
        guarded.rundown.enter().unwrap();
        let user = {
            let guarded = guarded.clone();
            thread::spawn(move || {
                let last = guarded.rundown.leave() == Ok(LeaveResult::Last);
                if last {
                    // SAFETY: told to release, so after the close.
                    assert_eq!(guarded.memory.with(|memory| unsafe { *memory }), 2);
                }
            })
        };
        // SAFETY: whoever is inside does not use the memory.
        guarded.memory.with_mut(|memory| unsafe { *memory = 2 });
        let _ = guarded.rundown.close_and_drain();
        user.join().unwrap();
    });
}
