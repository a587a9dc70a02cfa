//! The map: ordered mappings under one lock.
//!
//! More than 500 lines, because all operations use the fields that the lock protects.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use prereg::{Access, AddressSpace, Errno, Holder, Iova, MapError, OutOfMemory, Translator, UserAddr};

use super::access::{AccessPart, HeldRange, Parts, Source};
use super::backing::{Backing, LocalSegment, MemoryProvider};
use super::error::{IovaAccessError, IovaMapError, ProviderError};
use super::limits::{IovaLimits, IovaRange, SegmentCount};
use super::mapping::{ClosingMappings, LiveMapping, MappingState, OnDrained, RundownGuard, Target};
use super::on_demand::{BlockRange, OnDemand};
use super::segments::MappedSegments;
use super::state::IovaState;
use super::unmapping::Unmapping;

/// A device's I/O virtual address space: ranges of I/O virtual addresses and the memory behind them. Any thread may map,
/// unmap and access at any time.
pub struct IovaMap {
    limits: IovaLimits,
    live: RwLock<Live>,
    closing: Arc<ClosingMappings>,
}

struct Live {
    /// By first address. They never overlap.
    mappings: BTreeMap<u64, LiveMapping>,
    bytes: u128,
    /// `map` reaches it through the exclusive lock; accesses whose memory is provided lock it.
    translator: Mutex<Translator>,
}

impl IovaMap {
    /// An empty map over the memory registered in `space`, whose mappings are counted for `holder`. `drained` is called
    /// when the last access of an unmapped mapping is dropped.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        space: &AddressSpace,
        limits: IovaLimits,
        holder: Holder,
        drained: Arc<dyn OnDrained>,
    ) -> Result<Self, OutOfMemory> {
        let translator = Mutex::new(space.try_translator(holder)?);
        let live = RwLock::new(Live { mappings: BTreeMap::new(), bytes: 0, translator });
        let closing = ClosingMappings::new(drained, SegmentCount::new(limits.segments));
        Ok(Self { limits, live, closing: Arc::new(closing) })
    }

    /// The limits given to [`new`](Self::new).
    #[must_use]
    pub fn limits(&self) -> IovaLimits {
        self.limits
    }

    /// Maps `[iova, iova + bytes)`, which may end at 2^64. A range whose old mapping still waits for accesses can be mapped
    /// again at once.
    ///
    /// # Errors
    /// [`IovaMapError`], in this order: the range, overlaps, the number of mappings, the number of segments, the memory.
    /// Nothing is mapped or counted then.
    pub fn map(&self, iova: Iova, bytes: u64, to: Backing, access: Access) -> Result<(), IovaMapError> {
        let span = self.span(iova, bytes)?;
        self.check_backing(&to, bytes)?;
        // Made before the lock is taken and dropped after it on failure: owners of memory and providers run code of the
        // caller.
        let mut taken = Vec::new();
        let to = match to {
            Backing::OnDemand { provider, block, skip } => {
                NewTarget::Whole(Target::OnDemand(OnDemand::new(provider, block, skip, bytes)?))
            }
            Backing::PerAccess(provider) => NewTarget::Whole(Target::PerAccess(provider)),
            Backing::Remote => NewTarget::Whole(Target::Remote),
            Backing::Local(ua) => NewTarget::Segment(LocalSegment { ua, bytes, owner: None }),
            Backing::Segment(segment) => NewTarget::Segment(segment),
            Backing::Segments(segments) => NewTarget::Segments(segments),
        };
        // Kept until the lock is released: dropping a segment may unmap memory.
        let memory;
        let segments = to.segments();
        let mut live = self.write();
        live.admits(span, self.limits)?;
        self.closing.segments.add(segments)?;
        let target = match to {
            NewTarget::Whole(target) => target,
            to => {
                memory = to;
                let translator = live.translator.get_mut().unwrap_or_else(PoisonError::into_inner);
                match MappedSegments::of(translator, memory.local(), &mut taken) {
                    Ok(segments) => Target::Local(segments),
                    Err(error) => {
                        self.closing.segments.subtract(segments);
                        return Err(error.into());
                    }
                }
            }
        };
        let state = Arc::new(MappingState::new(span, access, target, segments, Arc::clone(&self.closing)));
        live.mappings.insert(span.first, LiveMapping { last: span.last, access, state });
        live.bytes += u128::from(span.bytes());
        Ok(())
    }

    /// Checks that the memory is page-aligned and as long as the range.
    fn check_backing(&self, to: &Backing, bytes: u64) -> Result<(), IovaMapError> {
        let shift = self.limits.page;
        let at_a_page = |ua: UserAddr| match ua.is_aligned(shift) {
            true => Ok(()),
            false => Err(IovaMapError::Memory(MapError::Misaligned { ua, shift })),
        };
        let adds_up = |segments: &[LocalSegment]| {
            segments.iter().try_for_each(|segment| at_a_page(segment.ua))?;
            match length(segments) {
                Some(given) if given == bytes => Ok(()),
                given => Err(IovaMapError::LengthMismatch { given: given.unwrap_or(u64::MAX), bytes }),
            }
        };
        match to {
            Backing::Local(ua) => at_a_page(*ua),
            Backing::Segment(segment) => adds_up(core::slice::from_ref(segment)),
            Backing::Segments(segments) => adds_up(segments),
            Backing::PerAccess(_) | Backing::OnDemand { .. } | Backing::Remote => Ok(()),
        }
    }

    /// Checks whether `[iova, iova + bytes)` could be mapped now. Nothing is mapped or counted.
    ///
    /// # Errors
    /// As [`map`](Self::map), except for the memory.
    pub fn admits(&self, iova: Iova, bytes: u64) -> Result<(), IovaMapError> {
        let span = self.span(iova, bytes)?;
        self.read().admits(span, self.limits)
    }

    fn span(&self, iova: Iova, bytes: u64) -> Result<IovaRange, IovaMapError> {
        let span = IovaRange::aligned(iova, bytes, self.limits.page)?;
        let (first, last) = self.limits.aperture;
        if span.first < first.raw() || span.last > last.raw() {
            return Err(IovaMapError::Aperture { iova, bytes, first, last });
        }
        Ok(span)
    }

    /// Unmaps every mapping in `[iova, iova + bytes)`, which may contain none and may end at 2^64. The mappings are gone on
    /// return; [`Unmapping::is_done`] is true once the accesses under way have ended.
    ///
    /// # Errors
    /// [`IovaMapError::Misaligned`], [`IovaMapError::Empty`], [`IovaMapError::Wraps`]; [`IovaMapError::Splits`] for a range
    /// that begins or ends inside a mapping. Nothing is unmapped then.
    pub fn unmap(&self, iova: Iova, bytes: u64) -> Result<Unmapping, IovaMapError> {
        let span = IovaRange::aligned(iova, bytes, self.limits.page)?;
        let mut unmapping = Unmapping::default();
        let mut live = self.write();
        if let Some(mapping) = live.remove_exact(span) {
            drop(live);
            mapping.close(&mut unmapping);
            return Ok(unmapping);
        }
        live.check_not_split(span)?;
        let mut gone = Vec::new();
        while let Some(mapping) = live.remove_first(span) {
            gone.push(mapping);
        }
        drop(live);
        for mapping in gone {
            mapping.close(&mut unmapping);
        }
        Ok(unmapping)
    }

    /// Unmaps everything.
    pub fn unmap_all(&self) -> Unmapping {
        let mut live = self.write();
        let gone = core::mem::take(&mut live.mappings);
        live.bytes = 0;
        for mapping in gone.values() {
            mapping.state.list_as_closing();
        }
        drop(live);
        let mut unmapping = Unmapping::default();
        for mapping in gone.into_values() {
            mapping.close(&mut unmapping);
        }
        unmapping
    }

    /// Holds the memory behind `[iova, iova + bytes)`, which may span several adjacent mappings, for `access`.
    ///
    /// # Errors
    /// [`IovaAccessError`]; nothing is held then.
    #[inline]
    pub fn hold(&self, iova: Iova, bytes: u64, access: Access) -> Result<HeldRange, IovaAccessError> {
        let span = IovaRange::new(iova, bytes).ok_or(match bytes {
            0 => IovaAccessError::Empty { iova },
            _ => IovaAccessError::Wraps { iova, bytes },
        })?;
        let live = self.read();
        let found = live.part(span, access);
        // The usual case: one mapping contains it.
        match found {
            Ok(FoundPart { part, is_present: true }) if part.bytes == bytes => {
                Ok(HeldRange::new(Parts::One(part), bytes))
            }
            found => self.hold_several(live, found, span, access),
        }
    }

    #[cold]
    fn hold_several(
        &self,
        live: RwLockReadGuard<'_, Live>,
        mut found: Result<FoundPart, Refusal>,
        span: IovaRange,
        access: Access,
    ) -> Result<HeldRange, IovaAccessError> {
        let mut parts = Vec::new();
        let mut missing = Vec::new();
        let refused = loop {
            let FoundPart { part, is_present } = match found {
                Ok(found) => found,
                Err(refused) => break Some(refused),
            };
            let last = part.iova + (part.bytes - 1);
            if !is_present {
                missing.push(parts.len());
            }
            parts.push(part);
            if last == span.last {
                break None;
            }
            found = live.part(IovaRange { first: last + 1, last: span.last }, access);
        };
        drop(live);
        if let Some(refused) = refused {
            return Err(self.explain(refused, access));
        }
        for index in missing {
            self.provide(&mut parts[index])?;
        }
        Ok(HeldRange::new(Parts::Many(parts), span.bytes()))
    }

    /// Provides the memory of `part`, which holds its mapping's rundown ref.
    fn provide(&self, part: &mut AccessPart) -> Result<(), IovaAccessError> {
        let mapping = part.inside.state().span.first;
        let offset = part.iova - mapping;
        match part.inside.target() {
            Target::PerAccess(provider) => {
                let segments = self.segments(&**provider, Iova::new(part.iova), offset, part.bytes)?;
                part.source = Source::Own(segments);
            }
            Target::OnDemand(table) => {
                let missing = |range: &BlockRange| table.get(range.block).is_none();
                for BlockRange { block, .. } in table.ranges(offset, part.bytes).filter(missing) {
                    let (first, bytes) = table.extent(block);
                    let iova = Iova::new(mapping + first);
                    let segments = self.segments(&*table.provider, iova, first, bytes)?;
                    // The block was counted as one segment when it was mapped.
                    let more = segments.count().saturating_sub(1);
                    let state = part.inside.state();
                    let full =
                        |_| IovaAccessError::Provider { iova, error: ProviderError { errno: Errno::ENOSPC } };
                    state.add_segments(more).map_err(full)?;
                    if table.set(block, segments).is_err() {
                        // Another thread was faster; its segments serve as well.
                        state.subtract_segments(more);
                    }
                }
            }
            Target::Local(_) | Target::Remote => {}
        }
        Ok(())
    }

    /// The segments of `bytes` bytes at `offset` in a mapping, which are at `iova`.
    fn segments(
        &self,
        provider: &dyn MemoryProvider,
        iova: Iova,
        offset: u64,
        bytes: u64,
    ) -> Result<MappedSegments, IovaAccessError> {
        let failed = |error| IovaAccessError::Provider { iova, error };
        let mut tries = 0..TRIES;
        loop {
            let segments = provider.provide(offset, bytes).map_err(failed)?;
            if length(&segments) != Some(bytes) {
                return Err(failed(ProviderError { errno: Errno::EIO }));
            }
            let mut taken = Vec::new();
            let live = self.read();
            match MappedSegments::of(&mut live.translator(), &segments, &mut taken) {
                Ok(segments) => return Ok(segments),
                // The owner may have unregistered the memory before it was counted here.
                Err(error) if tries.next().is_none() => return Err(error.into()),
                Err(_) => {}
            }
        }
    }

    /// Makes [`HeldRange::is_revoked`] return true: the device must not access the memory any more. Mappings and pins stay.
    pub fn revoke(&self) {
        self.closing.revoke();
    }

    fn explain(&self, refused: Refusal, access: Access) -> IovaAccessError {
        match refused {
            Refusal::Unmapped(iova) if self.closing.has(iova) => {
                IovaAccessError::Closing { iova: Iova::new(iova) }
            }
            Refusal::Unmapped(iova) => IovaAccessError::Unmapped { iova: Iova::new(iova) },
            Refusal::Protected(iova) => IovaAccessError::Protected { iova: Iova::new(iova), access },
            Refusal::Closing(iova) => IovaAccessError::Closing { iova: Iova::new(iova) },
        }
    }

    /// Updates the snapshot of regions, so that older tables can be freed. Never needed for correctness.
    pub fn refresh(&self) {
        self.read().translator().refresh();
    }

    /// The state, as plain data.
    #[must_use]
    pub fn snapshot(&self) -> IovaState {
        let live = self.read();
        IovaState {
            mappings: live.mappings.len() as u64,
            bytes: live.bytes,
            segments: self.closing.segments.used(),
            accesses: live.mappings.values().map(|mapping| mapping.state.inside()).sum(),
            closing: self.closing.states(),
        }
    }

    // The protected data is changed only after the calls that could panic, so a poisoned lock is consistent.
    fn read(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Attempts to map provided memory before a refusal is final.
const TRIES: u32 = 3;

fn length(segments: &[LocalSegment]) -> Option<u64> {
    segments.iter().try_fold(0u64, |sum, segment| sum.checked_add(segment.bytes))
}

/// The target of a new mapping, as far as it is known without the lock.
enum NewTarget {
    Whole(Target),
    Segment(LocalSegment),
    Segments(Vec<LocalSegment>),
}

impl NewTarget {
    /// The segments of registered memory.
    fn local(&self) -> &[LocalSegment] {
        match self {
            Self::Whole(_) => &[],
            Self::Segment(segment) => core::slice::from_ref(segment),
            Self::Segments(segments) => segments,
        }
    }

    /// Segments to count for it.
    fn segments(&self) -> u64 {
        match self {
            Self::Whole(target) => target.segments(),
            local => local.local().len() as u64,
        }
    }
}

/// The first part of a range.
struct FoundPart {
    /// The part in the first mapping, whose rundown ref it holds.
    part: AccessPart,
    /// No memory has to be provided.
    is_present: bool,
}

/// The reason for a refusal, and the first byte it applies to.
enum Refusal {
    Unmapped(u64),
    Protected(u64),
    Closing(u64),
}

impl Live {
    fn translator(&self) -> MutexGuard<'_, Translator> {
        self.translator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mapping that contains `iova`.
    #[inline]
    fn at(&self, iova: u64) -> Option<&LiveMapping> {
        let (_, mapping) = self.mappings.range(..=iova).next_back()?;
        (mapping.last >= iova).then_some(mapping)
    }

    /// Checks that a mapping of `span` fits between the others and within the limit.
    fn admits(&self, span: IovaRange, limits: IovaLimits) -> Result<(), IovaMapError> {
        // Only the last mapping that begins in or before the range can overlap it.
        if let Some((_, mapping)) = self.mappings.range(..=span.last).next_back() {
            if mapping.last >= span.first {
                let state = &mapping.state;
                return Err(IovaMapError::Exists { iova: state.iova(), bytes: state.span.bytes() });
            }
        }
        if self.mappings.len() >= limits.mappings as usize {
            return Err(IovaMapError::Limit { limit: limits.mappings });
        }
        Ok(())
    }

    /// Checks that the range does not begin or end inside a mapping.
    fn check_not_split(&self, span: IovaRange) -> Result<(), IovaMapError> {
        let splits = |mapping: &LiveMapping| {
            let state = &mapping.state;
            (state.span.first < span.first || state.span.last > span.last)
                .then(|| IovaMapError::Splits { iova: state.iova(), bytes: state.span.bytes() })
        };
        let at_ends = [span.first, span.last];
        match at_ends.into_iter().find_map(|iova| self.at(iova).and_then(splits)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    /// Removes the mapping of exactly this range: the usual unmap.
    fn remove_exact(&mut self, span: IovaRange) -> Option<LiveMapping> {
        let Entry::Occupied(found) = self.mappings.entry(span.first) else { return None };
        if found.get().last != span.last {
            return None;
        }
        let mapping = found.remove();
        self.count_removed(&mapping);
        Some(mapping)
    }

    /// Removes the first mapping that begins in the range.
    fn remove_first(&mut self, span: IovaRange) -> Option<LiveMapping> {
        let (&first, _) = self.mappings.range(span.first..=span.last).next()?;
        let mapping = self.mappings.remove(&first)?;
        self.count_removed(&mapping);
        Some(mapping)
    }

    /// Subtracts a removed mapping, and lists it as closing if accesses hold it.
    fn count_removed(&mut self, mapping: &LiveMapping) {
        self.bytes -= u128::from(mapping.state.span.bytes());
        mapping.state.list_as_closing();
    }

    /// The part of the range in the mapping of its first byte.
    #[inline]
    fn part(&self, span: IovaRange, access: Access) -> Result<FoundPart, Refusal> {
        let mapping = self.at(span.first).ok_or(Refusal::Unmapped(span.first))?;
        let state = &mapping.state;
        if mapping.access.bits() & access.bits() != access.bits() {
            return Err(Refusal::Protected(span.first));
        }
        let inside: RundownGuard = state.enter().map_err(|_| Refusal::Closing(span.first))?;
        let part = IovaRange { first: span.first, last: mapping.last.min(span.last) };
        let (source, is_present) = match inside.target() {
            Target::Local(_) => (Source::Mapped, true),
            Target::OnDemand(table) => {
                (Source::Mapped, table.has(part.first - state.span.first, part.bytes()))
            }
            Target::PerAccess(_) => (Source::Remote, false),
            Target::Remote => (Source::Remote, true),
        };
        Ok(FoundPart {
            part: AccessPart { source, inside, iova: part.first, bytes: part.bytes() },
            is_present,
        })
    }
}

impl LiveMapping {
    /// Closes a removed mapping.
    fn close(self, unmapping: &mut Unmapping) {
        let is_empty = self.state.close();
        unmapping.add(self.state, is_empty);
    }
}

impl Drop for IovaMap {
    fn drop(&mut self) {
        // Mappings that accesses hold are owned by these from here on.
        let _ = self.unmap_all();
    }
}

impl fmt::Debug for IovaMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = self.read();
        f.debug_struct("IovaMap")
            .field("mappings", &live.mappings.len())
            .field("bytes", &live.bytes)
            .finish_non_exhaustive()
    }
}
