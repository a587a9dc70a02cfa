//! `RundownRef`: users that hold units against the thread that closes.
#![cfg(loom)]
#![expect(unsafe_code, reason = "the protected memory is a loom cell")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;
use prereg::{DrainResult, LeaveResult, RundownRef};
use prereg_models::explore_to;

/// A ref and the memory it protects.
struct Guarded {
    rundown: RundownRef,
    memory: UnsafeCell<u64>,
}

// SAFETY: the ref orders accesses to the cell, and loom checks it.
unsafe impl Sync for Guarded {}
// SAFETY: as above.
unsafe impl Send for Guarded {}

impl Guarded {
    fn new() -> Arc<Self> {
        Arc::new(Self { rundown: RundownRef::new(), memory: UnsafeCell::new(1) })
    }

    fn use_memory(&self) {
        // SAFETY: a unit is held.
        let seen = self.memory.with(|memory| unsafe { *memory });
        assert_eq!(seen, 1, "used after the release");
    }

    fn release(&self) {
        // SAFETY: the ref is closed and no unit is held.
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
        assert!(closed || entered > 0, "the close was refused without a user");
        if !closed {
            assert_eq!(guarded.rundown.try_close(), Ok(()), "all units are released");
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
                    // SAFETY: a unit is held.
                    assert_eq!(guarded.memory.with(|memory| unsafe { *memory }), 2);
                    let _ = guarded.rundown.leave().unwrap();
                }
            })
        };
        let _ = guarded.rundown.close_and_drain();
        // SAFETY: closed, and the only unit is this thread's: the other thread enters only after it found the ref
        // closed.
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
                    // SAFETY: the last unit of a closed ref, so after the close.
                    assert_eq!(guarded.memory.with(|memory| unsafe { *memory }), 2);
                }
            })
        };
        // SAFETY: the holder of the unit does not use the memory.
        guarded.memory.with_mut(|memory| unsafe { *memory = 2 });
        let _ = guarded.rundown.close_and_drain();
        user.join().unwrap();
    });
}
