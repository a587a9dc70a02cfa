//! A part of real memory, registered as a region.

use std::any::Any;
use std::sync::Arc;

use prereg::{Memory, UserAddr};
use prereg_linux::GuestMemory;

/// `bytes` bytes of `memory`, from the user address `at` on.
#[derive(Debug)]
pub(super) struct Part<'a> {
    memory: &'a GuestMemory,
    at: u64,
    bytes: u64,
}

impl<'a> Part<'a> {
    /// `None` if the part is not inside the memory.
    #[must_use]
    pub(super) fn new(memory: &'a GuestMemory, at: u64, bytes: u64) -> Option<Self> {
        let offset = at.checked_sub(memory.ua().raw())?;
        (offset.checked_add(bytes)? <= memory.bytes()).then_some(Self { memory, at, bytes })
    }
}

// SAFETY: `new` checked that the part lies inside the memory, whose own implementation promises this for all of it.
#[expect(unsafe_code, reason = "the promise of the trait is the whole memory's")]
unsafe impl Memory for Part<'_> {
    fn ua(&self) -> UserAddr {
        UserAddr::new(self.at)
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>> {
        self.memory.keep()
    }
}
