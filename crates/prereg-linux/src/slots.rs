//! Which slots of one ring's buffer table are taken, and by which pin.
//!
//! Plain data without a lock or a system call. A pin takes neighbouring slots, so that three numbers name it: the first
//! slot, how many, and a generation that makes the name of a pin that is gone different from that of the next one.

use prereg::PinId;

/// Slots of one table: the kernel allows no more.
pub(crate) const SLOTS: u32 = 1 << 14;

/// Rings of one back end at most: slot numbers of all of them fit 24 bits and leave the last one free.
pub(crate) const RINGS: u32 = 512;

/// Neighbouring slots that one pin holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Held {
    pub(crate) ring: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
    generation: u32,
}

const GENERATIONS: u32 = (1 << 24) - 1;

impl Held {
    /// One number for all of it: 24 bits slot, 15 bits count, 24 bits generation.
    pub(crate) fn id(self) -> PinId {
        let slot = u64::from(self.global());
        PinId::new(slot | u64::from(self.count) << 24 | u64::from(self.generation) << 39)
    }

    /// What `id` says; whether it is true is the table's to check.
    pub(crate) fn from_id(id: PinId) -> Self {
        let slot = (id.raw() & 0xff_ffff) as u32;
        Self {
            ring: slot / SLOTS,
            first: slot % SLOTS,
            count: (id.raw() >> 24 & 0x7fff) as u32,
            generation: (id.raw() >> 39 & 0xff_ffff) as u32,
        }
    }

    /// The number of the first slot over all rings.
    pub(crate) const fn global(self) -> u32 {
        self.ring * SLOTS + self.first
    }
}

/// The table of one ring.
#[derive(Debug)]
pub(crate) struct SlotTable {
    ring: u32,
    /// A bit a slot: taken.
    taken: Box<[u64]>,
    /// The generation of the pin that a slot begins, or began last.
    generations: Box<[u32]>,
    /// How many slots that pin has; 0 where none begins.
    counts: Box<[u16]>,
    free: u32,
    /// The word of `taken` where the last search ended.
    hint: usize,
}

impl SlotTable {
    pub(crate) fn new(ring: u32) -> Self {
        Self {
            ring,
            taken: vec![0; SLOTS as usize / 64].into_boxed_slice(),
            generations: vec![0; SLOTS as usize].into_boxed_slice(),
            counts: vec![0; SLOTS as usize].into_boxed_slice(),
            free: SLOTS,
            hint: 0,
        }
    }

    pub(crate) const fn free(&self) -> u32 {
        self.free
    }

    /// Takes `count` neighbouring slots, or none.
    pub(crate) fn take(&mut self, count: u32) -> Option<Held> {
        if count == 0 || count > self.free {
            return None;
        }
        let first = if count == 1 { self.find_one()? } else { self.find_many(count)? };
        for slot in first..first + count {
            self.taken[slot as usize / 64] |= 1 << (slot % 64);
        }
        self.free -= count;
        let generation = &mut self.generations[first as usize];
        *generation = *generation % GENERATIONS + 1;
        let generation = *generation;
        // A count never passes the table: 2^14.
        self.counts[first as usize] = count as u16;
        Some(Held { ring: self.ring, first, count, generation })
    }

    fn find_one(&mut self) -> Option<u32> {
        let words = self.taken.len();
        let word = (0..words).map(|i| (self.hint + i) % words).find(|&word| self.taken[word] != u64::MAX)?;
        self.hint = word;
        Some(word as u32 * 64 + self.taken[word].trailing_ones())
    }

    fn find_many(&self, count: u32) -> Option<u32> {
        let mut run = 0;
        for slot in 0..SLOTS {
            run = if self.taken[slot as usize / 64] >> (slot % 64) & 1 == 0 { run + 1 } else { 0 };
            if run == count {
                return Some(slot + 1 - count);
            }
        }
        None
    }

    /// Whether `held` names a pin that this table gave out and has not got back.
    fn holds(&self, held: Held) -> bool {
        let first = held.first as usize;
        held.ring == self.ring
            && held.count != 0
            && u32::from(self.counts[first]) == held.count
            && self.generations[first] == held.generation
    }

    /// Makes `held` the caller's to release, once: a second claim finds nothing. The slots stay taken until
    /// [`put`](Self::put). `false` when it names nothing that is held.
    pub(crate) fn claim(&mut self, held: Held) -> bool {
        let known = self.holds(held);
        if known {
            self.counts[held.first as usize] = 0;
        }
        known
    }

    /// Takes back the slots of a claimed pin.
    pub(crate) fn put(&mut self, held: Held) {
        for slot in held.first..held.first + held.count {
            self.taken[slot as usize / 64] &= !(1 << (slot % 64));
        }
        self.free += held.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_gives_out_each_slot_once() {
        let mut table = SlotTable::new(3);
        let held: Vec<_> = (0..SLOTS).map(|_| table.take(1).unwrap()).collect();
        assert_eq!(table.take(1), None);
        assert_eq!(table.free(), 0);
        let mut slots: Vec<_> = held.iter().map(|held| held.global()).collect();
        slots.sort_unstable();
        assert!(slots.iter().copied().eq(3 * SLOTS..4 * SLOTS));
    }

    #[test]
    fn neighbours_are_found_between_others_or_not_at_all() {
        let mut table = SlotTable::new(0);
        let held: Vec<_> = (0..SLOTS / 4).map(|_| table.take(4).unwrap()).collect();
        for index in [10, 12, 13] {
            assert!(table.claim(held[index]));
            table.put(held[index]);
        }
        assert_eq!(table.take(9), None);
        let eight = table.take(8).unwrap();
        assert_eq!(eight.first, 48);
        assert_eq!(table.take(4).unwrap().first, 40);
        assert_eq!(table.take(1), None);
    }

    #[test]
    fn a_whole_table_can_be_one_pin_and_more_cannot() {
        let mut table = SlotTable::new(0);
        assert_eq!(table.take(SLOTS + 1), None);
        assert_eq!(table.take(0), None);
        let all = table.take(SLOTS).unwrap();
        assert_eq!(Held::from_id(all.id()), all);
        assert!(table.claim(all));
        table.put(all);
        assert_eq!(table.free(), SLOTS);
    }

    #[test]
    fn names_survive_the_number_and_stale_ones_are_denied() {
        let mut table = SlotTable::new(RINGS - 1);
        let first = table.take(7).unwrap();
        assert_eq!(Held::from_id(first.id()), first);
        assert!(table.holds(first));
        assert!(table.claim(first));
        assert!(!table.claim(first), "a second release finds nothing");
        table.put(first);
        let second = table.take(7).unwrap();
        assert_eq!(second.first, first.first);
        assert!(table.holds(second) && !table.holds(first));
        for made_up in [0, 1, u64::MAX, u64::from(second.global()), second.id().raw() ^ 1 << 24] {
            assert!(!table.claim(Held::from_id(PinId::new(made_up))), "{made_up:#x}");
        }
        assert!(table.holds(second));
    }
}
