//! Translators and mappings.

use prereg::{ListError, MapError, Mapping, PageShift, RangeMapping, UserAddr};

use super::{Checked, Live, Reader, Unit, World, holder, nth};
use crate::layout::runs;
use crate::model::{self, take_off};
use crate::op::Op;
use crate::random::Random;

/// The error number that the documentation names.
const fn errno(error: &MapError) -> i32 {
    match error {
        MapError::Unregistered { .. } | MapError::TooLarge { .. } => 14,
        MapError::Closing { .. } => 6,
        MapError::Misaligned { .. } | MapError::NoEntry { .. } | MapError::Foreign => 22,
        _ => 11,
    }
}

impl World {
    pub(super) fn new_reader(&mut self, word: u16, how: u16) -> Checked {
        let Some(space) = self.open_space(word) else { return Ok(()) };
        let holder = holder(how >> 4);
        self.trace.push(format!("space {space}: translator {} for {holder}", self.readers.len()));
        let Some(real) = &self.spaces[space].real else { return Ok(()) };
        let plain = holder == prereg::Holder::default();
        let real = if plain { real.translator() } else { real.translator_for(holder) };
        same!(real.holder(), holder, "whose the translator is");
        self.readers.push(Reader { real, space, holder });
        Ok(())
    }

    pub(super) fn drop_reader(&mut self, op: Op) -> Checked {
        let Some(index) = nth(&self.readers, op.a) else { return Ok(()) };
        self.trace.push(format!("drop translator {index}"));
        drop(self.readers.swap_remove(index));
        Ok(())
    }

    pub(super) fn refresh(&mut self, op: Op) -> Checked {
        let Some(index) = nth(&self.readers, op.a) else { return Ok(()) };
        self.trace.push(format!("refresh translator {index}"));
        self.readers[index].real.refresh();
        Ok(())
    }

    /// Compares an error of reader `reader` with the model's.
    pub(super) fn missed(&mut self, reader: usize, got: MapError, want: MapError) -> Checked {
        let space = self.readers[reader].space;
        let may = self.spaces[space].model.may_be(got, want);
        ensure!(may, "mapped: got {got:?}, want {want:?}");
        same!(got.errno().raw(), errno(&got), "error number");
        ensure!(!got.to_string().is_empty(), "an error without a text");
        Ok(())
    }

    /// Checks a mapping just made by reader `reader` of region `id`, and keeps it.
    pub(super) fn keep(
        &mut self,
        reader: usize,
        id: u64,
        mapping: Mapping,
        asked: (UserAddr, PageShift),
    ) -> Checked {
        let Reader { space, holder, .. } = self.readers[reader];
        let region = self.spaces[space].model.regions.get_mut(&id);
        let Some(region) = region else { return Err("mapped a region that is released".to_owned()) };
        same!(mapping.hpa().raw(), region.truth.host(asked.0.raw()), "the address of {}", asked.0);
        same!((mapping.ua(), mapping.shift()), asked, "what was mapped");
        model::add(&mut region.mapped, holder);
        self.summary.addresses += 1;
        self.lives.push(Live { unit: Unit::Page(mapping), space, id, holder });
        Ok(())
    }

    pub(super) fn map(&mut self, op: Op) -> Checked {
        let Some(reader) = self.reader(op.a)? else { return Ok(()) };
        let space = self.readers[reader].space;
        let mut random = op.choices();
        let ua = UserAddr::new(self.address(space, op.b, &mut random));
        let shift = self.shift(op.c >> 4);
        if random.one_in(8) {
            self.readers[reader].real.prefetch(ua);
        }
        self.map_at(reader, ua, shift, random.one_in(32))
    }

    /// Maps one page; if `elsewhere`, on another thread: a translator may move between threads.
    pub(super) fn map_at(
        &mut self,
        reader: usize,
        ua: UserAddr,
        shift: PageShift,
        elsewhere: bool,
    ) -> Checked {
        self.trace.push(format!("translator {reader}: map {ua} {shift}"));
        let want = self.spaces[self.readers[reader].space].model.map(ua, shift);
        let real = &mut self.readers[reader].real;
        let mapped = if elsewhere {
            std::thread::scope(|scope| scope.spawn(|| real.map(ua, shift)).join())
        } else {
            Ok(real.map(ua, shift))
        };
        let Ok(mapped) = mapped else { return Err("mapping on another thread panicked".to_owned()) };
        match (mapped, want) {
            (Ok(mapping), Ok((id, _))) => self.keep(reader, id, mapping, (ua, shift)),
            (Err(got), Err(want)) => self.missed(reader, got, want),
            (got, want) => Err(format!("mapped: got {got:?}, want {want:x?}")),
        }
    }

    /// Maps several pages in one burst: some are released at once, some at its end, and some are kept.
    pub(super) fn burst(&mut self, op: Op) -> Checked {
        let Some(reader) = self.reader(op.a)? else { return Ok(()) };
        let space = self.readers[reader].space;
        let mut random = op.choices();
        let pages: Vec<_> = (0..1 + random.below(if self.case.small { 4 } else { 12 }))
            .map(|_| {
                let ua = UserAddr::new(self.address(space, random.next() as u16, &mut random));
                (ua, if random.one_in(4) { self.shift(random.next() as u16) } else { PageShift::K4 })
            })
            .collect();
        self.trace.push(format!("translator {reader}: burst {pages:?}"));
        let Self { readers, spaces, .. } = self;
        let (mut held, mut kept, mut missed) = (Vec::new(), Vec::new(), Vec::new());
        let mut burst = readers[reader].real.burst();
        for &(ua, shift) in &pages {
            match (burst.map(ua, shift), spaces[space].model.map(ua, shift)) {
                (Ok(mapping), Ok((id, host))) => {
                    same!(mapping.hpa().raw(), host, "the address of {ua} in a burst");
                    match random.below(3) {
                        0 => drop(mapping),
                        1 => held.push(mapping),
                        _ => match burst.keep(mapping, ua, shift) {
                            Ok(mapping) => kept.push((id, mapping, (ua, shift))),
                            Err(_) => return Err(format!("{ua} was mapped and not kept")),
                        },
                    }
                }
                (Err(got), Err(want)) => missed.push((got, want)),
                (got, want) => return Err(format!("mapped in a burst: got {got:?}, want {want:x?}")),
            }
        }
        drop(held);
        missed.into_iter().try_for_each(|(got, want)| self.missed(reader, got, want))?;
        kept.into_iter().try_for_each(|(id, mapping, asked)| self.keep(reader, id, mapping, asked))
    }

    pub(super) fn check(&mut self, op: Op) -> Checked {
        let Some(reader) = self.reader(op.a)? else { return Ok(()) };
        let space = self.readers[reader].space;
        let ua = UserAddr::new(self.address(space, op.b, &mut op.choices()));
        let shift = self.shift(op.c >> 4);
        self.trace.push(format!("translator {reader}: check {ua} {shift}"));
        let want = self.spaces[space].model.map(ua, shift);
        match (self.readers[reader].real.check(ua, shift), want) {
            (Ok(()), Ok(_)) => Ok(()),
            (Err(got), Err(want)) => self.missed(reader, got, want),
            (got, want) => Err(format!("checked: got {got:?}, want {want:x?}")),
        }
    }

    pub(super) fn map_list(&mut self, op: Op) -> Checked {
        let Some(reader) = self.reader(op.a)? else { return Ok(()) };
        let space = self.readers[reader].space;
        let mut random = op.choices();
        let most = match op.c >> 4 & 3 {
            0 | 1 => 3,
            2 => 20,
            _ if self.case.small => 70,
            _ => 150,
        };
        let pages = 1 + random.below(most);
        let shift = if random.one_in(8) { self.shift(op.c >> 6) } else { PageShift::K4 };
        // Mostly lists that can be mapped as a whole.
        let hits = random.one_in(4);
        let mut list: Vec<UserAddr> = Vec::new();
        for _ in 0..pages {
            let again = list.get(random.index(list.len() + 4)).copied();
            let ua = match again {
                Some(ua) => ua,
                None => UserAddr::new(self.address(space, random.next() as u16, &mut random)),
            };
            if hits || self.spaces[space].model.map(ua, shift).is_ok() {
                list.push(ua);
            }
        }
        let (owners, mut mappings) = self.places(&mut random, list.len());
        let filled: Vec<_> = mappings.iter().map(|place| place.as_ref().map(Mapping::ua)).collect();
        self.trace.push(format!("translator {reader}: map list {list:?} {shift} into {filled:?}"));
        let wants: Vec<_> = list.iter().map(|&ua| self.spaces[space].model.map(ua, shift)).collect();
        let got = self.readers[reader].real.map_list(&list, shift, &mut mappings);
        let bad = wants.iter().position(Result::is_err);
        let touched = match (got, bad) {
            (got, _) if mappings.len() < list.len() => {
                let room = ListError::OutputTooSmall { pages: list.len(), capacity: mappings.len() };
                same!(got, Err(room), "a list without room");
                same!(room.errno().raw(), 22, "its error number");
                0
            }
            (Ok(()), None) => list.len(),
            (Err(ListError::Page { index, error }), Some(bad)) => {
                same!(index, bad, "the page that cannot be mapped");
                if let Err(want) = wants[bad] {
                    self.missed(reader, error, want)?;
                }
                ensure!(mappings[..bad].iter().all(Option::is_none), "some pages of a list are mapped");
                bad
            }
            (got, bad) => {
                return Err(format!("list mapped: got {got:?}, want failure at {bad:?}: {wants:x?}"));
            }
        };
        for (index, (owner, mapping)) in owners.into_iter().zip(mappings).enumerate() {
            match (owner, mapping) {
                (Some((space, id, holder)), Some(mapping)) if index >= touched => {
                    same!(Some(mapping.ua()), filled[index], "a place that was not to be touched");
                    self.lives.push(Live { unit: Unit::Page(mapping), space, id, holder });
                }
                (owner, mapping) => {
                    ensure!(
                        owner.is_none() || index < touched,
                        "a place that was not to be touched is empty"
                    );
                    if let Some((space, id, holder)) = owner {
                        self.given_back(space, id, holder)?;
                    }
                    match (mapping, wants.get(index)) {
                        (Some(mapping), Some(&Ok((id, _)))) => {
                            self.keep(reader, id, mapping, (list[index], shift))?;
                        }
                        (mapping, _) => ensure!(mapping.is_none(), "a place past the list was filled"),
                    }
                }
            }
        }
        Ok(())
    }

    /// Places for a list, sometimes too few or too many, some of them filled: whose mappings these are, and the places.
    #[expect(clippy::type_complexity, reason = "two columns of one table")]
    fn places(
        &mut self,
        random: &mut Random,
        len: usize,
    ) -> (Vec<Option<(usize, u64, prereg::Holder)>>, Vec<Option<Mapping>>) {
        let len = match random.below(8) {
            0 => len.saturating_sub(1),
            1 => len + 2,
            _ => len,
        };
        let fill = random.one_in(4);
        let mut columns = (Vec::new(), Vec::new());
        for _ in 0..len {
            let taken = if fill && random.one_in(2) { self.take_page(random, true) } else { None };
            let (owner, mapping) =
                taken.map_or((None, None), |(owner, mapping)| (Some(owner), Some(mapping)));
            columns.0.push(owner);
            columns.1.push(mapping);
        }
        columns
    }

    /// A live mapping of one page, of a registered region if `registered`.
    fn take_page(
        &mut self,
        random: &mut Random,
        registered: bool,
    ) -> Option<((usize, u64, prereg::Holder), Mapping)> {
        let index = nth(&self.lives, random.next() as u16)?;
        let live = &self.lives[index];
        let region = self.spaces[live.space].model.regions.get(&live.id)?;
        if matches!(live.unit, Unit::Range(_)) || (registered && region.is_draining()) {
            return None;
        }
        match self.lives.swap_remove(index) {
            Live { unit: Unit::Page(mapping), space, id, holder } => Some(((space, id, holder), mapping)),
            live => {
                self.lives.push(live);
                None
            }
        }
    }

    /// Takes a unit off in the model.
    pub(super) fn given_back(&mut self, space: usize, id: u64, holder: prereg::Holder) -> Checked {
        let region = self.spaces[space].model.regions.get_mut(&id);
        ensure!(
            region.is_some_and(|region| take_off(&mut region.mapped, holder)),
            "the model lost a mapping"
        );
        Ok(())
    }

    pub(super) fn unmap_list(&mut self, op: Op) -> Checked {
        let Some(reader) = self.reader(op.a)? else { return Ok(()) };
        let mut random = op.choices();
        let mut owners = Vec::new();
        let mut mappings = Vec::new();
        for _ in 0..random.below(20) {
            let taken = self.take_page(&mut random, false);
            mappings.push(taken.map(|(owner, mapping)| {
                owners.push(owner);
                mapping
            }));
        }
        self.trace.push(format!("translator {reader}: unmap list {mappings:x?}"));
        for (space, id, holder) in owners {
            self.given_back(space, id, holder)?;
        }
        self.readers[reader].real.unmap_list(&mut mappings);
        ensure!(mappings.iter().all(Option::is_none), "a place of an unmapped list is filled");
        Ok(())
    }

    pub(super) fn map_range(&mut self, op: Op) -> Checked {
        let Some(reader) = self.reader(op.a)? else { return Ok(()) };
        let (space, holder) = (self.readers[reader].space, self.readers[reader].holder);
        let mut random = op.choices();
        let ua = self.address(space, op.b, &mut random);
        let left =
            self.spaces[space].model.at(ua).map_or(1, |(_, region)| region.range.last().raw() - ua + 1);
        let bytes = match op.c >> 4 & 15 {
            0 => 0,
            1 => left + 1,
            2 => left,
            3 => u64::MAX - random.below(2),
            4..=8 => 1 + random.below(left.min(3 * self.page())),
            _ => 1 + random.below(left),
        };
        let ua = UserAddr::new(ua);
        self.trace.push(format!("translator {reader}: map range {ua} + {bytes:#x}"));
        let want = self.spaces[space].model.map_range(ua, bytes);
        match (self.readers[reader].real.map_range(ua, bytes), want) {
            (Ok(range), Ok(id)) => {
                same!((range.ua(), range.bytes()), (ua, bytes), "the range mapped");
                self.right_runs(&range, space, id, &mut random)?;
                if let Some(region) = self.spaces[space].model.regions.get_mut(&id) {
                    model::add(&mut region.mapped, holder);
                }
                self.lives.push(Live { unit: Unit::Range(range), space, id, holder });
                Ok(())
            }
            (Err(got), Err(want)) => self.missed(reader, got, want),
            (got, want) => Err(format!("range mapped: got {got:?}, want {want:?}")),
        }
    }

    /// Compares the runs of a range, and of a part of it, with the truth.
    fn right_runs(&mut self, range: &RangeMapping, space: usize, id: u64, random: &mut Random) -> Checked {
        let region = self.spaces[space].model.regions.get(&id);
        let Some(region) = region else { return Err("a range of a region that is released".to_owned()) };
        let granule = self.case.granule;
        let (ua, bytes) = (range.ua().raw(), range.bytes());
        let seen: Vec<_> = range.runs().map(|run| (run.host.raw(), run.bytes)).collect();
        same!(seen, runs(&region.truth, granule, ua, bytes), "the runs of {ua:#x} + {bytes:#x}");
        let from = random.below(bytes);
        let part = random.below(bytes - from + 1);
        let seen: Vec<_> =
            range.runs_in(UserAddr::new(ua + from), part).map(|run| (run.host.raw(), run.bytes)).collect();
        same!(
            seen,
            runs(&region.truth, granule, ua + from, part),
            "the runs of a part, {from:#x} + {part:#x}"
        );
        let outside = [(ua.wrapping_sub(1), 1), (ua + from, bytes - from + 1), (ua.wrapping_add(bytes), 1)];
        for (ua, bytes) in outside {
            same!(range.runs_in(UserAddr::new(ua), bytes).count(), 0, "runs of what is not inside");
        }
        self.summary.addresses += seen.len() as u64 + 1;
        Ok(())
    }

    pub(super) fn look_at_range(&mut self, op: Op) -> Checked {
        for index in 0..self.lives.len() {
            let index = (index + usize::from(op.a)) % self.lives.len();
            if matches!(self.lives[index].unit, Unit::Range(_)) {
                self.trace.push(format!("look at range {index}"));
                let live = self.lives.swap_remove(index);
                if let Unit::Range(range) = &live.unit {
                    self.right_runs(range, live.space, live.id, &mut op.choices())?;
                }
                self.lives.push(live);
                break;
            }
        }
        Ok(())
    }

    /// Takes any live mapping out, in the model too.
    fn take_live(&mut self, word: u16) -> Result<Option<Live>, String> {
        let Some(index) = nth(&self.lives, word) else { return Ok(None) };
        let live = self.lives.swap_remove(index);
        self.given_back(live.space, live.id, live.holder)?;
        Ok(Some(live))
    }

    pub(super) fn unmap(&mut self, op: Op) -> Checked {
        let Some(reader) = self.reader(op.a)? else { return Ok(()) };
        let Some(live) = self.take_live(op.b)? else { return Ok(()) };
        let unit = live.unit;
        let translator = &mut self.readers[reader].real;
        match unit {
            Unit::Page(mapping) => {
                self.trace.push(format!("translator {reader}: unmap {mapping:x?} of space {}", live.space));
                translator.unmap(mapping);
            }
            Unit::Range(range) => {
                self.trace
                    .push(format!("translator {reader}: unmap range {range:x?} of space {}", live.space));
                translator.unmap_range(range);
            }
        }
        Ok(())
    }

    pub(super) fn drop_mapping(&mut self, op: Op) -> Checked {
        let Some(live) = self.take_live(op.b)? else { return Ok(()) };
        let elsewhere = op.c >> 4 & 3 == 0;
        self.trace.push(format!("space {}: drop a mapping of region {}, {elsewhere}", live.space, live.id));
        let unit = live.unit;
        if elsewhere {
            let dropped = std::thread::spawn(move || drop(unit)).join();
            ensure!(dropped.is_ok(), "dropping a mapping on another thread panicked");
        } else {
            drop(unit);
        }
        self.spaces[live.space].model.dropped(live.id);
        Ok(())
    }

    pub(super) fn mark_dirty(&mut self, op: Op) -> Checked {
        let Some(reader) = self.reader(op.a)? else { return Ok(()) };
        let space = self.readers[reader].space;
        let ua = self.address(space, op.b, &mut op.choices());
        self.trace.push(format!("translator {reader}: mark {ua:#x} dirty"));
        let granule = self.case.granule;
        let model = &mut self.spaces[space].model;
        let id = model.at(ua).map(|(id, _)| id);
        if let Some(region) =
            id.and_then(|id| model.regions.get_mut(&id)).filter(|region| region.pin.is_some())
        {
            region.mark(ua, 1, granule);
        }
        self.readers[reader].real.mark_dirty(UserAddr::new(ua));
        Ok(())
    }
}
