//! The map itself: mappings in order, under one lock.

use alloc::collections::BTreeMap;
use alloc::collections::btree_map::Entry;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use prereg::{Access, AddressSpace, Errno, Holder, Iova, MapError, OutOfMemory, Translator, UserAddr};

use super::access::{Held, Part, Parts, Source};
use super::backing::{Backing, LocalPiece, Supply};
use super::error::{IovaAccessError, IovaMapError, SupplyError};
use super::limits::{IovaLimits, PieceCount, Span};
use super::mapping::{Closing, Drained, Inside, LeadsTo, Mapping, MappingState};
use super::on_demand::{OnDemand, Segment};
use super::state::IovaState;
use super::units::Units;
use super::unmapping::Unmapping;

/// A device's I/O virtual address space: ranges of I/O virtual addresses, and the memory each leads to. Any thread may map,
/// unmap and access at any time.
pub struct IovaMap {
    limits: IovaLimits,
    live: RwLock<Live>,
    closing: Arc<Closing>,
}

struct Live {
    /// By first address. They never overlap.
    mappings: BTreeMap<u64, Mapping>,
    bytes: u128,
    /// Map has it by owning the lock; an access whose memory is supplied locks it.
    translator: Mutex<Translator>,
}

impl IovaMap {
    /// An empty address space over the memory registered in `space`, whose mappings are counted as `holder`'s. `drained` is
    /// told when the last access of an unmapped mapping has left.
    ///
    /// # Errors
    /// [`OutOfMemory`].
    pub fn new(
        space: &AddressSpace,
        limits: IovaLimits,
        holder: Holder,
        drained: Arc<dyn Drained>,
    ) -> Result<Self, OutOfMemory> {
        let translator = Mutex::new(space.try_translator(holder)?);
        let live = RwLock::new(Live { mappings: BTreeMap::new(), bytes: 0, translator });
        let closing = Closing::new(drained, PieceCount::new(limits.pieces));
        Ok(Self { limits, live, closing: Arc::new(closing) })
    }

    /// The limits it was made with.
    #[must_use]
    pub fn limits(&self) -> IovaLimits {
        self.limits
    }

    /// Maps `[iova, iova + bytes)`, which may end at 2^64. Where a mapping was that still waits for its accesses, a new one
    /// can be at once.
    ///
    /// # Errors
    /// [`IovaMapError`], in this order: the range itself, what is mapped there, the number of mappings, the number of pieces, the
    /// memory. Nothing is mapped or counted then.
    pub fn map(&self, iova: Iova, bytes: u64, to: Backing, access: Access) -> Result<(), IovaMapError> {
        let span = self.span(iova, bytes)?;
        self.fits(&to, bytes)?;
        // Made before the lock is taken, so that what is left of them on a failure is dropped after it: owners of memory and
        // supplies run code of their callers.
        let mut taken = Vec::new();
        let to = match to {
            Backing::OnDemand { supply, piece, skip } => {
                Prepared::Whole(LeadsTo::OnDemand(OnDemand::new(supply, piece, skip, bytes)?))
            }
            Backing::Supplied(supply) => Prepared::Whole(LeadsTo::Supplied(supply)),
            Backing::Remote => Prepared::Whole(LeadsTo::Remote),
            Backing::Local(ua) => Prepared::Piece(LocalPiece { ua, bytes, owner: None }),
            Backing::Piece(piece) => Prepared::Piece(piece),
            Backing::Pieces(pieces) => Prepared::Pieces(pieces),
        };
        // Kept until the lock is released: dropping a piece may unmap memory.
        let memory;
        let pieces = to.pieces();
        let mut live = self.write();
        live.admits(span, self.limits)?;
        self.closing.pieces.add(pieces)?;
        let leads_to = match to {
            Prepared::Whole(leads_to) => leads_to,
            to => {
                memory = to;
                let translator = live.translator.get_mut().unwrap_or_else(PoisonError::into_inner);
                match Units::of(translator, memory.local(), &mut taken) {
                    Ok(units) => LeadsTo::Local(units),
                    Err(error) => {
                        self.closing.pieces.subtract(pieces);
                        return Err(error.into());
                    }
                }
            }
        };
        let state = Arc::new(MappingState::new(span, access, leads_to, pieces, Arc::clone(&self.closing)));
        live.mappings.insert(span.first, Mapping { last: span.last, access, state });
        live.bytes += u128::from(span.bytes());
        Ok(())
    }

    /// Whether the memory begins at pages, and is as long as it should be.
    fn fits(&self, to: &Backing, bytes: u64) -> Result<(), IovaMapError> {
        let shift = self.limits.page;
        let at_a_page = |ua: UserAddr| match ua.is_aligned(shift) {
            true => Ok(()),
            false => Err(IovaMapError::Memory(MapError::Misaligned { ua, shift })),
        };
        let adds_up = |pieces: &[LocalPiece]| {
            pieces.iter().try_for_each(|piece| at_a_page(piece.ua))?;
            match length(pieces) {
                Some(given) if given == bytes => Ok(()),
                given => Err(IovaMapError::Pieces { given: given.unwrap_or(u64::MAX), bytes }),
            }
        };
        match to {
            Backing::Local(ua) => at_a_page(*ua),
            Backing::Piece(piece) => adds_up(core::slice::from_ref(piece)),
            Backing::Pieces(pieces) => adds_up(pieces),
            Backing::Supplied(_) | Backing::OnDemand { .. } | Backing::Remote => Ok(()),
        }
    }

    /// Whether there is room for a mapping of `[iova, iova + bytes)` at this moment. Nothing is mapped or counted.
    ///
    /// # Errors
    /// As [`map`](Self::map), but for the memory.
    pub fn admits(&self, iova: Iova, bytes: u64) -> Result<(), IovaMapError> {
        let span = self.span(iova, bytes)?;
        self.read().admits(span, self.limits)
    }

    fn span(&self, iova: Iova, bytes: u64) -> Result<Span, IovaMapError> {
        let span = Span::aligned(iova, bytes, self.limits.page)?;
        let (first, last) = self.limits.aperture;
        if span.first < first.raw() || span.last > last.raw() {
            return Err(IovaMapError::Aperture { iova, bytes, first, last });
        }
        Ok(span)
    }

    /// Unmaps every mapping in `[iova, iova + bytes)`, none included; the range may end at 2^64. They are gone when this
    /// returns; the [`Unmapping`] tells when the accesses that were under way are.
    ///
    /// # Errors
    /// [`IovaMapError::Misaligned`], [`IovaMapError::Empty`], [`IovaMapError::Wraps`]; [`IovaMapError::Splits`] for a range
    /// that begins or ends inside a mapping. Nothing is unmapped then.
    pub fn unmap(&self, iova: Iova, bytes: u64) -> Result<Unmapping, IovaMapError> {
        let span = Span::aligned(iova, bytes, self.limits.page)?;
        let mut unmapping = Unmapping::default();
        let mut live = self.write();
        if let Some(mapping) = live.take_exactly(span) {
            drop(live);
            mapping.close(&mut unmapping);
            return Ok(unmapping);
        }
        live.is_not_split_by(span)?;
        let mut gone = Vec::new();
        while let Some(mapping) = live.take_first(span) {
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

    /// Holds the memory behind `[iova, iova + bytes)`, which may lie in several mappings that touch, for the device to do
    /// with as `access` says.
    ///
    /// # Errors
    /// [`IovaAccessError`]; nothing is held then.
    #[inline]
    pub fn hold(&self, iova: Iova, bytes: u64, access: Access) -> Result<Held, IovaAccessError> {
        let span = Span::new(iova, bytes).ok_or(match bytes {
            0 => IovaAccessError::Empty { iova },
            _ => IovaAccessError::Wraps { iova, bytes },
        })?;
        let live = self.read();
        let found = live.part(span, access);
        // The usual case: all of it in one mapping.
        match found {
            Ok(Found { part, is_supplied: true }) if part.bytes == bytes => {
                Ok(Held::new(Parts::One(part), bytes))
            }
            found => self.hold_slowly(live, found, span, access),
        }
    }

    #[cold]
    fn hold_slowly(
        &self,
        live: RwLockReadGuard<'_, Live>,
        mut found: Result<Found, Refused>,
        span: Span,
        access: Access,
    ) -> Result<Held, IovaAccessError> {
        let mut parts = Vec::new();
        let mut missing = Vec::new();
        let refused = loop {
            let Found { part, is_supplied } = match found {
                Ok(found) => found,
                Err(refused) => break Some(refused),
            };
            let last = part.iova + (part.bytes - 1);
            if !is_supplied {
                missing.push(parts.len());
            }
            parts.push(part);
            if last == span.last {
                break None;
            }
            found = live.part(Span { first: last + 1, last: span.last }, access);
        };
        drop(live);
        if let Some(refused) = refused {
            return Err(self.explain(refused, access));
        }
        for index in missing {
            self.supply(&mut parts[index])?;
        }
        Ok(Held::new(Parts::Many(parts), span.bytes()))
    }

    /// Supplies the memory of `part`, which is inside its mapping.
    fn supply(&self, part: &mut Part) -> Result<(), IovaAccessError> {
        let mapping = part.inside.state().span.first;
        let offset = part.iova - mapping;
        match part.inside.leads_to() {
            LeadsTo::Supplied(supply) => {
                let units = self.units(&**supply, Iova::new(part.iova), offset, part.bytes)?;
                part.source = Source::Own(units);
            }
            LeadsTo::OnDemand(table) => {
                let missing = |segment: &Segment| table.get(segment.piece).is_none();
                for Segment { piece, .. } in table.segments(offset, part.bytes).filter(missing) {
                    let (first, bytes) = table.extent(piece);
                    let iova = Iova::new(mapping + first);
                    let units = self.units(&*table.supply, iova, first, bytes)?;
                    // The piece itself was counted when it was mapped, but not that its memory is in parts.
                    let more = units.count().saturating_sub(1);
                    let state = part.inside.state();
                    let full =
                        |_| IovaAccessError::Supply { iova, error: SupplyError { errno: Errno::ENOSPC } };
                    state.add_pieces(more).map_err(full)?;
                    if table.set(piece, units).is_err() {
                        // Another thread was faster: either's units are as good.
                        state.subtract_pieces(more);
                    }
                }
            }
            LeadsTo::Local(_) | LeadsTo::Remote => {}
        }
        Ok(())
    }

    /// The units of `bytes` bytes from `offset` on of a mapping, which are at `iova`.
    fn units(
        &self,
        supply: &dyn Supply,
        iova: Iova,
        offset: u64,
        bytes: u64,
    ) -> Result<Units, IovaAccessError> {
        let failed = |error| IovaAccessError::Supply { iova, error };
        let mut tries = 0..TRIES;
        loop {
            let pieces = supply.supply(offset, bytes).map_err(failed)?;
            if length(&pieces) != Some(bytes) {
                return Err(failed(SupplyError { errno: Errno::EIO }));
            }
            let mut taken = Vec::new();
            let live = self.read();
            match Units::of(&mut live.translator(), &pieces, &mut taken) {
                Ok(units) => return Ok(units),
                // What was registered may be given up by its owner again before it is counted here.
                Err(error) if tries.next().is_none() => return Err(error.into()),
                Err(_) => {}
            }
        }
    }

    /// From here on [`Held::is_revoked`] says that no memory is to be touched any more; what is mapped stays so. For when the
    /// owner of the memory is not to see what its device does any more.
    pub fn revoke(&self) {
        self.closing.revoke();
    }

    fn explain(&self, refused: Refused, access: Access) -> IovaAccessError {
        match refused {
            Refused::Unmapped(iova) if self.closing.has(iova) => {
                IovaAccessError::Closing { iova: Iova::new(iova) }
            }
            Refused::Unmapped(iova) => IovaAccessError::Unmapped { iova: Iova::new(iova) },
            Refused::Protected(iova) => IovaAccessError::Protected { iova: Iova::new(iova), access },
            Refused::Closing(iova) => IovaAccessError::Closing { iova: Iova::new(iova) },
        }
    }

    /// Looks at the newest regions, so that the tables of older ones can be freed. Never needed for correctness.
    pub fn refresh(&self) {
        self.read().translator().refresh();
    }

    /// Everything there is to see.
    #[must_use]
    pub fn snapshot(&self) -> IovaState {
        let live = self.read();
        IovaState {
            mappings: live.mappings.len() as u64,
            bytes: live.bytes,
            pieces: self.closing.pieces.used(),
            accesses: live.mappings.values().map(|mapping| mapping.state.inside()).sum(),
            closing: self.closing.states(),
        }
    }

    // Every change of what the lock protects is made after the calls that could panic.
    fn read(&self) -> RwLockReadGuard<'_, Live> {
        self.live.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Live> {
        self.live.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Supplied memory is asked for so often before a refusal is believed.
const TRIES: u32 = 3;

fn length(pieces: &[LocalPiece]) -> Option<u64> {
    pieces.iter().try_fold(0u64, |sum, piece| sum.checked_add(piece.bytes))
}

/// What a new mapping leads to, as far as it can be known without the lock.
enum Prepared {
    Whole(LeadsTo),
    Piece(LocalPiece),
    Pieces(Vec<LocalPiece>),
}

impl Prepared {
    /// The registered memory that it is.
    fn local(&self) -> &[LocalPiece] {
        match self {
            Self::Whole(_) => &[],
            Self::Piece(piece) => core::slice::from_ref(piece),
            Self::Pieces(pieces) => pieces,
        }
    }

    /// Pieces that are counted for it.
    fn pieces(&self) -> u64 {
        match self {
            Self::Whole(leads_to) => leads_to.pieces(),
            local => local.local().len() as u64,
        }
    }
}

/// What the start of a range lies in.
struct Found {
    /// The part of the range in the first mapping, inside its rundown ref.
    part: Part,
    /// Its memory need not be asked for.
    is_supplied: bool,
}

/// Why not, and the first byte that it is true of.
enum Refused {
    Unmapped(u64),
    Protected(u64),
    Closing(u64),
}

impl Live {
    fn translator(&self) -> MutexGuard<'_, Translator> {
        self.translator.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mapping with the byte at `iova`.
    #[inline]
    fn at(&self, iova: u64) -> Option<&Mapping> {
        let (_, mapping) = self.mappings.range(..=iova).next_back()?;
        (mapping.last >= iova).then_some(mapping)
    }

    /// Whether there is room for one more mapping, just there.
    fn admits(&self, span: Span, limits: IovaLimits) -> Result<(), IovaMapError> {
        // The last one that begins in the range or before it is the only one that can be in the way.
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

    /// Whether the range begins and ends between mappings.
    fn is_not_split_by(&self, span: Span) -> Result<(), IovaMapError> {
        let splits = |mapping: &Mapping| {
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

    /// Takes out the mapping of just this range: what an unmap nearly always names.
    fn take_exactly(&mut self, span: Span) -> Option<Mapping> {
        let Entry::Occupied(found) = self.mappings.entry(span.first) else { return None };
        if found.get().last != span.last {
            return None;
        }
        let mapping = found.remove();
        self.account(&mapping);
        Some(mapping)
    }

    /// Takes out the first mapping that begins in the range.
    fn take_first(&mut self, span: Span) -> Option<Mapping> {
        let (&first, _) = self.mappings.range(span.first..=span.last).next()?;
        let mapping = self.mappings.remove(&first)?;
        self.account(&mapping);
        Some(mapping)
    }

    /// Notes that a mapping was taken out, and lists it as closing if an access is inside.
    fn account(&mut self, mapping: &Mapping) {
        self.bytes -= u128::from(mapping.state.span.bytes());
        mapping.state.list_as_closing();
    }

    /// The part of the range that lies in the mapping of its first byte.
    #[inline]
    fn part(&self, span: Span, access: Access) -> Result<Found, Refused> {
        let mapping = self.at(span.first).ok_or(Refused::Unmapped(span.first))?;
        let state = &mapping.state;
        if mapping.access.bits() & access.bits() != access.bits() {
            return Err(Refused::Protected(span.first));
        }
        let inside: Inside = state.enter().map_err(|_| Refused::Closing(span.first))?;
        let part = Span { first: span.first, last: mapping.last.min(span.last) };
        let (source, is_supplied) = match inside.leads_to() {
            LeadsTo::Local(_) => (Source::Mapped, true),
            LeadsTo::OnDemand(table) => {
                (Source::Mapped, table.has(part.first - state.span.first, part.bytes()))
            }
            LeadsTo::Supplied(_) => (Source::Remote, false),
            LeadsTo::Remote => (Source::Remote, true),
        };
        Ok(Found { part: Part { source, inside, iova: part.first, bytes: part.bytes() }, is_supplied })
    }
}

impl Mapping {
    /// Closes a mapping that was taken out.
    fn close(self, unmapping: &mut Unmapping) {
        let is_empty = self.state.close();
        unmapping.add(self.state, is_empty);
    }
}

impl Drop for IovaMap {
    fn drop(&mut self) {
        // Mappings with accesses inside belong to these from here on.
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
