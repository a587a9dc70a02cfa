//! Allocation of the slots of one ring's buffer table.
//!
//! Plain data without locks or system calls. A pin takes adjacent slots. Its name has three parts: the first slot, the
//! count, and a generation that distinguishes it from later pins of the same slots.

use prereg::PinId;

/// Slots of one table, the kernel's limit.
pub(crate) const SLOTS: u32 = 1 << 14;

/// Most rings of one back end: slot numbers over all rings fit 24 bits and leave the last number unused.
pub(crate) const RINGS: u32 = 512;

/// Adjacent slots of one pin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SlotRange {
    pub(crate) ring: u32,
    pub(crate) first: u32,
    pub(crate) count: u32,
    generation: u32,
}

const GENERATIONS: u32 = (1 << 24) - 1;

impl SlotRange {
    /// The pin's name: 24 bits of slot, 15 of count, 24 of generation.
    pub(crate) fn id(self) -> PinId {
        let slot = u64::from(self.global());
        PinId::new(slot | u64::from(self.count) << 24 | u64::from(self.generation) << 39)
    }

    /// The parts of `id`, unchecked; the table knows whether there is such a pin.
    pub(crate) fn from_id(id: PinId) -> Self {
        let slot = (id.raw() & 0xff_ffff) as u32;
        Self {
            ring: slot / SLOTS,
            first: slot % SLOTS,
            count: (id.raw() >> 24 & 0x7fff) as u32,
            generation: (id.raw() >> 39 & 0xff_ffff) as u32,
        }
    }

    /// The number of the first slot, counted over all rings.
    pub(crate) const fn global(self) -> u32 {
        self.ring * SLOTS + self.first
    }
}

/// The slots of one ring.
#[derive(Debug)]
pub(crate) struct SlotTable {
    ring: u32,
    /// One bit per slot.
    used: Box<[u64]>,
    /// The generation of the pin that starts at a slot, or of the last one that did.
    generations: Box<[u32]>,
    /// The slot count of the pin that starts at a slot; 0 where none does.
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

    /// Allocates `count` adjacent slots.
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
        // A count is at most 2^14, the size of the table.
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

    /// Whether `slots` names a pin that is allocated and not claimed.
    fn contains(&self, slots: SlotRange) -> bool {
        let first = slots.first as usize;
        slots.ring == self.ring
            && slots.count != 0
            && u32::from(self.counts[first]) == slots.count
            && self.generations[first] == slots.generation
    }

    /// Claims a pin for release: only the first claim returns `true`. The slots stay in use until
    /// [`free_slots`](Self::free_slots). `false` when there is no such pin.
    pub(crate) fn claim(&mut self, slots: SlotRange) -> bool {
        let known = self.contains(slots);
        if known {
            self.counts[slots.first as usize] = 0;
        }
        known
    }

    /// Frees the slots of a claimed pin.
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
        for made_up in [0, 1, u64::MAX, u64::from(second.global()), second.id().raw() ^ 1 << 24] {
            assert!(!table.claim(SlotRange::from_id(PinId::new(made_up))), "{made_up:#x}");
        }
        assert!(table.contains(second));
    }
}
