//! A stack of free slot numbers, without a lock and without memory of its own.
//!
//! The slots themselves store the links, so the caller passes the access to them. The head has the number on top and, above it, a count
//! of changes. Without the count, a thread that read the top and its link could exchange the head after other threads took that slot and
//! returned it (the ABA problem). The loom models of this file are in `models/tests/free_stack.rs`.

#[cfg(loom)]
use loom::sync::atomic::{AtomicU64, Ordering};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicU64, Ordering};

/// The head of the stack. Number 0 is the end.
#[derive(Debug)]
pub(crate) struct FreeStack(AtomicU64);

/// `top` with the count of changes after that of `head`.
#[inline]
fn next_head(head: u64, top: u32) -> u64 {
    (head >> 32).wrapping_add(1) << 32 | u64::from(top)
}

impl FreeStack {
    #[cfg(not(loom))]
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    #[cfg(loom)]
    pub(crate) fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Takes the number on top; `None` if the stack is empty. `below` reads the link of a slot, which another thread may write.
    #[inline]
    pub(crate) fn pop(&self, below: impl Fn(u32) -> u32) -> Option<u32> {
        // Acquire pairs with the Release in `push`: the link, and everything written to the slot before, is visible.
        let mut head = self.0.load(Ordering::Acquire);
        loop {
            let top = head as u32;
            if top == 0 {
                return None;
            }
            // If another thread takes the slot meanwhile the exchange fails, and the link is not used.
            let new = next_head(head, below(top));
            // Relaxed: it succeeds only on the value that was acquired, which the count makes unique, and continues the release sequence
            // of every `push` below. Acquire on failure, as above.
            match self.0.compare_exchange_weak(head, new, Ordering::Relaxed, Ordering::Acquire) {
                Ok(_) => return Some(top),
                Err(now) => head = now,
            }
        }
    }

    /// Puts a number on top. `set_below` writes the link of its slot, which the caller has taken and no longer uses.
    #[inline]
    pub(crate) fn push(&self, number: u32, set_below: impl Fn(u32)) {
        // Relaxed: the exchange checks it.
        let mut head = self.0.load(Ordering::Relaxed);
        loop {
            set_below(head as u32);
            // Release pairs with the Acquire in `pop`.
            match self.0.compare_exchange_weak(
                head,
                next_head(head, number),
                Ordering::Release,
                Ordering::Relaxed,
            ) {
                Ok(_) => return,
                Err(now) => head = now,
            }
        }
    }
}
