//! Mapping ranges: one lookup and one unit for many pages of a region.

use super::Translator;
use crate::addr::UserAddr;
use crate::lookup::region::{MapError, Mapping};
use crate::sync::percpu_ref::EnterResult;
use crate::translator::range_mapping::RangeMapping;

impl Translator {
    /// Maps all of `[ua, ua + bytes)`, which must lie in one region, with one unit.
    ///
    /// # Errors
    /// As [`map`](Self::map); an empty range is [`MapError::Unregistered`].
    pub fn map_range(&mut self, ua: UserAddr, bytes: u64) -> Result<RangeMapping, MapError> {
        self.map_range_found(ua, bytes).or_else(|_| {
            // Only the newest snapshot gives the reason, as in `acquire_cold`.
            self.refresh();
            self.map_range_found(ua, bytes)
        })
    }

    #[inline]
    fn map_range_found(&mut self, ua: UserAddr, bytes: u64) -> Result<RangeMapping, MapError> {
        let shift = self.system_page();
        let unregistered = MapError::Unregistered { ua, shift };
        let found = self.find(ua).ok_or(unregistered)?;
        // SAFETY: named by the snapshot at hand.
        let region = unsafe { found.as_ref() };
        if !region.range.holds(ua, bytes) {
            return Err(unregistered);
        }
        let slot = region.slot as usize;
        match self.percpu_ref(slot).enter(self.count(slot), self.mode) {
            EnterResult::Entered => {}
            EnterResult::Closed => return Err(MapError::Closing { ua }),
        }
        let unit = Mapping::new(region.table.host(ua), ua, shift, region.slot, self.holder_counts);
        Ok(RangeMapping::new(unit, found, bytes))
    }

    /// [`unmap`](Self::unmap) for a range.
    #[inline]
    pub fn unmap_range(&mut self, mapping: RangeMapping) {
        self.unmap(mapping.into_unit());
    }
}
