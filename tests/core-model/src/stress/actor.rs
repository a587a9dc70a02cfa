//! One thread of the stress: registers, maps and releases at random, and checks every address.

use std::sync::atomic::Ordering;

use prereg::{
    Access, ListError, MapError, Mapping, PageShift, RangeMapping, Registration, Translator, UnregisterError,
    UserAddr,
};

use super::arena::{Arena, Counts, ENTRIES, Until, piece, spot_index};
use crate::layout::{ORDINARY, Spot, Truth, runs};
use crate::op::{Op, Verb};
use crate::random::Random;

const K4: PageShift = PageShift::K4;
/// Registrations and mappings that a thread keeps.
const CLAIMS: usize = 10;
const LIVES: usize = 12;

/// A mapping, the spot it is of, and the pin that held the spot when it was made.
struct Live {
    unit: Unit,
    spot: usize,
    pin: u64,
}

enum Unit {
    Page(Mapping),
    Range(RangeMapping),
}

pub(super) struct Actor<'a> {
    arena: &'a Arena,
    number: u64,
    random: Random,
    readers: Vec<Translator>,
    claims: Vec<(Registration, usize)>,
    lives: Vec<Live>,
    addresses: u64,
    missed: u64,
    refused: u64,
}

impl<'a> Actor<'a> {
    pub(super) fn new(arena: &'a Arena, number: u64, seed: u64) -> Self {
        Self {
            arena,
            number,
            random: Random::new(seed),
            readers: Vec::new(),
            claims: Vec::new(),
            lives: Vec::new(),
            addresses: 0,
            missed: 0,
            refused: 0,
        }
    }

    pub(super) fn work(mut self) {
        // So that a thread that fails ends the run instead of leaving the others at work.
        let _ends = Ends(self.arena);
        let mut operations = 0;
        // Relaxed: a flag that orders nothing.
        while !self.arena.stop.load(Ordering::Relaxed) {
            if matches!(self.arena.until, Until::Operations(most) if operations >= most) {
                break;
            }
            let op = Op::random(&mut self.random);
            self.step(op);
            operations += 1;
        }
        let Counts { addresses, operations: all, refused, missed } = &self.arena.counts;
        let sums =
            [(addresses, self.addresses), (all, operations), (refused, self.refused), (missed, self.missed)];
        for (sum, more) in sums {
            // Relaxed: a number for the report.
            sum.fetch_add(more, Ordering::Relaxed);
        }
        // Mappings outlive the translators that made them.
        self.readers.clear();
        self.lives.clear();
        self.claims.clear();
    }

    fn step(&mut self, op: Op) {
        match op.verb {
            Verb::Register | Verb::RegisterNew | Verb::Crowd | Verb::RegisterDevice => self.register(op),
            Verb::Share => self.share(op),
            Verb::Unregister | Verb::AskRegistration => self.unregister(op),
            Verb::UnregisterMany => self.unregister_many(op),
            Verb::DropRegistration => drop(self.claim(op.a)),
            Verb::Drain | Verb::AskDraining => self.drain(op),
            Verb::EndDraining => self.wait(op),
            Verb::Map | Verb::Find | Verb::DeviceAt => self.map(op),
            Verb::Check => self.check(op),
            Verb::Burst => self.burst(op),
            Verb::MapList | Verb::Churn => self.map_list(op),
            Verb::MapRange | Verb::LookAtRange => self.map_range(op),
            Verb::Unmap | Verb::UnmapList | Verb::DropMapping => self.unmap(op),
            Verb::MarkDirty => self.mark_dirty(op),
            Verb::NewTranslator | Verb::DropTranslator => self.change_readers(op),
            Verb::Refresh => {
                let reader = self.reader(op.a);
                self.readers[reader].refresh();
            }
            Verb::SetEntry | Verb::NewBlock => self.set_entry(op),
            Verb::ClearEntry | Verb::DropBlock => self.clear_entry(op),
            Verb::TakeEntry => self.take_entry(op),
            Verb::Reap | Verb::NewSpace | Verb::DropSpace => self.arena.space.reap(),
        }
        // The first thread waits for others to unmap, so it must not keep what others wait for.
        while self.lives.len() > if self.number == 0 { 0 } else { LIVES } {
            self.unmap(op);
        }
    }

    // ---- registrations --------------------------------------------------------------------------------------------

    fn spot(&self, word: u16) -> (usize, Spot) {
        let index = spot_index(word);
        (index, self.arena.host.spots()[index])
    }

    fn register(&mut self, op: Op) {
        if self.claims.len() >= CLAIMS {
            return self.unregister_many(op);
        }
        let (index, spot) = self.spot(op.b);
        let holder = prereg::Holder { container: self.number, ..prereg::Holder::default() };
        match self.arena.space.register_for(&piece(spot), holder) {
            Ok(claim) => {
                assert_eq!(
                    (claim.ua().raw(), claim.pages()),
                    (spot.ua, spot.pages),
                    "another range was registered"
                );
                self.claims.push((claim, index));
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn share(&mut self, op: Op) {
        let (index, spot) = self.spot(op.b);
        if self.claims.len() < CLAIMS {
            let shared = self.arena.space.share(UserAddr::new(spot.ua), spot.pages << 12);
            self.claims.extend(shared.map(|claim| (claim, index)));
        }
    }

    fn claim(&mut self, word: u16) -> Option<(Registration, usize)> {
        (!self.claims.is_empty()).then(|| self.claims.swap_remove(usize::from(word) % self.claims.len()))
    }

    /// The region of a registration is pinned by one pin as long as it lives.
    fn pinned(&self, spot: usize) -> u64 {
        let pin = self.arena.host.shown(spot);
        assert_ne!(pin, 0, "registered, and not pinned");
        pin
    }

    fn refused(&mut self, error: UnregisterError, spot: usize) {
        self.refused += 1;
        assert!(error.mapped() > 0, "refused, and nothing is mapped");
        self.pinned(spot);
        self.claims.push((error.into_inner(), spot));
    }

    fn unregister(&mut self, op: Op) {
        let Some((claim, spot)) = self.claim(op.a) else { return };
        self.pinned(spot);
        if let Err(error) = claim.unregister() {
            self.refused(error, spot);
        }
    }

    fn unregister_many(&mut self, op: Op) {
        let many =
            self.claims.split_off(self.claims.len() - self.claims.len().min(1 + usize::from(op.c) % 24));
        let (claims, spots): (Vec<_>, Vec<_>) = many.into_iter().unzip();
        for error in Registration::unregister_many(claims) {
            self.refused += 1;
            assert!(error.mapped() > 0, "refused, and nothing is mapped");
            let claim = error.into_inner();
            let spot = self.arena.host.spot_of(claim.ua().raw()).map(|(index, _)| index);
            let spot = spot.filter(|spot| spots.contains(spot)).expect("one of those that were asked for");
            self.pinned(spot);
            self.claims.push((claim, spot));
        }
    }

    fn drain(&mut self, op: Op) {
        let Some((claim, _)) = self.claim(op.a) else { return };
        let draining = claim.drain();
        if draining.is_done() {
            draining.wait();
        }
    }

    /// Waits until others have unmapped. One thread does, and keeps no mappings; entries are not of what it waits for.
    fn wait(&mut self, op: Op) {
        let Some((claim, spot)) = self.claim(op.a) else { return };
        if self.number == 0 && spot >= ORDINARY {
            claim.unregister_when_idle();
        }
    }

    // ---- mappings -------------------------------------------------------------------------------------------------

    fn change_readers(&mut self, op: Op) {
        if self.readers.len() > 2 {
            self.readers.swap_remove(usize::from(op.a) % self.readers.len());
        }
        // Rarely: making one takes the lock that everything else wants.
        if op.b % 16 == 0 || self.readers.is_empty() {
            let holder =
                prereg::Holder { container: u64::from(op.c % 3), kind: prereg::HolderKind::TableEntry };
            self.readers.push(self.arena.space.translator_for(holder));
        }
    }

    fn reader(&mut self, word: u16) -> usize {
        if self.readers.is_empty() {
            self.readers.push(self.arena.space.translator());
        }
        usize::from(word) % self.readers.len()
    }

    /// A page to map, in a spot that may be registered.
    fn place(&mut self, word: u16) -> (usize, UserAddr, u64) {
        let (index, spot) = self.spot(word);
        let offset = self.random.below(spot.pages << 12);
        (index, UserAddr::new(spot.ua + offset), (spot.pages << 12) - offset)
    }

    /// The pin behind a mapping that lives, and where its pages are.
    fn truth(&self, spot: usize) -> (u64, Truth) {
        let pin = self.arena.host.shown(spot);
        assert_ne!(pin, 0, "mapped, and not pinned");
        let truth = self.arena.host.truth(pin, self.arena.host.spots()[spot].ua);
        (pin, truth.expect("a spot is where it is"))
    }

    fn right(&mut self, mapping: &Mapping, spot: usize) -> u64 {
        let (pin, truth) = self.truth(spot);
        let ua = mapping.ua();
        assert_eq!(mapping.hpa().raw(), truth.host(ua.raw()), "the address of {ua}, pin {pin}");
        self.addresses += 1;
        pin
    }

    fn miss(&mut self, error: MapError) {
        match error {
            MapError::Unregistered { .. } | MapError::Closing { .. } | MapError::Contended => {
                self.missed += 1;
            }
            error => panic!("{error}"),
        }
    }

    fn keep(&mut self, mapping: Mapping, spot: usize) {
        let pin = self.right(&mapping, spot);
        self.lives.push(Live { unit: Unit::Page(mapping), spot, pin });
    }

    fn map(&mut self, op: Op) {
        let reader = self.reader(op.a);
        // Many of one region, fast: the races are between a few instructions.
        for _ in 0..1 + op.c % 8 {
            let (spot, ua, _) = self.place(op.b);
            match self.readers[reader].map(ua, K4) {
                Ok(mapping) if self.lives.len() < LIVES => self.keep(mapping, spot),
                Ok(mapping) => {
                    let pin = self.right(&mapping, spot);
                    assert_eq!(self.arena.host.shown(spot), pin, "unpinned under a mapping");
                    self.readers[reader].unmap(mapping);
                }
                Err(error) => self.miss(error),
            }
        }
    }

    fn burst(&mut self, op: Op) {
        let reader = self.reader(op.a);
        let places: Vec<_> = (0..1 + op.c % 32).map(|_| self.place(op.b)).collect();
        // Taken out, because a burst borrows it.
        let mut translator = self.readers.swap_remove(reader);
        let mut burst = translator.burst();
        let mut held = Vec::new();
        for (number, (spot, ua, _)) in places.into_iter().enumerate() {
            match burst.map(ua, K4) {
                Ok(mapping) => {
                    let (pin, truth) = self.truth(spot);
                    assert_eq!(mapping.hpa().raw(), truth.host(ua.raw()), "the address of {ua}, pin {pin}");
                    self.addresses += 1;
                    if number % 8 == 0 {
                        let mapping = burst.keep(mapping, ua, K4).expect("this burst's");
                        self.keep(mapping, spot);
                    } else if number % 2 == 0 {
                        held.push((mapping, spot, pin));
                    }
                }
                Err(error) => self.miss(error),
            }
        }
        for (_mapping, spot, pin) in held {
            assert_eq!(self.arena.host.shown(spot), pin, "unpinned under a mapping");
        }
        self.readers.push(translator);
    }

    fn check(&mut self, op: Op) {
        let reader = self.reader(op.a);
        let (_, ua, _) = self.place(op.b);
        if let Err(error) = self.readers[reader].check(ua, K4) {
            self.miss(error);
        }
    }

    fn map_list(&mut self, op: Op) {
        let reader = self.reader(op.a);
        let mut random = op.choices();
        let length = 1 + random.below(100);
        // Few regions, so that lists are mapped as a whole.
        let words = [op.b, op.c, op.b / 2];
        let places: Vec<_> = (0..length).map(|_| self.place(words[random.index(3)])).collect();
        let list: Vec<_> = places.iter().map(|&(_, ua, _)| ua).collect();
        let mut mappings: Vec<Option<Mapping>> = list.iter().map(|_| None).collect();
        match self.readers[reader].map_list(&list, K4, &mut mappings) {
            Ok(()) => {
                for (mapping, (spot, ua, _)) in mappings.iter().zip(places) {
                    let mapping = mapping.as_ref().expect("all of a list");
                    assert_eq!(mapping.ua(), ua);
                    self.right(mapping, spot);
                }
                self.readers[reader].unmap_list(&mut mappings);
            }
            Err(ListError::Page { error, .. }) => self.miss(error),
            Err(error) => panic!("{error}"),
        }
        assert!(mappings.iter().all(Option::is_none), "all of a list, or none");
    }

    fn map_range(&mut self, op: Op) {
        let reader = self.reader(op.a);
        let (spot, ua, left) = self.place(op.b);
        let bytes = 1 + self.random.below(left.min(40 << 12));
        match self.readers[reader].map_range(ua, bytes) {
            Ok(range) => {
                let pin = self.right_range(&range, spot);
                self.lives.push(Live { unit: Unit::Range(range), spot, pin });
            }
            Err(error) => self.miss(error),
        }
    }

    fn right_range(&mut self, range: &RangeMapping, spot: usize) -> u64 {
        let (pin, truth) = self.truth(spot);
        let seen: Vec<_> = range.runs().map(|run| (run.host.raw(), run.bytes)).collect();
        let wanted = runs(&truth, prereg::Granule::K4, range.ua().raw(), range.bytes());
        assert_eq!(seen, wanted, "the runs of {:?}, pin {pin}", range.ua());
        self.addresses += seen.len() as u64;
        pin
    }

    fn unmap(&mut self, op: Op) {
        if self.lives.is_empty() {
            return;
        }
        let Live { unit, spot, pin } = self.lives.swap_remove(usize::from(op.b) % self.lives.len());
        let reader = self.reader(op.a);
        let now = match &unit {
            Unit::Page(mapping) => self.right(mapping, spot),
            Unit::Range(range) => self.right_range(range, spot),
        };
        assert_eq!(now, pin, "another pin under a mapping");
        match unit {
            unit if op.c % 4 == 0 => drop(unit),
            Unit::Page(mapping) => self.readers[reader].unmap(mapping),
            Unit::Range(range) => self.readers[reader].unmap_range(range),
        }
    }

    fn mark_dirty(&mut self, op: Op) {
        let reader = self.reader(op.a);
        let (_, ua, _) = self.place(op.b);
        self.readers[reader].mark_dirty(ua);
    }

    // ---- entries --------------------------------------------------------------------------------------------------

    fn set_entry(&mut self, op: Op) {
        let reader = self.reader(op.a);
        let (spot, ua, _) = self.place(op.b);
        let access = [Access::Read, Access::Write, Access::ReadWrite][usize::from(op.c % 3)];
        if spot >= ORDINARY || ua.raw() >= 1 << 56 {
            return;
        }
        let block = &self.arena.blocks[usize::from(op.a) / 8 % 2];
        let index = self.random.index(ENTRIES);
        if let Err(error) = block.set(&mut self.readers[reader], index, ua.align_down(K4), access) {
            self.miss(error);
        }
    }

    fn clear_entry(&mut self, op: Op) {
        let reader = self.reader(op.a);
        let index = self.random.index(ENTRIES);
        let block = &self.arena.blocks[usize::from(op.a) / 8 % 2];
        if let Err(error) = block.clear(&mut self.readers[reader], index) {
            self.miss(error);
        }
    }

    fn take_entry(&mut self, op: Op) {
        let reader = self.reader(op.a);
        let index = self.random.index(ENTRIES);
        let block = &self.arena.blocks[usize::from(op.a) / 8 % 2];
        match block.hold_mapping(&mut self.readers[reader], index) {
            Ok(None) => {}
            Ok(Some((mapping, _))) => {
                let (spot, _) = self.arena.host.spot_of(mapping.ua().raw()).expect("entries are of spots");
                self.keep(mapping, spot);
            }
            Err(error) => self.miss(error),
        }
    }
}

/// Ends the run when a thread ends for whatever reason.
struct Ends<'a>(&'a Arena);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Relaxed: a flag that orders nothing.
            self.0.stop.store(true, Ordering::Relaxed);
        }
    }
}
