//! Shadow doorbells (section 5.7): the guest writes tails and heads to its own memory, and writes the register only when it
//! passes the EventIdx value that the controller stored.

use std::sync::atomic::{Ordering, fence};

use prereg::{Access, Iova};

use super::doorbell::ShadowValue;
use super::memory::{GuestGuard, GuestMemory, Unreachable};
use super::ring_memory::RingMemory;

/// The two buffers of Doorbell Buffer Config.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ShadowBuffers {
    /// The shadow doorbells.
    pub doorbells: Iova,
    /// The EventIdx values.
    pub events: Iova,
    /// The length of each buffer: one memory page.
    pub bytes: u64,
}

/// Access to the buffers, for one poll group.
#[derive(Debug)]
pub(crate) struct Shadow<M: GuestMemory> {
    doorbells: RingMemory<M>,
    events: RingMemory<M>,
}

/// Nanoseconds until a shadow doorbell that cannot be reached is tried again: nothing reports that memory is back.
const RETRY_TIME: u64 = 10_000_000;

/// When to load a shadow doorbell again that could not be reached.
pub(crate) fn retry_at(shadow: ShadowValue, now: u64) -> Option<u64> {
    (shadow == ShadowValue::Unreachable).then(|| now.saturating_add(RETRY_TIME))
}

impl<M: GuestMemory> Shadow<M> {
    /// Access to `buffers`.
    pub(crate) fn new(buffers: ShadowBuffers) -> Self {
        Self {
            doorbells: RingMemory::new(buffers.doorbells, buffers.bytes, Access::ReadWrite),
            events: RingMemory::new(buffers.events, buffers.bytes, Access::ReadWrite),
        }
    }

    /// Loads shadow doorbell `at`.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub(crate) fn load(&mut self, memory: &M, at: usize) -> Result<u32, Unreachable> {
        self.doorbells.hold(memory)?.load_u32(at as u64 * 4)
    }

    /// Sets shadow doorbell `at` and its EventIdx to `value`, the position in the queue.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub(crate) fn init(&mut self, memory: &M, at: usize, value: u32) -> Result<(), Unreachable> {
        self.doorbells.hold(memory)?.store_u32(at as u64 * 4, value)?;
        self.events.hold(memory)?.store_u32(at as u64 * 4, value)
    }

    /// Sets the EventIdx of doorbell `at`, then loads the shadow doorbell: from here on the guest either writes the register,
    /// or its value is in the result.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub(crate) fn arm(&mut self, memory: &M, at: usize, value: u32) -> Result<u32, Unreachable> {
        self.events.hold(memory)?.store_u32(at as u64 * 4, value)?;
        // The guest stores its value, fences, and loads ours; we do the same with the two swapped.
        fence(Ordering::SeqCst);
        self.load(memory, at)
    }

    /// The value of shadow doorbell `at`.
    pub(crate) fn value(shadow: &mut Option<Self>, memory: &M, at: usize) -> ShadowValue {
        match shadow {
            None => ShadowValue::Absent,
            Some(shadow) => shadow.load(memory, at).map_or(ShadowValue::Unreachable, ShadowValue::Known),
        }
    }

    /// As [`value`](Self::value), after setting the EventIdx to `value`.
    pub(crate) fn armed_value(shadow: &mut Option<Self>, memory: &M, at: usize, value: u32) -> ShadowValue {
        match shadow {
            None => ShadowValue::Absent,
            Some(shadow) => {
                shadow.arm(memory, at, value).map_or(ShadowValue::Unreachable, ShadowValue::Known)
            }
        }
    }

    /// Both buffers.
    pub(crate) fn buffers(&mut self) -> [&mut RingMemory<M>; 2] {
        [&mut self.doorbells, &mut self.events]
    }
}
