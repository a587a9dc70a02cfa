//! Registrations: created, shared, released.

use std::sync::Arc;

use prereg::{Holder, HostAddr, Registration, UnregisterError, UserAddr};

use super::{Checked, Claim, Drain, World, holder, nth};
use crate::host::{Failure, Piece, Token};
use crate::layout::{CROWD, ORDINARY, Spot, Truth, largest_shift, runs};
use crate::model::{self, Refused, Registered, Wish};
use crate::op::Op;

impl World {
    /// A range to register in space `space`: a spot, or something near one.
    fn wanted(&self, space: usize, op: Op) -> (u64, u64) {
        let page = self.page();
        let fits = |spot: &&Spot| !self.case.aligned || (spot.ua | (spot.pages * page)) % (8 * page) == 0;
        let spots: Vec<Spot> =
            self.spaces[space].host.spots()[..ORDINARY].iter().filter(fits).copied().collect();
        let spot = spots[usize::from(op.b) % spots.len()];
        let (ua, bytes) = (spot.ua, spot.pages * page);
        let mut random = op.choices();
        let cut = random.below(spot.pages);
        match op.c >> 4 & 15 {
            0..=8 => (ua, bytes),
            9 | 10 if self.case.aligned => (ua + cut / 8 * 8 * page, 8 * page),
            9 | 10 => (ua + cut * page, (1 + random.below(spot.pages - cut)) * page),
            11 => (ua, bytes.wrapping_add(page)),
            12 => (ua + random.below(page), bytes + random.below(2)),
            13 => (ua, 0),
            14 => (ua, u64::MAX - (page - 1) - random.below(3) * page),
            _ => (ua.wrapping_sub(page), bytes),
        }
    }

    pub(super) fn register(&mut self, op: Op, wish: Wish) -> Checked {
        let Some(index) = self.open_space(op.a) else { return Ok(()) };
        let (ua, bytes) = self.wanted(index, op);
        let holder = if wish == Wish::New { Holder::default() } else { holder(op.a >> 8) };
        let failure = match op.c >> 8 & 31 {
            1 => Some(Failure::Charge),
            2 => Some(Failure::Pin),
            3 => Some(Failure::TooFew),
            4 => Some(Failure::TooMany),
            _ => None,
        };
        let limit = (op.c >> 8 & 31 == 5).then_some(100);
        self.register_range(index, ua, bytes, wish, holder, failure, limit)
    }

    #[expect(clippy::too_many_arguments, reason = "what a registration is, and how the host answers")]
    fn register_range(
        &mut self,
        index: usize,
        ua: u64,
        bytes: u64,
        wish: Wish,
        holder: Holder,
        failure: Option<Failure>,
        limit: Option<u64>,
    ) -> Checked {
        self.trace.push(format!(
            "space {index}: register {ua:#x} + {bytes:#x} {wish:?} for {holder}, {failure:?} {limit:?}"
        ));
        let granule = self.case.granule;
        let super::Space { real, host, model, .. } = &mut self.spaces[index];
        let Some(real) = real else { return Ok(()) };
        let want = match model.range(ua, bytes) {
            Err(refused) => Registered::Refused(refused),
            Ok(range) => {
                model.reap();
                let over = limit.is_some_and(|limit| model.pinned_pages() + range.pages(granule) > limit);
                match model.register(range, wish) {
                    Registered::New if failure == Some(Failure::Charge) || over => {
                        Registered::Refused(Refused::Charge)
                    }
                    Registered::New if failure.is_some() || !host.can_pin(ua, bytes) => {
                        Registered::Refused(Refused::Pin)
                    }
                    other => other,
                }
            }
        };
        let token: Token = Arc::new(());
        host.expect_token(Some(&token));
        host.fail_next(failure);
        host.limit(limit);
        let piece = Piece::new(ua, bytes, Some(token.clone()));
        let got = match wish {
            Wish::New => real.register_new(&piece),
            Wish::Any if holder == Holder::default() => real.register(&piece),
            Wish::Any => real.register_for(&piece, holder),
        };
        host.fail_next(None);
        host.limit(None);
        host.expect_token(None);
        drop(piece);
        let id = match (&got, &want) {
            (Ok(_), Registered::Shared(id)) => {
                if let Some(region) = model.regions.get_mut(id) {
                    model::add(&mut region.used, holder);
                }
                *id
            }
            (Ok(registration), Registered::New) => {
                let pin = host.last_pin();
                let Some(truth) = host.truth(pin, ua) else {
                    return Err("registered where nothing is".to_owned());
                };
                ensure!(Arc::strong_count(&token) == 2, "a new region does not keep its memory");
                model.insert(registration.range(), truth, Some(pin), holder)
            }
            (Err(error), Registered::Refused(kind)) => {
                same!(Refused::of(error), *kind, "refused registration");
                same!(error.errno().raw(), kind.errno(), "its error number");
                ensure!(!error.to_string().is_empty(), "an error without a text");
                if *kind == Refused::Pin && failure == Some(Failure::TooFew) && host.can_pin(ua, bytes) {
                    let mut told = host.take_unpinned();
                    let last = told.pop().map(|last| (last.pin, last.dirty));
                    same!(
                        last,
                        Some((host.last_pin(), Vec::new())),
                        "what is unpinned of a pin that fell short"
                    );
                    model.settle(host, told)?;
                }
                if let prereg::RegisterError::Overlap { range, with } = error {
                    ensure!(
                        range.intersects(*with) && model.exactly(*with).is_some(),
                        "{with} is not in the way"
                    );
                }
                return Ok(());
            }
            _ => return Err(format!("registered: got {got:x?}, want {want:?}")),
        };
        let Ok(real) = got else { return Ok(()) };
        self.claimed(real, index, id, holder, ua, bytes)
    }

    /// Checks a registration just made, and keeps it.
    fn claimed(
        &mut self,
        real: Registration,
        space: usize,
        id: u64,
        holder: Holder,
        ua: u64,
        bytes: u64,
    ) -> Checked {
        same!((real.ua().raw(), real.bytes(), real.holder()), (ua, bytes, holder), "the registration");
        same!(real.pages(), bytes / self.page(), "its pages");
        if let Some(region) = self.spaces[space].model.regions.get(&id) {
            same!(real.largest_page(), region.largest, "its largest page");
        }
        self.claims.push(Claim { real, space, id, holder });
        Ok(())
    }

    pub(super) fn register_device(&mut self, op: Op) -> Checked {
        let Some(index) = self.open_space(op.a) else { return Ok(()) };
        let (ua, bytes) = self.wanted(index, op);
        let mut random = op.choices();
        let host = match random.below(8) {
            0 => random.next(),
            1 => (1 << 40) + random.below(self.page()),
            2 => u64::MAX - bytes,
            3 => (1 << 62) + (random.below(1 << 20) << 21),
            _ => (1 << 40) + (random.below(64) << 21),
        };
        self.trace.push(format!("space {index}: register device {ua:#x} + {bytes:#x} at {host:#x}"));
        let super::Space { real, model, .. } = &mut self.spaces[index];
        let Some(real) = real else { return Ok(()) };
        let want = match model.range(ua, bytes) {
            _ if host.checked_add(bytes).is_none() => Registered::Refused(Refused::Wraps),
            Err(refused) => Registered::Refused(refused),
            // A device region of 2^52 pages is one run, which the model would walk through.
            Ok(range) if range.pages(self.case.granule) > 1 << 16 => return Ok(()),
            Ok(range) => {
                model.reap();
                model.register(range, Wish::New)
            }
        };
        match (real.register_device(UserAddr::new(ua), bytes, HostAddr::new(host)), want) {
            (Ok(real), Registered::New) => {
                let truth = Truth::Device { ua, host };
                let id = model.insert(real.range(), truth, None, Holder::default());
                self.claimed(real, index, id, Holder::default(), ua, bytes)
            }
            (Err(error), Registered::Refused(kind)) => {
                same!((Refused::of(&error), error.errno().raw()), (kind, 22), "refused device");
                Ok(())
            }
            (got, want) => Err(format!("device registered: got {got:x?}, want {want:?}")),
        }
    }

    pub(super) fn share(&mut self, op: Op) -> Checked {
        let Some(index) = self.open_space(op.a) else { return Ok(()) };
        let ranges: Vec<_> = self.spaces[index].model.regions.values().map(|region| region.range).collect();
        let (ua, bytes) = match nth(&ranges, op.b) {
            Some(nth) if op.c % 4 != 0 => (ranges[nth].first().raw(), ranges[nth].bytes()),
            _ => self.wanted(index, op),
        };
        let holder = holder(op.c >> 8);
        self.trace.push(format!("space {index}: share {ua:#x} + {bytes:#x} for {holder}"));
        let super::Space { real, model, .. } = &mut self.spaces[index];
        let Some(real) = real else { return Ok(()) };
        model.reap();
        let want = model.range(ua, bytes).ok().and_then(|range| model.exactly(range));
        let at = UserAddr::new(ua);
        let plain = holder == Holder::default();
        let got = if plain { real.share(at, bytes) } else { real.share_for(at, bytes, holder) };
        match (got, want) {
            (None, None) => Ok(()),
            (Some(real), Some(id)) => {
                if let Some(region) = model.regions.get_mut(&id) {
                    model::add(&mut region.used, holder);
                }
                self.claimed(real, index, id, holder, ua, bytes)
            }
            (got, want) => Err(format!("shared: got {got:?}, want {want:?}")),
        }
    }

    /// The model's result of releasing claim `claim`: success, live mappings, or a dropped space.
    fn give_up(&mut self, claim: &Claim) -> Result<(), Option<u64>> {
        let model = &mut self.spaces[claim.space].model;
        model.reap();
        let Some(region) = model.regions.get(&claim.id).filter(|_| !model.closed) else { return Err(None) };
        let last = region.used.values().sum::<u64>() == 1;
        if last && region.mappings() > 0 {
            return Err(Some(region.mappings()));
        }
        let taken = model.disclaim(claim.id, claim.holder);
        model.reap();
        if taken { Ok(()) } else { Err(None) }
    }

    /// Compares a refusal with the model.
    fn refused(&self, error: &UnregisterError, claim: (usize, u64), want: Option<u64>) -> Checked {
        same!(error.mapped(), want.unwrap_or(0), "mappings in the way");
        same!(
            error.errno().raw(),
            if want.is_some() { 16 } else { 2 },
            "error number of a refused unregister"
        );
        let model = &self.spaces[claim.0].model;
        let held: Vec<_> = error.holders().iter().map(|held| (held.holder, held.count)).collect();
        let none = model::ByHolder::new();
        let holders =
            model.regions.get(&claim.1).filter(|_| want.is_some()).map_or(&none, |region| &region.mapped);
        same!(
            held,
            holders.iter().map(|(&holder, &count)| (holder, count)).collect::<Vec<_>>(),
            "their holders"
        );
        ensure!(!error.to_string().is_empty(), "a refusal without a text");
        Ok(())
    }

    pub(super) fn unregister(&mut self, op: Op) -> Checked {
        let Some(index) = nth(&self.claims, op.a) else { return Ok(()) };
        let claim = self.claims.swap_remove(index);
        self.trace.push(format!("space {}: unregister {}", claim.space, claim.real.range()));
        let want = self.give_up(&claim);
        let Claim { real, space, id, holder } = claim;
        match (real.unregister(), want) {
            (Ok(()), Ok(())) => Ok(()),
            (Err(error), Err(want)) => {
                self.refused(&error, (space, id), want)?;
                self.claims.push(Claim { real: error.into_inner(), space, id, holder });
                Ok(())
            }
            (got, want) => Err(format!("unregistered: got {got:?}, want {want:?}")),
        }
    }

    pub(super) fn unregister_many(&mut self, op: Op) -> Checked {
        let mut random = op.choices();
        let most = if op.c % 4 == 0 { self.claims.len() as u64 } else { 6 };
        let mut claims = Vec::new();
        for _ in 0..random.below(most + 1) {
            let Some(index) = nth(&self.claims, random.next() as u16) else { break };
            claims.push(self.claims.swap_remove(index));
        }
        if random.one_in(2) {
            claims.sort_by_key(|claim| claim.space);
        }
        let named: Vec<_> =
            claims.iter().map(|claim| format!("{}: {}", claim.space, claim.real.range())).collect();
        self.trace.push(format!("unregister many {named:?}"));
        let wanted: Vec<_> = claims.iter().map(|claim| self.give_up(claim)).collect();
        let parts = claims.into_iter().map(|claim| ((claim.space, claim.id, claim.holder), claim.real));
        let (whose, reals): (Vec<_>, Vec<_>) = parts.unzip();
        let refused = Registration::unregister_many(reals);
        let wanted =
            whose.into_iter().zip(wanted).filter_map(|(whose, want)| want.err().map(|want| (whose, want)));
        let wanted: Vec<_> = wanted.collect();
        same!(refused.len(), wanted.len(), "how many of them are refused");
        for (error, ((space, id, holder), want)) in refused.into_iter().zip(wanted) {
            self.refused(&error, (space, id), want)?;
            let real = error.into_inner();
            if let Some(region) = self.spaces[space].model.regions.get(&id) {
                same!(real.range(), region.range, "the refused one");
            }
            same!(real.holder(), holder, "whose the refused one is");
            self.claims.push(Claim { real, space, id, holder });
        }
        Ok(())
    }

    /// Takes a claim off in the model, mapped or not. Whether the region still drains.
    fn disclaim(&mut self, claim: &Claim) -> bool {
        let model = &mut self.spaces[claim.space].model;
        model.reap();
        let there = model.disclaim(claim.id, claim.holder);
        model.reap();
        there && model.regions.get(&claim.id).is_some_and(model::Region::is_draining)
    }

    pub(super) fn drop_registration(&mut self, op: Op) -> Checked {
        let Some(index) = nth(&self.claims, op.a) else { return Ok(()) };
        let claim = self.claims.swap_remove(index);
        self.trace.push(format!("space {}: drop registration of {}", claim.space, claim.real.range()));
        let _ = self.disclaim(&claim);
        drop(claim.real);
        Ok(())
    }

    pub(super) fn drain(&mut self, op: Op) -> Checked {
        let Some(index) = nth(&self.claims, op.a) else { return Ok(()) };
        let claim = self.claims.swap_remove(index);
        self.trace.push(format!("space {}: drain {}", claim.space, claim.real.range()));
        let waiting = self.disclaim(&claim);
        let Claim { real, space, id, .. } = claim;
        if !waiting && op.c % 4 == 0 {
            real.unregister_when_idle();
            return Ok(());
        }
        self.drains.push(Drain { real: real.drain(), space, id, waiting });
        Ok(())
    }

    /// Whether a drain is done in the model. Asking releases idle regions.
    fn is_done(&mut self, index: usize) -> bool {
        let Drain { space, id, waiting, .. } = self.drains[index];
        if !waiting {
            return true;
        }
        let model = &mut self.spaces[space].model;
        model.reap();
        !model.regions.get(&id).is_some_and(model::Region::is_draining)
    }

    pub(super) fn ask_draining(&mut self, op: Op) -> Checked {
        let Some(index) = nth(&self.drains, op.a) else { return Ok(()) };
        self.trace.push(format!("ask draining {index}"));
        let want = self.is_done(index);
        same!(self.drains[index].real.is_done(), want, "whether the drain is done");
        Ok(())
    }

    pub(super) fn end_draining(&mut self, op: Op) -> Checked {
        let Some(index) = nth(&self.drains, op.a) else { return Ok(()) };
        self.trace.push(format!("end draining {index}"));
        // Waiting for what is not done would never return.
        let wait = op.c % 2 == 0;
        if wait {
            self.ask_draining(op)?;
        }
        let done = wait && self.is_done(index);
        let drain = self.drains.swap_remove(index);
        if done {
            drain.real.wait();
        }
        Ok(())
    }

    pub(super) fn ask_registration(&mut self, op: Op) -> Checked {
        let Some(index) = nth(&self.claims, op.a) else { return Ok(()) };
        let claim = &self.claims[index];
        let granule = self.case.granule;
        let model = &self.spaces[claim.space].model;
        let region = model.regions.get(&claim.id);
        let state = claim.real.state();
        let Some(region) = region else {
            ensure!(state.is_none(), "a registration of a gone region knows {state:?}");
            return Ok(());
        };
        match state {
            Some(state) => self.same_region(&state, region)?,
            None => ensure!(region.is_releasable(), "{} is released", region.range),
        }
        if region.is_releasable() {
            return Ok(());
        }
        let mut seen = Vec::new();
        claim.real.visit_runs(|ua, host, bytes| seen.push((ua.raw(), host.raw(), bytes)));
        let (first, bytes) = (region.range.first().raw(), region.range.bytes());
        let mut at = first;
        let mut wanted = Vec::new();
        for (host, length) in runs(&region.truth, granule, first, bytes) {
            wanted.push((at, host, length));
            at = at.wrapping_add(length);
        }
        same!(seen, wanted, "the runs of {}", region.range);
        let mut random = op.choices();
        let from = random.below(bytes);
        let part = 1 + random.below(bytes - from);
        let got = claim.real.largest_page_in(UserAddr::new(first + from), part).map(prereg::PageShift::get);
        same!(
            got,
            Some(largest_shift(&region.truth, granule, first + from, part)),
            "the largest page of a part"
        );
        let past = claim.real.largest_page_in(UserAddr::new(first + from), bytes - from + 1);
        ensure!(past.is_none(), "a part that is not inside has a largest page");
        Ok(())
    }

    pub(super) fn crowd(&mut self, op: Op) -> Checked {
        if self.case.aligned {
            return self.register(op, Wish::Any);
        }
        let Some(index) = self.open_space(op.a) else { return Ok(()) };
        // Sometimes more than there are slots in the first arrays of counts.
        let many = match op.c / 8 % 4 {
            _ if self.case.small => 4,
            0 | 1 => 1 + u64::from(op.c / 32) % 64,
            _ => CROWD - u64::from(op.c / 32) % 64,
        };
        let spots = self.spaces[index].host.spots()[ORDINARY..].to_vec();
        for number in 0..many {
            let spot = spots[((u64::from(op.b) + number) % CROWD) as usize];
            self.register_range(index, spot.ua, self.page(), Wish::Any, holder(0), None, None)?;
            self.settle()?;
            // By translators that have seen the last snapshot and by some that have not.
            let reader = nth(&self.readers, number as u16).filter(|&at| self.readers[at].space == index);
            if let Some(reader) = reader.filter(|_| number % 4 == 0) {
                self.map_at(reader, UserAddr::new(spot.ua), self.case.granule.shift(), false)?;
            }
        }
        Ok(())
    }

    pub(super) fn churn(&mut self, op: Op) -> Checked {
        let Some(index) = self.open_space(op.a) else { return Ok(()) };
        let many = if self.case.small { 3 } else { 1 + u64::from(op.c) % 96 };
        let (ua, bytes) = self.wanted(index, Op { c: 0, ..op });
        for _ in 0..many {
            let before = self.claims.len();
            self.register_range(index, ua, bytes, Wish::Any, holder(0), None, None)?;
            if self.claims.len() > before {
                self.unregister(Op { a: before as u16, ..op })?;
            }
            self.settle()?;
        }
        Ok(())
    }
}
