//! The registered extents of one file, and which of them serves which part of it.
//!
//! An extent is registered memory: a part of a base, which is a range of the file mapped into this process (16 GiB, or all of a
//! shorter file), so that releasing and registering parts of a file again takes only one more base. Where an extent is stale, a
//! newer one serves, at other addresses: the addresses of a base are registered once and never again, because a draining region
//! would still be found there. A stale extent stays, with what it still serves, as long as something maps it, and is released
//! then, with its pages that are no longer the file's.
//!
//! A range is checked for staleness each time it is mapped, unless the file's change time proves that no page was removed since
//! a check of the whole file. It proves that only if it is old enough: two changes within one clock tick have the same time.
//! The whole file is checked when the single checks since the last time have cost as much.
//!
//! More than 500 lines: all of it works on one set of fields under one lock.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prereg::Registration;
use prereg_iommu::iova::LocalSegment;
use prereg_linux::{ChangeTime, FileStat, SharedMemory};

use super::error::MapMemoryError;
use super::interval_map::{Interval, IntervalMap};
use super::promises::Promises;
use super::register_context::RegisterContext;

/// The registered extents of one file.
#[derive(Debug)]
pub(super) struct Extents {
    /// The file's page size in bytes.
    page: u64,
    /// The file's change time covers removed pages.
    tracks_changes: bool,
    interval_map: IntervalMap,
    extents: BTreeMap<u64, Extent>,
    bases: BTreeMap<u64, Base>,
    /// Ranges that threads are pinning, without the lock; by their bases.
    pinning: IntervalMap,
    /// Parts of them that were to be mapped since the pin began: it may have pinned pages that were removed before.
    suspect: IntervalMap,
    /// Ranges promised to mappings.
    promised: Promises,
    /// The charged bytes, cached until something changes: maps of registered memory need them each time.
    charged: Option<u64>,
    /// Extents, pinned or being pinned, that are fragments of a piece.
    fragments: usize,
    next: u64,
    /// The file's change time when all serving pages were found to be the file's.
    validated_at: Option<ChangeTime>,
    /// Checks since then.
    asked: u64,
    /// No client uses the file any more.
    closed: bool,
}

#[derive(Debug)]
struct Extent {
    base: u64,
    /// The offset in the file.
    first: u64,
    memory: Arc<SharedMemory>,
    registration: Registration,
    is_fragment: bool,
    /// Some of its pages are not the file's any more.
    stale: bool,
}

impl Extent {
    /// Whether a mapping or an access uses it: each has a reference to the memory.
    fn is_mapped(&self) -> bool {
        Arc::strong_count(&self.memory) > 1
    }
}

/// A mapped range of the file. Dropped with its last extent; registered memory keeps itself.
#[derive(Debug)]
struct Base {
    memory: SharedMemory,
    /// The parts that are or were registered, in bytes of the file.
    used: IntervalMap,
    extents: usize,
}

/// A range that is being pinned, in a base.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    base: u64,
    first: u64,
    end: u64,
    is_fragment: bool,
}

/// Bases and fragments of a file, or the number left to a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct FragmentBudget {
    /// Mapped ranges, each of which is two mappings of this process.
    pub(super) bases: usize,
    /// Extents that are not whole pieces, because pages were removed from a piece or the file grew.
    pub(super) fragments: usize,
}

/// Size and alignment of a base, unless an extent is larger: registering a small part of a large file again must not map all of
/// the file again.
const BASE_BYTES: u64 = 16 << 30;

/// The next step to make a range served.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Missing {
    /// All of it is served.
    Nothing,
    /// Another thread is pinning the first missing byte.
    Pinning,
    /// Pin this range.
    Range(u64, u64),
}

/// A check of a single range costs as much as one for this many pages: a system call against a walk.
const PAGES_PER_CHECK: u64 = 128;
/// Change times older than this are not shared with a later change: ticks are at most 10 ms.
const SETTLED: Duration = Duration::from_millis(100);

impl Extents {
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn new(page: u64, tracks_changes: bool) -> Self {
        Self {
            page,
            tracks_changes,
            interval_map: IntervalMap::default(),
            extents: BTreeMap::new(),
            bases: BTreeMap::new(),
            pinning: IntervalMap::default(),
            suspect: IntervalMap::default(),
            promised: Promises::default(),
            charged: None,
            fragments: 0,
            next: 0,
            validated_at: None,
            asked: 0,
            closed: false,
        }
    }

    // ---- queries ---------------------------------------------------------------------------------------------------

    /// Whether all of `[first, end)` is served.
    pub(super) fn covers(&self, first: u64, end: u64) -> bool {
        let mut at = first;
        for part in self.interval_map.parts(first, end) {
            if part.first != at {
                return false;
            }
            at = part.end;
        }
        at == end
    }

    /// The registered memory of `[first, end)`, all of which is served.
    pub(super) fn pieces(&self, first: u64, end: u64) -> Vec<LocalSegment> {
        self.interval_map.parts(first, end).filter_map(|part| self.local_piece(part)).collect()
    }

    /// [`pieces`](Self::pieces), if it is one.
    pub(super) fn piece(&self, first: u64, end: u64) -> Option<LocalSegment> {
        let part = self.interval_map.parts(first, end).next()?;
        if (part.first, part.end) == (first, end) { self.local_piece(part) } else { None }
    }

    fn local_piece(&self, part: Interval) -> Option<LocalSegment> {
        let extent = self.extents.get(&part.extent)?;
        let ua = extent.memory.ua().checked_add(part.first - extent.first)?;
        let owner = Arc::<SharedMemory>::clone(&extent.memory);
        Some(LocalSegment { ua, bytes: part.end - part.first, owner: Some(owner) })
    }

    /// Its bases and fragments.
    pub(super) fn fragmentation(&self) -> FragmentBudget {
        FragmentBudget { bases: self.bases.len(), fragments: self.fragments }
    }

    /// Extents, stale extents, registered bytes.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let stale = self.extents.values().filter(|extent| extent.stale).count() as u64;
        let bytes = self.extents.values().map(|extent| extent.memory.bytes()).sum();
        (self.extents.len() as u64, stale, bytes)
    }

    /// Charged bytes: registered, being pinned, or promised.
    pub(super) fn charged_bytes(&mut self) -> u64 {
        if let Some(charged) = self.charged {
            return charged;
        }
        let (_, _, registered) = self.totals();
        let charged = registered + self.promised_bytes();
        self.charged = Some(charged);
        charged
    }

    /// Charged bytes that are not registered (yet).
    pub(super) fn promised_bytes(&self) -> u64 {
        let pinning = self.pinning.all().map(|part| self.unpromised_bytes(part.first, part.end));
        let promised = self.promised.all().map(|(first, end)| {
            let intervals: u64 = self.interval_map.parts(first, end).map(|part| part.end - part.first).sum();
            end - first - intervals
        });
        pinning.chain(promised).sum()
    }

    /// Bytes of `[first, end)` that are not charged.
    pub(super) fn uncharged_bytes(&self, first: u64, end: u64) -> u64 {
        let gaps = self.interval_map.gaps(first, end).into_iter();
        gaps.map(|(from, to)| {
            let pinning = self.pinning.parts(from, to);
            let charged: u64 = pinning.map(|part| self.unpromised_bytes(part.first, part.end)).sum();
            self.unpromised_bytes(from, to) - charged
        })
        .sum()
    }

    fn unpromised_bytes(&self, first: u64, end: u64) -> u64 {
        let promised: u64 = self.promised.parts(first, end).map(|(from, to)| to - from).sum();
        end - first - promised
    }

    /// Promises `[first, end)` to a mapping: charged, and not released for others, until
    /// [`forget_promise`](Self::forget_promise).
    pub(super) fn promise(&mut self, first: u64, end: u64) {
        self.charged = None;
        self.promised.add(first, end);
    }

    pub(super) fn forget_promise(&mut self, first: u64, end: u64) {
        self.charged = None;
        self.promised.remove(first, end);
    }

    /// Whether any extent is stale; then more than the file's pages can be registered.
    pub(super) fn has_stale(&self) -> bool {
        self.extents.values().any(|extent| extent.stale)
    }

    /// Whether any of it is mapped or promised.
    pub(super) fn is_mapped(&self) -> bool {
        !self.promised.is_empty() || self.extents.values().any(Extent::is_mapped)
    }

    /// Whether an extent may be released: to free memory, or only if it is stale.
    fn is_releasable(&self, extent: &Extent, only_stale: bool) -> bool {
        if extent.is_mapped() || (only_stale && !extent.stale) {
            return false;
        }
        extent.stale || !self.promised.touch(extent.first, extent.first + extent.memory.bytes())
    }

    /// Registered bytes that may be released to free memory.
    pub(super) fn releasable_bytes(&self) -> u64 {
        let releasable = self.extents.values().filter(|extent| self.is_releasable(extent, false));
        releasable.map(|extent| extent.memory.bytes()).sum()
    }

    /// Whether an unmapped extent may be released: a stale one, or any.
    pub(super) fn has_unmapped(&self, only_stale: bool) -> bool {
        self.extents.values().any(|extent| self.is_releasable(extent, only_stale))
    }

    /// The next range to pin for `[first, end)`, in a file whose whole pages end at `whole`: a piece of `extent` bytes, or the
    /// longest possible range.
    pub(super) fn missing(&self, first: u64, end: u64, whole: u64, extent: Option<u64>) -> Missing {
        let mut at = first;
        for part in self.interval_map.parts(first, end) {
            if part.first > at {
                break;
            }
            at = part.end;
        }
        if at >= end {
            return Missing::Nothing;
        }
        if self.pinning.parts(at, at + 1).next().is_some() {
            return Missing::Pinning;
        }
        let (intervals, pinning) =
            (self.interval_map.gap_around(at, whole), self.pinning.gap_around(at, whole));
        let around = (intervals.0.max(pinning.0), intervals.1.min(pinning.1));
        let Some(extent) = extent else { return Missing::Range(around.0, around.1) };
        let (from, to) = self.piece_around(at, extent);
        Missing::Range(from.max(around.0), to.min(around.1))
    }

    /// The piece of `extent` bytes, rounded up to a power of two and to pages, that contains `at`.
    pub(super) fn piece_around(&self, at: u64, extent: u64) -> (u64, u64) {
        // A piece longer than any file is the whole file.
        let extent = extent.checked_next_power_of_two().unwrap_or(1 << 63).max(self.page);
        let from = at - at % extent;
        (from, from.saturating_add(extent))
    }

    /// The range to charge so that `[first, end)` can be registered.
    pub(super) fn around(&self, first: u64, end: u64, whole: u64, extent: Option<u64>) -> (u64, u64) {
        match extent {
            // Only missing parts count, and those are next to the range.
            None => match self.interval_map.gaps(first, end).as_slice() {
                [] => (first, end),
                [one @ .., last] => {
                    let one = one.first().unwrap_or(last);
                    let (from, to) = (
                        self.interval_map.gap_around(one.0, whole).0,
                        self.interval_map.gap_around(last.0, whole).1,
                    );
                    (from.min(first), to.max(end))
                }
            },
            Some(extent) => {
                (self.piece_around(first, extent).0, self.piece_around(end - 1, extent).1.min(whole))
            }
        }
    }

    // ---- registering -----------------------------------------------------------------------------------------------

    /// Reserves `[first, end)`, which is [`missing`](Self::missing) with this `whole` and `extent`, for the caller to pin, at
    /// addresses that were never registered; `map` maps a range of the file for a new base. [`add`](Self::add) or
    /// [`unreserve`](Self::unreserve) follows.
    pub(super) fn reserve(
        &mut self,
        (first, end): (u64, u64),
        whole: u64,
        extent: Option<u64>,
        budget: FragmentBudget,
        map: impl FnOnce(u64, u64) -> Result<SharedMemory, MapMemoryError>,
    ) -> Result<(Reserved, SharedMemory), MapMemoryError> {
        let piece = extent.map_or((0, whole), |extent| self.piece_around(first, extent));
        let is_fragment = (first, end) != (piece.0, piece.1.min(whole));
        if is_fragment && budget.fragments == 0 {
            return Err(MapMemoryError::TooScattered);
        }
        let fits = |base: &Base| {
            let from = base.memory.file_offset();
            let inside = from <= first && end <= from + base.memory.bytes();
            inside && base.used.parts(first, end).next().is_none()
        };
        let number = match self.bases.iter().find(|(_, base)| fits(base)) {
            Some((&number, _)) => number,
            None if budget.bases == 0 => return Err(MapMemoryError::TooScattered),
            None => {
                let from = first - first % BASE_BYTES;
                let memory = map(from, from.saturating_add(BASE_BYTES).min(whole).max(end))?;
                let number = self.number();
                self.bases.insert(number, Base { memory, used: IntervalMap::default(), extents: 0 });
                number
            }
        };
        // The base contains the range.
        let base = self.bases.get_mut(&number).ok_or(MapMemoryError::Disconnected)?;
        let offset = first.saturating_sub(base.memory.file_offset());
        let part = base.memory.part(offset, end - first).ok_or(MapMemoryError::Disconnected)?;
        base.used.insert(first, end, number);
        base.extents += 1;
        self.pinning.insert(first, end, number);
        self.fragments += usize::from(is_fragment);
        self.charged = None;
        Ok((Reserved { base: number, first, end, is_fragment }, part))
    }

    /// Reverts [`reserve`](Self::reserve) after a failed pin. Nothing was registered at the addresses, so they can be used
    /// again.
    pub(super) fn unreserve(&mut self, reserved: Reserved) {
        let Reserved { base, first, end, is_fragment } = reserved;
        self.pinning.remove(first, end);
        self.suspect.remove(first, end);
        self.fragments -= usize::from(is_fragment);
        self.charged = None;
        if let Some(base) = self.bases.get_mut(&base) {
            base.used.remove(first, end);
        }
        self.leave_base(base);
    }

    /// Adds a reserved extent that was pinned, except for its parts that are stale already. Returns its number, and whether any
    /// part was.
    pub(super) fn add(
        &mut self,
        reserved: Reserved,
        memory: SharedMemory,
        registration: Registration,
        context: &RegisterContext,
    ) -> (u64, bool) {
        let number = self.number();
        let Reserved { base, first, end, is_fragment } = reserved;
        self.pinning.remove(first, end);
        self.interval_map.insert(first, end, number);
        self.charged = None;
        let memory = Arc::new(memory);
        let extent = Extent { base, first, memory, registration, is_fragment, stale: false };
        self.extents.insert(number, extent);
        // A pin writes to new pages, which changes the file's change time.
        self.validated_at = None;
        // Only suspect parts are checked: with back ends that cannot check, every new extent would be found stale and pinned
        // again.
        let suspect: Vec<_> = self
            .suspect
            .remove(first, end)
            .into_iter()
            .map(|part| Interval { extent: number, ..part })
            .collect();
        let is_stale = self.ask(&suspect, context).unwrap_or_else(|_| {
            // An unknown state is treated as stale; the next map returns the error.
            for part in &suspect {
                self.cut_stale(part.first, part.end, context);
            }
            true
        });
        (number, is_stale)
    }

    /// Removes one extent of a base, and the base with its last one.
    fn leave_base(&mut self, number: u64) {
        if let Some(base) = self.bases.get_mut(&number) {
            base.extents -= 1;
            if base.extents == 0 {
                self.bases.remove(&number);
            }
        }
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    // ---- releasing -------------------------------------------------------------------------------------------------

    /// Removes an extent unless something maps it: it is charged as long as it is mapped.
    pub(super) fn remove_unmapped(&mut self, number: u64, context: &RegisterContext) -> Option<Registration> {
        if self.extents.get(&number).is_some_and(Extent::is_mapped) {
            return None;
        }
        self.remove(number, context)
    }

    /// Removes an extent. Dropping the registration releases it, now or with its last mapping.
    fn remove(&mut self, number: u64, context: &RegisterContext) -> Option<Registration> {
        let extent = self.extents.remove(&number)?;
        self.interval_map.remove_value(number, extent.first, extent.first + extent.memory.bytes());
        self.charged = None;
        self.fragments -= usize::from(extent.is_fragment);
        if extent.stale {
            context.counts.waiting.take();
        }
        self.leave_base(extent.base);
        Some(extent.registration)
    }

    /// Removes unmapped extents: stale ones, or all that are not promised. The caller drops the registrations without the lock,
    /// because unpinning takes long.
    pub(super) fn release_unmapped(
        &mut self,
        only_stale: bool,
        context: &RegisterContext,
    ) -> Vec<Registration> {
        let releasable = |(_, extent): &(&u64, &Extent)| self.is_releasable(extent, only_stale);
        let numbers: Vec<u64> = self.extents.iter().filter(releasable).map(|(&number, _)| number).collect();
        numbers.into_iter().filter_map(|number| self.remove(number, context)).collect()
    }

    /// Removes every extent: no client uses the file any more.
    pub(super) fn close(&mut self, context: &RegisterContext) -> Vec<Registration> {
        self.closed = true;
        let numbers: Vec<u64> = self.extents.keys().copied().collect();
        numbers.into_iter().filter_map(|number| self.remove(number, context)).collect()
    }

    // ---- staleness -------------------------------------------------------------------------------------------------

    /// Checks that the extents of `[first, end)` have the file's pages; stale parts are not served any more. `stat` is from
    /// before the call. Returns unmapped stale registrations, to be dropped without the lock.
    pub(super) fn revalidate(
        &mut self,
        first: u64,
        end: u64,
        stat: &FileStat,
        context: &RegisterContext,
    ) -> Result<Vec<Registration>, MapMemoryError> {
        // Before the early return: the proof does not cover ranges being pinned.
        let pinning: Vec<_> = self.pinning.parts(first, end).collect();
        self.suspect.remove(first, end);
        for part in pinning {
            self.suspect.insert(part.first, part.end, part.extent);
        }
        if self.validated_at == Some(stat.changed) {
            return Ok(Vec::new());
        }
        let parts: Vec<_> = self.interval_map.parts(first, end).collect();
        if parts.is_empty() {
            return Ok(Vec::new());
        }
        let mut stale = self.ask(&parts, context)?;
        let pages = context.space.granule().shift();
        let asked: u64 = parts.iter().map(|part| (part.end - part.first) >> pages.get()).sum();
        self.asked += asked / PAGES_PER_CHECK + 1;
        if self.tracks_changes && is_settled(stat.changed) {
            let all: Vec<_> = self.interval_map.all().collect();
            let intervals: u64 = all.iter().map(|part| (part.end - part.first) >> pages.get()).sum();
            if self.asked >= intervals / PAGES_PER_CHECK {
                stale |= self.ask(&all, context)?;
                self.validated_at = Some(stat.changed);
                self.asked = 0;
            }
        }
        Ok(if stale { self.release_unmapped(true, context) } else { Vec::new() })
    }

    /// Checks `parts` and cuts stale ranges. Returns whether any part was stale.
    fn ask(&mut self, parts: &[Interval], context: &RegisterContext) -> Result<bool, MapMemoryError> {
        let mut found = false;
        for part in parts {
            let Some(extent) = self.extents.get(&part.extent) else { continue };
            let offset = part.first - extent.first;
            let gone = context.gone(&extent.memory, offset, part.end - part.first)?;
            let Some((offset, bytes)) = gone else { continue };
            // Whole pages of the file.
            let from = extent.first + offset;
            let end = (from + bytes).next_multiple_of(self.page);
            self.cut_stale(from - from % self.page, end, context);
            found = true;
        }
        Ok(found)
    }

    /// Marks the extents of `[first, end)` as stale and stops serving the range.
    fn cut_stale(&mut self, first: u64, end: u64, context: &RegisterContext) {
        context.counts.stale.add();
        self.charged = None;
        for intervals in self.interval_map.remove(first, end) {
            if let Some(extent) = self.extents.get_mut(&intervals.extent).filter(|extent| !extent.stale) {
                extent.stale = true;
                context.counts.waiting.add();
            }
        }
    }
}

fn is_settled(change: ChangeTime) -> bool {
    let (seconds, nanoseconds) = change.at;
    let Ok(seconds) = u64::try_from(seconds) else { return false };
    let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    // A change time in the future proves nothing.
    SystemTime::now().duration_since(at).is_ok_and(|age| age > SETTLED)
}
