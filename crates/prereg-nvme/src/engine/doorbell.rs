//! One doorbell: its register and, after Doorbell Buffer Config, its shadow doorbell in guest memory (NVMe 1.4 section 5.7).
//!
//! Drivers differ: some write both for every queue, some only one of the two, some change. So either counts. A driver that uses
//! the shadow doorbell writes it before the register, and register writes are posted: they may arrive when the shadow doorbell
//! and the queue are ahead of them. In a ring, such a late value looks like one almost a whole ring ahead; using it would
//! execute old commands again. So once the guest has written the shadow doorbell, a register value counts only if it is at most
//! half a ring ahead and the shadow doorbell has not changed for [`SETTLE_TIME`] since.

/// Nanoseconds that a shadow doorbell in use must not change before a different register value counts.
pub const SETTLE_TIME: u64 = 10_000_000;

/// The state of a shadow doorbell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum ShadowValue {
    /// There was no Doorbell Buffer Config.
    Absent,
    /// Its memory cannot be reached at the moment.
    Unreachable,
    /// Its value.
    Known(u32),
}

/// The new value of a doorbell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum DoorbellValue {
    /// From the register.
    Register(u32),
    /// From the shadow doorbell.
    Shadow(u32),
}

impl DoorbellValue {
    /// The value itself.
    pub(crate) fn value(self) -> u32 {
        match self {
            Self::Register(value) | Self::Shadow(value) => value,
        }
    }
}

/// The last values of a doorbell.
#[derive(Clone, Copy, Default, Debug)]
pub struct Doorbell {
    register: u32,
    shadow: u32,
    /// The guest used the shadow doorbell last.
    uses_shadow: bool,
    /// When the register's value counts, if the shadow doorbell does not change until then.
    due: Option<u64>,
}

impl Doorbell {
    /// Sets both to `value`, the position in the queue.
    pub(crate) fn init(&mut self, value: u32) {
        *self = Self { register: value, shadow: value, ..Self::default() };
    }

    /// The new value at `now`, if there is one, for a ring of `entries` at position `current`. `register` must be loaded before
    /// the shadow doorbell, which is then never older than the register value written with it.
    pub(crate) fn next_value(
        &mut self,
        register: u32,
        shadow: ShadowValue,
        current: u32,
        entries: u32,
        now: u64,
    ) -> Option<DoorbellValue> {
        match shadow {
            ShadowValue::Absent => {
                self.register = register;
                return Some(DoorbellValue::Register(register));
            }
            ShadowValue::Known(shadow) if shadow != self.shadow => {
                *self = Self { register, shadow, uses_shadow: true, due: None };
                return Some(DoorbellValue::Shadow(shadow));
            }
            ShadowValue::Unreachable | ShadowValue::Known(_) => {}
        }
        if register != self.register {
            self.register = register;
            if !self.uses_shadow {
                return Some(DoorbellValue::Register(register));
            }
            let ahead = if register < entries { distance(current, register, entries) } else { 0 };
            self.due = (1..=entries / 2).contains(&ahead).then(|| now.saturating_add(SETTLE_TIME));
        }
        self.due.filter(|due| now >= *due)?;
        self.due = None;
        self.uses_shadow = false;
        Some(DoorbellValue::Register(self.register))
    }

    /// Whether [`next_value`](Self::next_value) would find another value than the last time.
    pub(crate) fn has_changed(&self, register: u32, shadow: ShadowValue) -> bool {
        register != self.register || matches!(shadow, ShadowValue::Known(shadow) if shadow != self.shadow)
    }

    /// When to call [`next_value`](Self::next_value) again without a write.
    pub(crate) fn due(&self) -> Option<u64> {
        self.due
    }
}

/// Steps from `from` forward to `to` in a ring. Any number if one of them is outside the ring, as values from the guest may be.
pub(crate) fn distance(from: u32, to: u32, entries: u32) -> u32 {
    if to >= from { to - from } else { to.wrapping_add(entries).wrapping_sub(from) }
}

#[cfg(test)]
mod tests {
    use super::{Doorbell, DoorbellValue, SETTLE_TIME, ShadowValue};

    const ENTRIES: u32 = 64;

    #[test]
    fn without_a_word_the_register_counts() {
        let mut doorbell = Doorbell::default();
        assert_eq!(
            doorbell.next_value(7, ShadowValue::Absent, 0, ENTRIES, 0),
            Some(DoorbellValue::Register(7))
        );
    }

    #[test]
    fn a_driver_without_shadow_doorbells_is_served_at_once() {
        let mut doorbell = Doorbell::default();
        doorbell.init(3);
        assert_eq!(doorbell.next_value(3, ShadowValue::Known(3), 3, ENTRIES, 0), None);
        for at in 4..70 {
            assert!(doorbell.has_changed(at % ENTRIES, ShadowValue::Known(3)));
            let current = (at - 1) % ENTRIES;
            let rung = doorbell.next_value(at % ENTRIES, ShadowValue::Known(3), current, ENTRIES, 0);
            assert_eq!(rung, Some(DoorbellValue::Register(at % ENTRIES)));
        }
    }

    #[test]
    fn a_late_register_write_is_not_used_as_one_almost_a_ring_ahead() {
        let mut doorbell = Doorbell::default();
        doorbell.init(0);
        assert_eq!(
            doorbell.next_value(0, ShadowValue::Known(10), 0, ENTRIES, 0),
            Some(DoorbellValue::Shadow(10))
        );
        for late in [9, 10, 1] {
            for now in [0, 2 * SETTLE_TIME] {
                assert_eq!(
                    doorbell.next_value(late, ShadowValue::Known(10), 10, ENTRIES, now),
                    None,
                    "{late} at {now}"
                );
            }
            assert_eq!(doorbell.due(), None);
        }
    }

    #[test]
    fn a_driver_that_changes_to_the_register_is_served_after_the_settle_time() {
        let mut doorbell = Doorbell::default();
        doorbell.init(0);
        assert_eq!(
            doorbell.next_value(0, ShadowValue::Known(5), 0, ENTRIES, 0),
            Some(DoorbellValue::Shadow(5))
        );
        assert_eq!(doorbell.next_value(6, ShadowValue::Known(5), 5, ENTRIES, 100), None);
        assert_eq!(doorbell.due(), Some(100 + SETTLE_TIME));
        assert!(!doorbell.has_changed(6, ShadowValue::Known(5)), "only time changes this");
        assert_eq!(doorbell.next_value(6, ShadowValue::Known(5), 5, ENTRIES, 99 + SETTLE_TIME), None);
        assert_eq!(
            doorbell.next_value(6, ShadowValue::Known(5), 5, ENTRIES, 100 + SETTLE_TIME),
            Some(DoorbellValue::Register(6))
        );
        assert_eq!(
            doorbell.next_value(7, ShadowValue::Unreachable, 6, ENTRIES, 100 + SETTLE_TIME),
            Some(DoorbellValue::Register(7)),
            "no wait"
        );
        assert_eq!(
            doorbell.next_value(7, ShadowValue::Known(9), 7, ENTRIES, 0),
            Some(DoorbellValue::Shadow(9)),
            "and back"
        );
    }

    #[test]
    fn a_word_that_moves_ends_the_wait() {
        let mut doorbell = Doorbell::default();
        doorbell.init(0);
        doorbell.next_value(0, ShadowValue::Known(5), 0, ENTRIES, 0);
        assert_eq!(doorbell.next_value(7, ShadowValue::Known(5), 5, ENTRIES, 0), None);
        assert_eq!(
            doorbell.next_value(7, ShadowValue::Known(8), 5, ENTRIES, 1),
            Some(DoorbellValue::Shadow(8))
        );
        assert_eq!(doorbell.next_value(7, ShadowValue::Known(8), 8, ENTRIES, 2 * SETTLE_TIME), None);
    }

    #[test]
    fn a_word_that_is_away_leaves_a_late_register_write_ignored() {
        let mut doorbell = Doorbell::default();
        doorbell.init(0);
        doorbell.next_value(0, ShadowValue::Known(10), 0, ENTRIES, 0);
        assert_eq!(doorbell.next_value(8, ShadowValue::Unreachable, 10, ENTRIES, 0), None);
        assert_eq!(doorbell.next_value(8, ShadowValue::Unreachable, 10, ENTRIES, 2 * SETTLE_TIME), None);
    }
}
