//! Shadow doorbells (section 5.7): the guest writes tails and heads to its own memory, and rings only when it passes the
//! value that the controller left beside them.

use std::sync::atomic::{Ordering, fence};

use prereg::{Access, Iova};

use super::doorbell::ShadowValue;
use super::memory::{GuestGuard, GuestMemory, Unreachable};
use super::ring_memory::RingMemory;

/// The two buffers of Doorbell Buffer Config.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShadowBuffers {
    /// What the guest writes instead of doorbells.
    pub doorbells: Iova,
    /// Where the controller says which value to ring at.
    pub events: Iova,
    /// The length of each: one memory page.
    pub bytes: u64,
}

/// A poll_group's view of them.
#[derive(Debug)]
pub struct Shadow<M: GuestMemory> {
    doorbells: RingMemory<M>,
    events: RingMemory<M>,
}

/// Nanoseconds until a word whose memory is away is looked at again: nothing tells when memory returns.
const RETRY_TIME: u64 = 10_000_000;

/// When to look again at `now` for a guest's `word`, if nothing tells of it.
#[must_use]
pub fn retry_at(shadow: ShadowValue, now: u64) -> Option<u64> {
    (shadow == ShadowValue::Unreachable).then(|| now.saturating_add(RETRY_TIME))
}

impl<M: GuestMemory> Shadow<M> {
    /// Of the buffers that the guest named.
    #[must_use]
    pub fn new(buffers: ShadowBuffers) -> Self {
        Self {
            doorbells: RingMemory::new(buffers.doorbells, buffers.bytes, Access::ReadWrite),
            events: RingMemory::new(buffers.events, buffers.bytes, Access::ReadWrite),
        }
    }

    /// What the guest wrote for doorbell `at`.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn load(&mut self, memory: &M, at: usize) -> Result<u32, Unreachable> {
        self.doorbells.hold(memory)?.load_u32(at as u64 * 4)
    }

    /// Begins doorbell `at` with `value`, which is where the queue is.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn init(&mut self, memory: &M, at: usize, value: u32) -> Result<(), Unreachable> {
        self.doorbells.hold(memory)?.store_u32(at as u64 * 4, value)?;
        self.events.hold(memory)?.store_u32(at as u64 * 4, value)
    }

    /// Asks the guest to ring when it passes `value`, and gives what it wrote so far: from here on either it rings or this
    /// has it.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn arm(&mut self, memory: &M, at: usize, value: u32) -> Result<u32, Unreachable> {
        self.events.hold(memory)?.store_u32(at as u64 * 4, value)?;
        // The guest writes its value, fences, and reads ours; we do the same the other way round.
        fence(Ordering::SeqCst);
        self.load(memory, at)
    }

    /// The guest's word for doorbell `at`, if there are buffers and they can be reached.
    pub fn value(shadow: &mut Option<Self>, memory: &M, at: usize) -> ShadowValue {
        match shadow {
            None => ShadowValue::Absent,
            Some(shadow) => shadow.load(memory, at).map_or(ShadowValue::Unreachable, ShadowValue::Known),
        }
    }

    /// As [`word`](Self::word), after asking the guest to ring when it passes `value`.
    pub fn armed_value(shadow: &mut Option<Self>, memory: &M, at: usize, value: u32) -> ShadowValue {
        match shadow {
            None => ShadowValue::Absent,
            Some(shadow) => {
                shadow.arm(memory, at, value).map_or(ShadowValue::Unreachable, ShadowValue::Known)
            }
        }
    }

    /// Both windows.
    pub fn buffers(&mut self) -> [&mut RingMemory<M>; 2] {
        [&mut self.doorbells, &mut self.events]
    }
}
