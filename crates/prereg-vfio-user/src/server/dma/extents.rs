//! The registered pieces of one file, and which of them serves which part of it.
//!
//! An extent is registered memory: a part of a base, which is one stretch of the file mapped into this process (16 GiB, or the
//! whole of a shorter file), so that what is released and registered again all over a file takes one base more. Where extents
//! were found stale, newer ones show instead, at other addresses: the addresses of a base are registered once and never again,
//! because a region that still drains would be found there. An old extent stays, with what it still shows, as long as
//! something maps it; then it goes, and with it the pages that belong to nobody.
//!
//! Whether a stretch is stale is asked each time it is mapped, unless the file's time of last change proves that nothing was
//! taken out since all of it was asked. That is believed only when the time is old enough: two changes within one tick of the
//! clock leave the same time. All of a file is asked when the single questions since the last time have cost as much.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prereg::Registration;
use prereg_iommu::iova::LocalSegment;
use prereg_linux::{ChangeTime, FileStat, SharedMemory};

use super::cover::{Cover, Shown};
use super::error::MapMemoryError;
use super::promises::Promises;
use super::registrar::Registrar;

/// The registered pieces of one file.
#[derive(Debug)]
pub(super) struct Extents {
    /// The pages the file is made of, in bytes.
    page: u64,
    /// Its time of last change tells of pages that were taken out.
    tells_changes: bool,
    cover: Cover,
    extents: BTreeMap<u64, Extent>,
    bases: BTreeMap<u64, Base>,
    /// Stretches that threads are pinning at the moment, without the lock; their bases.
    pinning: Cover,
    /// Parts of them that were to be mapped since their pin began: it may have pinned pages that were taken out before that.
    doubted: Cover,
    /// Stretches that mappings were promised.
    promised: Promises,
    /// What is charged, if nothing changed since it was last asked for: an IOMMU's maps of registered memory ask each time.
    charged: Option<u64>,
    /// Extents, pinned or being pinned, that are fragments of a piece.
    fragments: usize,
    next: u64,
    /// The file's last change when every page that shows was found to be the file's.
    proven: Option<ChangeTime>,
    /// Questions asked since.
    asked: u64,
    /// No client names the file any more.
    closed: bool,
}

#[derive(Debug)]
struct Extent {
    base: u64,
    /// Where in the file.
    first: u64,
    memory: Arc<SharedMemory>,
    registration: Registration,
    is_fragment: bool,
    /// It holds pages that are not the file's any more.
    stale: bool,
}

impl Extent {
    /// Whether a mapping or an access has it: each keeps the memory.
    fn is_mapped(&self) -> bool {
        Arc::strong_count(&self.memory) > 1
    }
}

/// A stretch of the file, mapped. Not kept when its last extent is gone; what is registered of it keeps itself.
#[derive(Debug)]
struct Base {
    memory: SharedMemory,
    /// The parts that are registered or have been, in bytes of the file.
    used: Cover,
    extents: usize,
}

/// A stretch that is being pinned: its base, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reserved {
    base: u64,
    first: u64,
    end: u64,
    is_fragment: bool,
}

/// What a file has that is bounded for a client, or what a client may still have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Room {
    /// Mapped user_segments, each of which is two mappings of this process.
    pub(super) bases: usize,
    /// Extents that are not whole pieces, because pages were taken out of a piece or the file grew.
    pub(super) fragments: usize,
}

/// Bytes of a file that a base has, aligned to as many, unless an extent is larger: a large file does not take up the
/// addresses of this process each time that a small part of it is registered anew.
const BASE_BYTES: u64 = 16 << 30;

/// What is to be done next so that a range shows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Missing {
    /// All of it shows.
    Nothing,
    /// Another thread is pinning the first byte that does not.
    Pinning,
    /// This stretch is to be pinned.
    UserSegment(u64, u64),
}

/// Questions for single user_segments that cost as much as one for this many pages: a system call against a walk.
const PAGES_A_QUESTION: u64 = 128;
/// A time of change that is older than this cannot be the time of another change too: ticks are 10 ms at most.
const SETTLED: Duration = Duration::from_millis(100);

impl Extents {
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    pub(super) fn new(page: u64, tells_changes: bool) -> Self {
        Self {
            page,
            tells_changes,
            cover: Cover::default(),
            extents: BTreeMap::new(),
            bases: BTreeMap::new(),
            pinning: Cover::default(),
            doubted: Cover::default(),
            promised: Promises::default(),
            charged: None,
            fragments: 0,
            next: 0,
            proven: None,
            asked: 0,
            closed: false,
        }
    }

    // ---- looking ---------------------------------------------------------------------------------------------------

    /// Whether all of `[first, end)` shows.
    pub(super) fn covers(&self, first: u64, end: u64) -> bool {
        let mut at = first;
        for part in self.cover.parts(first, end) {
            if part.first != at {
                return false;
            }
            at = part.end;
        }
        at == end
    }

    /// The registered memory of `[first, end)`, all of which shows.
    pub(super) fn pieces(&self, first: u64, end: u64) -> Vec<LocalSegment> {
        self.cover.parts(first, end).filter_map(|part| self.local_piece(part)).collect()
    }

    /// The same, if it is one piece.
    pub(super) fn piece(&self, first: u64, end: u64) -> Option<LocalSegment> {
        let part = self.cover.parts(first, end).next()?;
        if (part.first, part.end) == (first, end) { self.local_piece(part) } else { None }
    }

    fn local_piece(&self, part: Shown) -> Option<LocalSegment> {
        let extent = self.extents.get(&part.extent)?;
        let ua = extent.memory.ua().checked_add(part.first - extent.first)?;
        let owner = Arc::<SharedMemory>::clone(&extent.memory);
        Some(LocalSegment { ua, bytes: part.end - part.first, owner: Some(owner) })
    }

    /// The bases and fragments that it has.
    pub(super) fn scatter(&self) -> Room {
        Room { bases: self.bases.len(), fragments: self.fragments }
    }

    /// Extents, those that are stale, and bytes registered.
    pub(super) fn totals(&self) -> (u64, u64, u64) {
        let stale = self.extents.values().filter(|extent| extent.stale).count() as u64;
        let bytes = self.extents.values().map(|extent| extent.memory.bytes()).sum();
        (self.extents.len() as u64, stale, bytes)
    }

    /// Bytes that are charged for this file: registered, being pinned, or promised.
    pub(super) fn charged_bytes(&mut self) -> u64 {
        if let Some(charged) = self.charged {
            return charged;
        }
        let (_, _, registered) = self.totals();
        let charged = registered + self.promised_bytes();
        self.charged = Some(charged);
        charged
    }

    /// Bytes that are charged and not registered (yet).
    pub(super) fn promised_bytes(&self) -> u64 {
        let pinning = self.pinning.all().map(|part| self.unpromised_bytes(part.first, part.end));
        let promised = self.promised.all().map(|(first, end)| {
            let shown: u64 = self.cover.parts(first, end).map(|part| part.end - part.first).sum();
            end - first - shown
        });
        pinning.chain(promised).sum()
    }

    /// Bytes of `[first, end)` that are not charged.
    pub(super) fn uncharged_bytes(&self, first: u64, end: u64) -> u64 {
        let gaps = self.cover.gaps(first, end).into_iter();
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

    /// A mapping is to have `[first, end)`: it stays charged, and is not released for others, until
    /// [`forget_promise`](Self::forget_promise).
    pub(super) fn promise(&mut self, first: u64, end: u64) {
        self.charged = None;
        self.promised.add(first, end);
    }

    pub(super) fn forget_promise(&mut self, first: u64, end: u64) {
        self.charged = None;
        self.promised.remove(first, end);
    }

    /// Whether pages are registered that are not the file's any more: then the file can have more registered than it has.
    pub(super) fn has_stale(&self) -> bool {
        self.extents.values().any(|extent| extent.stale)
    }

    /// Whether something maps any of it, or was promised any.
    pub(super) fn is_mapped(&self) -> bool {
        !self.promised.is_empty() || self.extents.values().any(Extent::is_mapped)
    }

    /// Whether an extent may be released for want of memory, or because it is stale.
    fn is_spare(&self, extent: &Extent, only_stale: bool) -> bool {
        if extent.is_mapped() || (only_stale && !extent.stale) {
            return false;
        }
        extent.stale || !self.promised.touch(extent.first, extent.first + extent.memory.bytes())
    }

    /// Bytes registered that may be released for want of memory.
    pub(super) fn spare_bytes(&self) -> u64 {
        let spare = self.extents.values().filter(|extent| self.is_spare(extent, false));
        spare.map(|extent| extent.memory.bytes()).sum()
    }

    /// Whether there is something that nothing maps: something stale, or anything.
    pub(super) fn has_unmapped(&self, only_stale: bool) -> bool {
        self.extents.values().any(|extent| self.is_spare(extent, only_stale))
    }

    /// What to pin next so that `[first, end)` shows, in a file whose whole pages end at `whole`: an extent of `extent` bytes,
    /// or as long as can be.
    pub(super) fn missing(&self, first: u64, end: u64, whole: u64, extent: Option<u64>) -> Missing {
        let mut at = first;
        for part in self.cover.parts(first, end) {
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
        let (shown, pinning) = (self.cover.gap_around(at, whole), self.pinning.gap_around(at, whole));
        let around = (shown.0.max(pinning.0), shown.1.min(pinning.1));
        let Some(extent) = extent else { return Missing::UserSegment(around.0, around.1) };
        let (from, to) = self.piece_around(at, extent);
        Missing::UserSegment(from.max(around.0), to.min(around.1))
    }

    /// The piece of `extent` bytes, rounded up to a power of two and to pages, that has the byte at `at`.
    pub(super) fn piece_around(&self, at: u64, extent: u64) -> (u64, u64) {
        // An extent longer than any file is the whole file.
        let extent = extent.checked_next_power_of_two().unwrap_or(1 << 63).max(self.page);
        let from = at - at % extent;
        (from, from.saturating_add(extent))
    }

    /// The stretch that is charged so that `[first, end)` can be registered.
    pub(super) fn around(&self, first: u64, end: u64, whole: u64, extent: Option<u64>) -> (u64, u64) {
        match extent {
            // Only what is not registered counts, and that is next to what is asked for.
            None => match self.cover.gaps(first, end).as_slice() {
                [] => (first, end),
                [one @ .., last] => {
                    let one = one.first().unwrap_or(last);
                    let (from, to) =
                        (self.cover.gap_around(one.0, whole).0, self.cover.gap_around(last.0, whole).1);
                    (from.min(first), to.max(end))
                }
            },
            Some(extent) => {
                (self.piece_around(first, extent).0, self.piece_around(end - 1, extent).1.min(whole))
            }
        }
    }

    // ---- registering -----------------------------------------------------------------------------------------------

    /// Reserves `[first, end)`, which is [`missing`](Self::missing) with the same `whole` and `extent`, for the caller to pin its
    /// memory, which is at addresses that were never registered; `map` maps more of the file, from its first argument up to its
    /// second. Then comes either [`add`](Self::add) or [`unreserve`](Self::unreserve).
    pub(super) fn reserve(
        &mut self,
        (first, end): (u64, u64),
        whole: u64,
        extent: Option<u64>,
        room: Room,
        map: impl FnOnce(u64, u64) -> Result<SharedMemory, MapMemoryError>,
    ) -> Result<(Reserved, SharedMemory), MapMemoryError> {
        let piece = extent.map_or((0, whole), |extent| self.piece_around(first, extent));
        let is_fragment = (first, end) != (piece.0, piece.1.min(whole));
        if is_fragment && room.fragments == 0 {
            return Err(MapMemoryError::TooScattered);
        }
        let fits = |base: &Base| {
            let from = base.memory.file_offset();
            let inside = from <= first && end <= from + base.memory.bytes();
            inside && base.used.parts(first, end).next().is_none()
        };
        let number = match self.bases.iter().find(|(_, base)| fits(base)) {
            Some((&number, _)) => number,
            None if room.bases == 0 => return Err(MapMemoryError::TooScattered),
            None => {
                let from = first - first % BASE_BYTES;
                let memory = map(from, from.saturating_add(BASE_BYTES).min(whole).max(end))?;
                let number = self.number();
                self.bases.insert(number, Base { memory, used: Cover::default(), extents: 0 });
                number
            }
        };
        // What `map` answered has the range it was asked for.
        let base = self.bases.get_mut(&number).ok_or(MapMemoryError::Disconnected)?;
        let offset = first.saturating_sub(base.memory.file_offset());
        let part = base.memory.part(offset, end - first).ok_or(MapMemoryError::Disconnected)?;
        base.used.show(first, end, number);
        base.extents += 1;
        self.pinning.show(first, end, number);
        self.fragments += usize::from(is_fragment);
        self.charged = None;
        Ok((Reserved { base: number, first, end, is_fragment }, part))
    }

    /// What was reserved could not be pinned. Nothing was registered at its addresses, so they can be used again.
    pub(super) fn unreserve(&mut self, reserved: Reserved) {
        let Reserved { base, first, end, is_fragment } = reserved;
        self.pinning.cut(first, end);
        self.doubted.cut(first, end);
        self.fragments -= usize::from(is_fragment);
        self.charged = None;
        if let Some(base) = self.bases.get_mut(&base) {
            base.used.cut(first, end);
        }
        self.leave_base(base);
    }

    /// Shows a new extent, whose memory was reserved, but for what is stale already. Answers its number, and whether any was.
    pub(super) fn add(
        &mut self,
        reserved: Reserved,
        memory: SharedMemory,
        registration: Registration,
        registrar: &Registrar,
    ) -> (u64, bool) {
        let number = self.number();
        let Reserved { base, first, end, is_fragment } = reserved;
        self.pinning.cut(first, end);
        self.cover.show(first, end, number);
        self.charged = None;
        let memory = Arc::new(memory);
        let extent = Extent { base, first, memory, registration, is_fragment, stale: false };
        self.extents.insert(number, extent);
        // A pin writes to pages for the first time, which is a change too.
        self.proven = None;
        // Only what was doubted is asked about: where the answer is always that it is stale, asking about every new extent would
        // pin it again and again.
        let doubted: Vec<_> =
            self.doubted.cut(first, end).into_iter().map(|part| Shown { extent: number, ..part }).collect();
        let is_stale = self.ask(&doubted, registrar).unwrap_or_else(|_| {
            // What cannot be asked about is pinned again; the next map is told why.
            for part in &doubted {
                self.cut_stale(part.first, part.end, registrar);
            }
            true
        });
        (number, is_stale)
    }

    /// One extent of a base less; without any it is forgotten.
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

    // ---- going -----------------------------------------------------------------------------------------------------

    /// Takes an extent out unless something maps it: it is charged as long as it is mapped.
    pub(super) fn remove_unmapped(&mut self, number: u64, registrar: &Registrar) -> Option<Registration> {
        if self.extents.get(&number).is_some_and(Extent::is_mapped) {
            return None;
        }
        self.remove(number, registrar)
    }

    /// Takes an extent out; what it showed shows no more. Dropping the registration releases it, now or when the last mapping
    /// goes.
    fn remove(&mut self, number: u64, registrar: &Registrar) -> Option<Registration> {
        let extent = self.extents.remove(&number)?;
        self.cover.hide(number, extent.first, extent.first + extent.memory.bytes());
        self.charged = None;
        self.fragments -= usize::from(extent.is_fragment);
        if extent.stale {
            registrar.counts.waiting.take();
        }
        self.leave_base(extent.base);
        Some(extent.registration)
    }

    /// Takes out extents that nothing maps: stale ones, or all that were not promised. Nothing else can map them any more;
    /// releasing them unpins, which takes too long to be done under the lock.
    pub(super) fn release_unmapped(&mut self, only_stale: bool, registrar: &Registrar) -> Vec<Registration> {
        let spare = |(_, extent): &(&u64, &Extent)| self.is_spare(extent, only_stale);
        let numbers: Vec<u64> = self.extents.iter().filter(spare).map(|(&number, _)| number).collect();
        numbers.into_iter().filter_map(|number| self.remove(number, registrar)).collect()
    }

    /// Gives every registration up: no client names the file any more.
    pub(super) fn close(&mut self, registrar: &Registrar) -> Vec<Registration> {
        self.closed = true;
        let numbers: Vec<u64> = self.extents.keys().copied().collect();
        numbers.into_iter().filter_map(|number| self.remove(number, registrar)).collect()
    }

    // ---- staleness -------------------------------------------------------------------------------------------------

    /// Sees to it that what shows in `[first, end)` is the file's; what is not, shows no more. `facts` are of before the call.
    /// Answers whether anything was stale.
    pub(super) fn freshen(
        &mut self,
        first: u64,
        end: u64,
        facts: &FileStat,
        registrar: &Registrar,
    ) -> Result<bool, MapMemoryError> {
        // First: the proof is about what shows.
        let pinning: Vec<_> = self.pinning.parts(first, end).collect();
        self.doubted.cut(first, end);
        for part in pinning {
            self.doubted.show(part.first, part.end, part.extent);
        }
        if self.proven == Some(facts.changed) {
            return Ok(false);
        }
        let parts: Vec<_> = self.cover.parts(first, end).collect();
        if parts.is_empty() {
            return Ok(false);
        }
        let mut stale = self.ask(&parts, registrar)?;
        let pages = registrar.space.granule().shift();
        let asked: u64 = parts.iter().map(|part| (part.end - part.first) >> pages.get()).sum();
        self.asked += asked / PAGES_A_QUESTION + 1;
        if self.tells_changes && is_settled(facts.changed) {
            let all: Vec<_> = self.cover.all().collect();
            let shown: u64 = all.iter().map(|part| (part.end - part.first) >> pages.get()).sum();
            if self.asked >= shown / PAGES_A_QUESTION {
                stale |= self.ask(&all, registrar)?;
                self.proven = Some(facts.changed);
                self.asked = 0;
            }
        }
        Ok(stale)
    }

    /// Asks about what shows in `parts`, and cuts what is stale. Answers whether anything was.
    fn ask(&mut self, parts: &[Shown], registrar: &Registrar) -> Result<bool, MapMemoryError> {
        let mut found = false;
        for part in parts {
            let Some(extent) = self.extents.get(&part.extent) else { continue };
            let offset = part.first - extent.first;
            let gone = registrar.gone(&extent.memory, offset, part.end - part.first)?;
            let Some((offset, bytes)) = gone else { continue };
            // Whole pages of the file.
            let from = extent.first + offset;
            let end = (from + bytes).next_multiple_of(self.page);
            self.cut_stale(from - from % self.page, end, registrar);
            found = true;
        }
        Ok(found)
    }

    /// What shows in `[first, end)` is stale.
    fn cut_stale(&mut self, first: u64, end: u64, registrar: &Registrar) {
        registrar.counts.stale.add();
        self.charged = None;
        for shown in self.cover.cut(first, end) {
            if let Some(extent) = self.extents.get_mut(&shown.extent).filter(|extent| !extent.stale) {
                extent.stale = true;
                registrar.counts.waiting.add();
            }
        }
    }
}

fn is_settled(change: ChangeTime) -> bool {
    let (seconds, nanoseconds) = change.at;
    let Ok(seconds) = u64::try_from(seconds) else { return false };
    let at = SystemTime::UNIX_EPOCH + Duration::new(seconds, nanoseconds);
    // A time of change in the future proves nothing either.
    SystemTime::now().duration_since(at).is_ok_and(|age| age > SETTLED)
}
