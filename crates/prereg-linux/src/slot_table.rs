//! Which slots of one ring's buffer table are used, and by which pin.
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
pub(crate) struct SlotRange {
    pub(crate) ring: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
    generation: u32,
}

const GENERATIONS: u32 = (1 << 24) - 1;

impl SlotRange {
    /// One number for all of it: 24 bits slot, 15 bits count, 24 bits generation.
    pub(crate) fn id(self) -> PinId {
        let slot = u64::from(self.global());
        PinId(slot | u64::from(self.count) << 24 | u64::from(self.generation) << 39)
    }

    /// What `id` says; whether it is true is the table's to check.
    pub(crate) fn from_id(id: PinId) -> Self {
        let slot = (id.0 & 0xff_ffff) as u32;
        Self {
            ring: slot / SLOTS,
            first: slot % SLOTS,
            count: (id.0 >> 24 & 0x7fff) as u32,
            generation: (id.0 >> 39 & 0xff_ffff) as u32,
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
    /// A bit a slot: used.
    used: Box<[u64]>,
    /// The generation of the pin that a slot begins, or began last.
    generations: Box<[u32]>,
    /// How many slots that pin has; 0 where none begins.
    counts: Box<[u16]>,
    free: u32,
    /// The word of `used` where the last search ended.
    hint: usize,
}

impl SlotTable {
    pub(crate) fn new(ring: u32) -> Self {
        Self {
            ring,
            used: vec![0; SLOTS as usize / 64].into_boxed_slice(),
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
    pub(crate) fn alloc(&mut self, count: u32) -> Option<SlotRange> {
        if count == 0 || count > self.free {
            return None;
        }
        let first = if count == 1 { self.find_one()? } else { self.find_many(count)? };
        for slot in first..first + count {
            self.used[slot as usize / 64] |= 1 << (slot % 64);
        }
        self.free -= count;
        let generation = &mut self.generations[first as usize];
        *generation = *generation % GENERATIONS + 1;
        let generation = *generation;
        // A count never passes the table: 2^14.
        self.counts[first as usize] = count as u16;
        Some(SlotRange { ring: self.ring, first, count, generation })
    }

    fn find_one(&mut self) -> Option<u32> {
        let words = self.used.len();
        let word = (0..words).map(|i| (self.hint + i) % words).find(|&word| self.used[word] != u64::MAX)?;
        self.hint = word;
        Some(word as u32 * 64 + self.used[word].trailing_ones())
    }

    fn find_many(&self, count: u32) -> Option<u32> {
        let mut run = 0;
        for slot in 0..SLOTS {
            run = if self.used[slot as usize / 64] >> (slot % 64) & 1 == 0 { run + 1 } else { 0 };
            if run == count {
                return Some(slot + 1 - count);
            }
        }
        None
    }

    /// Whether `held` names a pin that this table gave out and has not got back.
    fn contains(&self, slots: SlotRange) -> bool {
        let first = slots.first as usize;
        slots.ring == self.ring
            && slots.count != 0
            && u32::from(self.counts[first]) == slots.count
            && self.generations[first] == slots.generation
    }

    /// Makes `held` the caller's to release, once: a second claim finds nothing. The slots stay used until
    /// [`free_slots`](Self::free_slots). `false` when it names nothing that is held.
    pub(crate) fn claim(&mut self, slots: SlotRange) -> bool {
        let known = self.contains(slots);
        if known {
            self.counts[slots.first as usize] = 0;
        }
        known
    }

    /// Takes back the slots of a claimed pin.
    pub(crate) fn free_slots(&mut self, slots: SlotRange) {
        for slot in slots.first..slots.first + slots.count {
            self.used[slot as usize / 64] &= !(1 << (slot % 64));
        }
        self.free += slots.count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_gives_out_each_slot_once() {
        let mut table = SlotTable::new(3);
        let slots: Vec<_> = (0..SLOTS).map(|_| table.alloc(1).unwrap()).collect();
        assert_eq!(table.alloc(1), None);
        assert_eq!(table.free(), 0);
        let mut slots: Vec<_> = slots.iter().map(|slots| slots.global()).collect();
        slots.sort_unstable();
        assert!(slots.iter().copied().eq(3 * SLOTS..4 * SLOTS));
    }

    #[test]
    fn neighbours_are_found_between_others_or_not_at_all() {
        let mut table = SlotTable::new(0);
        let slots: Vec<_> = (0..SLOTS / 4).map(|_| table.alloc(4).unwrap()).collect();
        for index in [10, 12, 13] {
            assert!(table.claim(slots[index]));
            table.free_slots(slots[index]);
        }
        assert_eq!(table.alloc(9), None);
        let eight = table.alloc(8).unwrap();
        assert_eq!(eight.first, 48);
        assert_eq!(table.alloc(4).unwrap().first, 40);
        assert_eq!(table.alloc(1), None);
    }

    #[test]
    fn a_whole_table_can_be_one_pin_and_more_cannot() {
        let mut table = SlotTable::new(0);
        assert_eq!(table.alloc(SLOTS + 1), None);
        assert_eq!(table.alloc(0), None);
        let all = table.alloc(SLOTS).unwrap();
        assert_eq!(SlotRange::from_id(all.id()), all);
        assert!(table.claim(all));
        table.free_slots(all);
        assert_eq!(table.free(), SLOTS);
    }

    #[test]
    fn names_survive_the_number_and_stale_ones_are_denied() {
        let mut table = SlotTable::new(RINGS - 1);
        let first = table.alloc(7).unwrap();
        assert_eq!(SlotRange::from_id(first.id()), first);
        assert!(table.contains(first));
        assert!(table.claim(first));
        assert!(!table.claim(first), "a second release finds nothing");
        table.free_slots(first);
        let second = table.alloc(7).unwrap();
        assert_eq!(second.first, first.first);
        assert!(table.contains(second) && !table.contains(first));
        for made_up in [0, 1, u64::MAX, u64::from(second.global()), second.id().0 ^ 1 << 24] {
            assert!(!table.claim(SlotRange::from_id(PinId(made_up))), "{made_up:#x}");
        }
        assert!(table.contains(second));
    }
}
