//! One doorbell as the thread that serves its queue sees it: the register, and after Doorbell Buffer Config the guest's word
//! in memory too (NVMe 1.4 section 5.7).
//!
//! Drivers differ: some write both for every queue, some use only one of the two for a queue, some change. So either counts.
//! A driver that uses the word writes it before the register, and register writes are posted: they may arrive when the
//! word, and the queue, are ahead of them. In a ring such a late value looks like one that is almost a whole ring ahead, and
//! believing it would execute old commands again. Hence, once the guest has moved the word, a register value
//! counts only if it is at most half a ring ahead and the word has stood still for [`STILL`] since.

/// Nanoseconds that a word in use must stand still before a register value that differs from it counts.
pub const STILL: u64 = 10_000_000;

/// The guest's word for a doorbell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Word {
    /// There was no Doorbell Buffer Config.
    Absent,
    /// Its memory cannot be reached now.
    Away,
    /// What it says.
    Says(u32),
}

/// A value to take over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rung {
    /// From the register.
    Register(u32),
    /// From the guest's memory.
    Memory(u32),
}

impl Rung {
    /// The value.
    #[must_use]
    pub fn value(self) -> u32 {
        match self {
            Self::Register(value) | Self::Memory(value) => value,
        }
    }
}

/// What was seen of a doorbell.
#[derive(Clone, Copy, Default, Debug)]
pub struct Doorbell {
    register: u32,
    word: u32,
    /// The guest moved the word more recently than a register value counted.
    uses_word: bool,
    /// When the register's value counts, if the word stands still until then.
    due: Option<u64>,
}

impl Doorbell {
    /// Starts over: both are `value`, which is where the queue is.
    pub fn begin(&mut self, value: u32) {
        *self = Self { register: value, word: value, ..Self::default() };
    }

    /// The value to take over at `now`, if there is one, for a ring of `entries` that is at `here`. `register` must have been
    /// loaded before the word: then a word is never older than the register value that came with it.
    pub fn look(&mut self, register: u32, word: Word, here: u32, entries: u32, now: u64) -> Option<Rung> {
        match word {
            Word::Absent => {
                self.register = register;
                return Some(Rung::Register(register));
            }
            Word::Says(word) if word != self.word => {
                *self = Self { register, word, uses_word: true, due: None };
                return Some(Rung::Memory(word));
            }
            Word::Away | Word::Says(_) => {}
        }
        if register != self.register {
            self.register = register;
            if !self.uses_word {
                return Some(Rung::Register(register));
            }
            let ahead = if register < entries { distance(here, register, entries) } else { 0 };
            self.due = (1..=entries / 2).contains(&ahead).then(|| now.saturating_add(STILL));
        }
        self.due.filter(|due| now >= *due)?;
        self.due = None;
        self.uses_word = false;
        Some(Rung::Register(self.register))
    }

    /// Whether [`look`](Self::look) would find something else than the last time.
    #[must_use]
    pub fn is_news(&self, register: u32, word: Word) -> bool {
        register != self.register || matches!(word, Word::Says(word) if word != self.word)
    }

    /// When to look again even if nothing is written.
    #[must_use]
    pub fn due(&self) -> Option<u64> {
        self.due
    }
}

/// How many steps forward it is from `from` to `to` in a ring. Of numbers that do not lie in it, which a guest may write, any number.
#[must_use]
pub fn distance(from: u32, to: u32, entries: u32) -> u32 {
    if to >= from { to - from } else { to.wrapping_add(entries).wrapping_sub(from) }
}

#[cfg(test)]
mod tests {
    use super::{Doorbell, Rung, STILL, Word};

    const ENTRIES: u32 = 64;

    #[test]
    fn without_a_word_the_register_counts() {
        let mut doorbell = Doorbell::default();
        assert_eq!(doorbell.look(7, Word::Absent, 0, ENTRIES, 0), Some(Rung::Register(7)));
    }

    #[test]
    fn a_driver_that_leaves_the_word_alone_is_served_at_once() {
        let mut doorbell = Doorbell::default();
        doorbell.begin(3);
        assert_eq!(doorbell.look(3, Word::Says(3), 3, ENTRIES, 0), None);
        for at in 4..70 {
            assert!(doorbell.is_news(at % ENTRIES, Word::Says(3)));
            let here = (at - 1) % ENTRIES;
            let rung = doorbell.look(at % ENTRIES, Word::Says(3), here, ENTRIES, 0);
            assert_eq!(rung, Some(Rung::Register(at % ENTRIES)));
        }
    }

    #[test]
    fn a_register_write_that_comes_late_is_not_taken_for_one_almost_a_ring_ahead() {
        let mut doorbell = Doorbell::default();
        doorbell.begin(0);
        assert_eq!(doorbell.look(0, Word::Says(10), 0, ENTRIES, 0), Some(Rung::Memory(10)));
        for late in [9, 10, 1] {
            for now in [0, 2 * STILL] {
                assert_eq!(doorbell.look(late, Word::Says(10), 10, ENTRIES, now), None, "{late} at {now}");
            }
            assert_eq!(doorbell.due(), None);
        }
    }

    #[test]
    fn a_driver_that_changes_from_the_word_to_the_register_is_served_when_the_word_stood_still() {
        let mut doorbell = Doorbell::default();
        doorbell.begin(0);
        assert_eq!(doorbell.look(0, Word::Says(5), 0, ENTRIES, 0), Some(Rung::Memory(5)));
        assert_eq!(doorbell.look(6, Word::Says(5), 5, ENTRIES, 100), None);
        assert_eq!(doorbell.due(), Some(100 + STILL));
        assert!(!doorbell.is_news(6, Word::Says(5)), "only time changes this");
        assert_eq!(doorbell.look(6, Word::Says(5), 5, ENTRIES, 99 + STILL), None);
        assert_eq!(doorbell.look(6, Word::Says(5), 5, ENTRIES, 100 + STILL), Some(Rung::Register(6)));
        assert_eq!(doorbell.look(7, Word::Away, 6, ENTRIES, 100 + STILL), Some(Rung::Register(7)), "no wait");
        assert_eq!(doorbell.look(7, Word::Says(9), 7, ENTRIES, 0), Some(Rung::Memory(9)), "and back");
    }

    #[test]
    fn a_word_that_moves_ends_the_wait() {
        let mut doorbell = Doorbell::default();
        doorbell.begin(0);
        doorbell.look(0, Word::Says(5), 0, ENTRIES, 0);
        assert_eq!(doorbell.look(7, Word::Says(5), 5, ENTRIES, 0), None);
        assert_eq!(doorbell.look(7, Word::Says(8), 5, ENTRIES, 1), Some(Rung::Memory(8)));
        assert_eq!(doorbell.look(7, Word::Says(8), 8, ENTRIES, 2 * STILL), None);
    }

    #[test]
    fn a_word_that_is_away_leaves_a_late_register_write_ignored() {
        let mut doorbell = Doorbell::default();
        doorbell.begin(0);
        doorbell.look(0, Word::Says(10), 0, ENTRIES, 0);
        assert_eq!(doorbell.look(8, Word::Away, 10, ENTRIES, 0), None);
        assert_eq!(doorbell.look(8, Word::Away, 10, ENTRIES, 2 * STILL), None);
    }
}
