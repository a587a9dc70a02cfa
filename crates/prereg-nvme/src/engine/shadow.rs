//! Shadow doorbells (section 5.7): the guest writes tails and heads to its own memory, and rings only when it passes the
//! value that the controller left beside them.

use std::sync::atomic::{Ordering, fence};

use prereg::{Access, Iova};

use super::doorbell::Word;
use super::memory::{GuestGuard, GuestMemory, Unreachable};
use super::window::Window;

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

/// A lane's view of them.
#[derive(Debug)]
pub struct Shadow<M: GuestMemory> {
    doorbells: Window<M>,
    events: Window<M>,
}

/// Nanoseconds until a word whose memory is away is looked at again: nothing tells when memory returns.
const AWAY: u64 = 10_000_000;

/// When to look again at `now` for a guest's `word`, if nothing tells of it.
#[must_use]
pub fn look_again(word: Word, now: u64) -> Option<u64> {
    (word == Word::Away).then(|| now.saturating_add(AWAY))
}

impl<M: GuestMemory> Shadow<M> {
    /// Of the buffers that the guest named.
    #[must_use]
    pub fn new(buffers: ShadowBuffers) -> Self {
        Self {
            doorbells: Window::new(buffers.doorbells, buffers.bytes, Access::ReadWrite),
            events: Window::new(buffers.events, buffers.bytes, Access::ReadWrite),
        }
    }

    /// What the guest wrote for doorbell `at`.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn load(&mut self, memory: &M, at: usize) -> Result<u32, Unreachable> {
        self.doorbells.reach(memory)?.load_u32(at as u64 * 4)
    }

    /// Begins doorbell `at` with `value`, which is where the queue is.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn begin(&mut self, memory: &M, at: usize, value: u32) -> Result<(), Unreachable> {
        self.doorbells.reach(memory)?.store_u32(at as u64 * 4, value)?;
        self.events.reach(memory)?.store_u32(at as u64 * 4, value)
    }

    /// Asks the guest to ring when it passes `value`, and gives what it wrote so far: from here on either it rings or this
    /// has it.
    ///
    /// # Errors
    /// [`Unreachable`].
    pub fn ask(&mut self, memory: &M, at: usize, value: u32) -> Result<u32, Unreachable> {
        self.events.reach(memory)?.store_u32(at as u64 * 4, value)?;
        // The guest writes its value, fences, and reads ours; we do the same the other way round.
        fence(Ordering::SeqCst);
        self.load(memory, at)
    }

    /// The guest's word for doorbell `at`, if there are buffers and they can be reached.
    pub fn word(buffers: &mut Option<Self>, memory: &M, at: usize) -> Word {
        match buffers {
            None => Word::Absent,
            Some(shadow) => shadow.load(memory, at).map_or(Word::Away, Word::Says),
        }
    }

    /// As [`word`](Self::word), after asking the guest to ring when it passes `value`.
    pub fn word_from(buffers: &mut Option<Self>, memory: &M, at: usize, value: u32) -> Word {
        match buffers {
            None => Word::Absent,
            Some(shadow) => shadow.ask(memory, at, value).map_or(Word::Away, Word::Says),
        }
    }

    /// Both windows.
    pub fn windows(&mut self) -> [&mut Window<M>; 2] {
        [&mut self.doorbells, &mut self.events]
    }
}
