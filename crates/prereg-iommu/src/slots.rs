//! Guest memory slots: guest-physical ranges and the user memory behind them.
//!
//! A sorted list of slots without overlaps. It is built through `&mut` and then only read: when the guest's memory changes, the
//! list is replaced as a whole between hypercalls.

use alloc::vec::Vec;

use prereg::{Errno, GuestAddr, PageShift, UserAddr};

/// A guest-physical range and the user memory behind it: whole 4 KiB pages, not empty, ending below 2^64 on both sides.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemorySlot {
    /// The first guest byte.
    pub first: GuestAddr,
    /// The last guest byte.
    pub last: GuestAddr,
    /// The user address of the first byte.
    pub ua: UserAddr,
}

/// Errors of adding a slot. Nothing changed. EINVAL, or EEXIST for an overlap, as in KVM.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SlotError {
    /// Zero bytes.
    #[error("the memory slot at {gpa} is empty")]
    Empty {
        /// The start asked for.
        gpa: GuestAddr,
    },
    /// A start or the length is not a multiple of 4 KiB.
    #[error("the memory slot {gpa} -> {ua} of {bytes:#x} bytes is not made of whole 4 KiB pages")]
    Misaligned {
        /// The guest address asked for.
        gpa: GuestAddr,
        /// The user address asked for.
        ua: UserAddr,
        /// The length asked for.
        bytes: u64,
    },
    /// The slot reaches 2^64 on one side.
    #[error("the memory slot {gpa} -> {ua} of {bytes:#x} bytes passes the end of an address space")]
    Wraps {
        /// The guest address asked for.
        gpa: GuestAddr,
        /// The user address asked for.
        ua: UserAddr,
        /// The length asked for.
        bytes: u64,
    },
    /// The range overlaps another slot.
    #[error("the memory slot at {gpa} overlaps the one at {other}; remove that first")]
    Overlaps {
        /// The start asked for.
        gpa: GuestAddr,
        /// The start of that slot.
        other: GuestAddr,
    },
}

prereg::debug_as_display!(SlotError);

impl SlotError {
    /// EINVAL or EEXIST.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Overlaps { .. } => Errno::EEXIST,
            _ => Errno::EINVAL,
        }
    }
}

/// The memory slots of one guest.
///
/// ```
/// use prereg::{GuestAddr, UserAddr};
/// use prereg_iommu::MemorySlots;
///
/// let mut slots = MemorySlots::new();
/// slots.insert(GuestAddr::new(0), UserAddr::new(0x7000_0000), 0x10_0000)?;
/// assert_eq!(slots.translate(GuestAddr::new(0x1234), 4), Some(UserAddr::new(0x7000_1234)));
/// assert_eq!(slots.translate(GuestAddr::new(0xf_ffff), 2), None);
/// # Ok::<(), prereg_iommu::SlotError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemorySlots {
    /// Sorted by guest address; no two intersect.
    sorted: Vec<MemorySlot>,
}

impl MemorySlots {
    /// A guest without memory.
    #[must_use]
    pub const fn new() -> Self {
        Self { sorted: Vec::new() }
    }

    /// Adds a slot of `bytes` bytes from guest address `gpa` and user address `ua` on. Slots may share user memory, but not
    /// guest addresses.
    ///
    /// # Errors
    /// [`SlotError`], in this order: misaligned, empty, wrapping, overlapping.
    pub fn insert(&mut self, gpa: GuestAddr, ua: UserAddr, bytes: u64) -> Result<(), SlotError> {
        if (gpa.raw() | ua.raw() | bytes) & PageShift::K4.mask() != 0 {
            return Err(SlotError::Misaligned { gpa, ua, bytes });
        }
        let Some(more) = bytes.checked_sub(1) else { return Err(SlotError::Empty { gpa }) };
        let (Some(end), Some(_)) = (gpa.checked_add(bytes), ua.checked_add(bytes)) else {
            return Err(SlotError::Wraps { gpa, ua, bytes });
        };
        let at = self.sorted.partition_point(|slot| slot.last < gpa);
        if let Some(next) = self.sorted.get(at) {
            if next.first < end {
                return Err(SlotError::Overlaps { gpa, other: next.first });
            }
        }
        self.sorted.insert(at, MemorySlot { first: gpa, last: GuestAddr::new(gpa.raw() + more), ua });
        Ok(())
    }

    /// Removes the slot that starts at `gpa`.
    pub fn remove(&mut self, gpa: GuestAddr) -> Option<MemorySlot> {
        let at = self.sorted.binary_search_by_key(&gpa, |slot| slot.first).ok()?;
        Some(self.sorted.remove(at))
    }

    /// The slot that contains `gpa`.
    #[must_use]
    #[inline]
    pub fn find(&self, gpa: GuestAddr) -> Option<MemorySlot> {
        let at = self.sorted.partition_point(|slot| slot.last < gpa);
        self.sorted.get(at).copied().filter(|slot| slot.first <= gpa)
    }

    /// The user address behind `gpa`, if one slot contains all of `[gpa, gpa + bytes)`: the user memory of adjacent slots
    /// need not be contiguous.
    #[must_use]
    #[inline]
    pub fn translate(&self, gpa: GuestAddr, bytes: u64) -> Option<UserAddr> {
        let slot = self.find(gpa)?;
        if bytes > 0 && bytes - 1 > slot.last.raw() - gpa.raw() {
            return None;
        }
        Some(UserAddr::new(slot.ua.raw() + (gpa.raw() - slot.first.raw())))
    }

    /// The slots by ascending guest address.
    pub fn iter(&self) -> impl Iterator<Item = MemorySlot> + '_ {
        self.sorted.iter().copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpa(raw: u64) -> GuestAddr {
        GuestAddr::new(raw)
    }

    fn ua(raw: u64) -> UserAddr {
        UserAddr::new(raw)
    }

    fn three() -> MemorySlots {
        let mut slots = MemorySlots::new();
        slots.insert(gpa(0x10_0000), ua(0x9000_0000), 0x10_0000).unwrap();
        slots.insert(gpa(0), ua(0x7000_0000), 0x10_0000).unwrap();
        slots.insert(gpa(0x40_0000), ua(0x8000_0000), 0x1000).unwrap();
        slots
    }

    #[test]
    fn every_byte_translates_by_its_own_slot() {
        let slots = three();
        for (guest, user) in [
            (0, Some(0x7000_0000)),
            (0xf_ffff, Some(0x700f_ffff)),
            (0x10_0000, Some(0x9000_0000)),
            (0x1f_ffff, Some(0x900f_ffff)),
            (0x20_0000, None),
            (0x3f_ffff, None),
            (0x40_0fff, Some(0x8000_0fff)),
            (0x40_1000, None),
            (u64::MAX, None),
        ] {
            assert_eq!(slots.translate(gpa(guest), 1), user.map(ua), "{guest:#x}");
        }
        assert_eq!(
            slots.iter().map(|slot| slot.first).collect::<Vec<_>>(),
            [gpa(0), gpa(0x10_0000), gpa(0x40_0000)]
        );
    }

    #[test]
    fn a_range_over_two_touching_slots_does_not_translate() {
        let slots = three();
        assert_eq!(slots.translate(gpa(0xf_f000), 0x1000), Some(ua(0x700f_f000)));
        assert_eq!(slots.translate(gpa(0xf_f000), 0x1001), None);
        assert_eq!(slots.translate(gpa(0xf_f000), u64::MAX), None);
        assert_eq!(slots.translate(gpa(0x40_0000), 0), Some(ua(0x8000_0000)));
    }

    #[test]
    fn a_bad_slot_is_refused_and_changes_nothing() {
        let mut slots = three();
        let before = slots.sorted.clone();
        let top = !0xfff;
        for (guest, user, bytes, errno) in [
            (0x50_0000, 0x1000, 0, Errno::EINVAL),
            (0x50_0800, 0x1000, 0x1000, Errno::EINVAL),
            (0x50_0000, 0x1800, 0x1000, Errno::EINVAL),
            (0x50_0000, 0x1000, 0x1800, Errno::EINVAL),
            (top, 0x1000, 0x1000, Errno::EINVAL),
            (0x50_0000, top, 0x1000, Errno::EINVAL),
            (0x50_0000, 0x1000, top, Errno::EINVAL),
            (0, 0x1000, 0x1000, Errno::EEXIST),
            (0x1f_f000, 0x1000, 0x2000, Errno::EEXIST),
            (0x3f_f000, 0x1000, 0x10_0000, Errno::EEXIST),
            (0x20_0000, 0x1000, 0x20_1000, Errno::EEXIST),
        ] {
            let refused = slots.insert(gpa(guest), ua(user), bytes).unwrap_err();
            assert_eq!(refused.errno(), errno, "{refused}");
        }
        assert_eq!(slots.sorted, before);
        slots.insert(gpa(0x20_0000), ua(0x1000), 0x20_0000).unwrap();
    }

    #[test]
    fn a_removed_slot_translates_no_more() {
        let mut slots = three();
        assert_eq!(slots.remove(gpa(0x1000)), None);
        assert_eq!(slots.remove(gpa(0)).map(|slot| slot.last.raw()), Some(0xf_ffff));
        assert_eq!(slots.translate(gpa(0), 1), None);
        assert_eq!(slots.translate(gpa(0x10_0000), 1), Some(ua(0x9000_0000)));
    }
}
