//! The state of a space, compared with the model.

use prereg::{AddressKind, HolderTotal, HostAddr, RegionState, UserAddr};

use super::{Checked, Unit, World};
use crate::model::{ByHolder, Region, most_unreclaimed};
use crate::op::Op;
use crate::random::Random;

fn same_holders(shown: &[HolderTotal], model: &ByHolder, what: &str) -> Checked {
    let mut shown: Vec<_> = shown.iter().map(|held| (held.holder, held.count)).collect();
    shown.sort_unstable();
    let model: Vec<_> = model.iter().map(|(&holder, &count)| (holder, count)).collect();
    same!(shown, model, "{what}");
    Ok(())
}

impl World {
    pub(super) fn same_region(&self, shown: &RegionState, region: &Region) -> Checked {
        let range = region.range;
        let pages = range.pages(self.case.granule);
        same!(
            (shown.ua, shown.bytes, shown.pages),
            (range.first(), range.bytes(), pages),
            "the range of a region"
        );
        same!(shown.used, region.used.values().sum::<u64>(), "registrations of {range}");
        same!(shown.mapped, region.mappings(), "mappings of {range}");
        same!(shown.largest_page, region.largest, "the largest page of {range}");
        same!(shown.device, region.pin.is_none(), "whether {range} is a device's");
        same!(shown.draining, region.is_draining(), "whether {range} is draining");
        ensure!(
            shown.metadata_bytes <= 8 * pages + 64,
            "{range}: {} bytes for {pages} pages",
            shown.metadata_bytes
        );
        same_holders(&shown.registrations, &region.used, "holders of registrations")?;
        same_holders(&shown.mappings, &region.mapped, "holders of mappings")
    }

    /// Compares all that each space shows. Looking releases what is idle.
    pub(super) fn compare(&mut self) -> Checked {
        for index in 0..self.spaces.len() {
            let translators = self.readers_of(index);
            let space = &mut self.spaces[index];
            let (pinned, charged) = space.host.pinned_and_charged();
            let Some(real) = &space.real else {
                same!(
                    (pinned, charged),
                    (space.model.pinned_pages(), space.model.pinned_pages()),
                    "pinned and charged"
                );
                continue;
            };
            let shown = real.snapshot();
            space.model.reap();
            let told = space.host.take_unpinned();
            space.model.settle(&space.host, told)?;
            let pages = space.model.pinned_pages();
            let (pinned, charged) = space.host.pinned_and_charged();
            same!((pinned, charged), (pages, pages), "pages pinned and charged at the host");
            same!((shown.pinned_pages, shown.charged_pages), (pages, pages), "pages pinned and charged");
            same!((shown.pins, shown.unpins), (space.model.pins, space.model.unpins), "pins and unpins");
            same!(shown.translators, translators, "translators");
            space.most_regions = space.most_regions.max(shown.regions.len() as u64);
            let most = most_unreclaimed(translators, space.most_regions);
            ensure!(
                shown.retained_by.iter().all(|held| (1..=shown.unreclaimed).contains(&held.count)),
                "{} retired regions are kept, and these keep them: {:?}",
                shown.unreclaimed,
                shown.retained_by
            );
            ensure!(
                shown.unreclaimed <= most,
                "{} retired regions are kept, {most} at most",
                shown.unreclaimed
            );
            self.summary.unreclaimed = self.summary.unreclaimed.max(shown.unreclaimed);
            same!(
                real.is_preregistered(),
                space.model.regions.values().any(|r| !r.is_draining()),
                "anything registered"
            );
            same!(
                (real.granule(), real.address_kind(), real.backend()),
                (self.case.granule, AddressKind::Invented, "core-model"),
                "the back end"
            );
            same!(shown.regions.len(), space.model.regions.len(), "how many regions there are");
            let mut regions: Vec<_> = self.spaces[index].model.regions.values().collect();
            regions.sort_by_key(|region| region.range.first());
            shown
                .regions
                .iter()
                .zip(regions)
                .try_for_each(|(shown, region)| self.same_region(shown, region))?;
        }
        self.right_entries()?;
        self.alive()
    }

    /// Every mapping's region is pinned, and its address is what it was.
    fn alive(&mut self) -> Checked {
        for live in &self.lives {
            let space = &self.spaces[live.space];
            let region = space.model.regions.get(&live.id);
            let Some(region) = region else { return Err("a mapped region is released".to_owned()) };
            ensure!(
                region.pin.is_none_or(|pin| space.host.is_pinned(pin)),
                "{} is mapped, and not pinned",
                region.range
            );
            if let Unit::Page(mapping) = &live.unit {
                same!(
                    mapping.hpa().raw(),
                    region.truth.host(mapping.ua().raw()),
                    "the address of {}",
                    mapping.ua()
                );
            }
        }
        Ok(())
    }

    pub(super) fn find(&mut self, op: Op) -> Checked {
        let Some(index) = self.open_space(op.a) else { return Ok(()) };
        let mut random = op.choices();
        let ua = self.address(index, op.b, &mut random);
        let left =
            self.spaces[index].model.at(ua).map_or(1, |(_, region)| region.range.last().raw() - ua + 1);
        let bytes = match op.c >> 4 & 7 {
            0 => 0,
            1 => left + 1,
            2 => u64::MAX,
            3 => left,
            _ => 1 + random.below(left),
        };
        self.trace.push(format!("space {index}: find {ua:#x} + {bytes:#x}"));
        let super::Space { real, model, .. } = &self.spaces[index];
        let Some(real) = real else { return Ok(()) };
        let want = model.at(ua).map(|(_, region)| region);
        let want = want.filter(|region| region.range.holds(UserAddr::new(ua), bytes));
        match (real.find(UserAddr::new(ua), bytes), want) {
            (None, None) => Ok(()),
            (None, Some(region)) if region.is_releasable() => Ok(()),
            (Some(shown), Some(region)) => self.same_region(&shown, region),
            (got, want) => Err(format!("found: got {got:?}, want {want:?}")),
        }
    }

    pub(super) fn device_at(&mut self, op: Op) -> Checked {
        self.reap(op)?;
        let Some(index) = self.open_space(op.a) else { return Ok(()) };
        let super::Space { real, model, .. } = &self.spaces[index];
        let Some(real) = real else { return Ok(()) };
        let host_of = |region: &Region| (region.truth.host(region.range.first().raw()), region.range.bytes());
        let devices = || model.regions.values().filter(|region| region.pin.is_none()).map(host_of);
        let mut random: Random = op.choices();
        let count = devices().count() as u64;
        let at = devices().nth(random.below(count + 1) as usize);
        let (first, length) = at.unwrap_or((random.next() >> 1, 4096));
        let host = (first + random.below(length + 2)).wrapping_sub(1);
        let bytes = random.below(length + 2);
        // The newest of several.
        let covered = |(first, length): (u64, u64)| {
            let offset = host.checked_sub(first)?;
            (offset < length).then(|| bytes.min(length - offset))
        };
        let want = devices().rev().find_map(covered);
        let got = real.device_at(HostAddr::new(host), bytes);
        self.trace.push(format!("space {index}: device at {host:#x} + {bytes:#x}"));
        same!(got, want, "how much of {host:#x} + {bytes:#x} a device covers");
        Ok(())
    }

    pub(super) fn reap(&mut self, op: Op) -> Checked {
        let Some(index) = self.open_space(op.a) else { return Ok(()) };
        self.trace.push(format!("space {index}: reap"));
        let space = &mut self.spaces[index];
        if let Some(real) = &space.real {
            real.reap();
            space.model.reap();
        }
        self.settle()
    }
}
