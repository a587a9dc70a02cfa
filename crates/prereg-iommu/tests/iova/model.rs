//! The map beside a list that is searched linearly.

use proptest::prelude::*;

use prereg::{Access, Errno};
use prereg_iommu::iova::{Backing, HeldRange, HostSegment, IovaLimits, Unmapping};

use crate::fixture::{BASE, Fixture, PAGE, PAGES, iova, local};

#[derive(Clone, Debug)]
enum Step {
    Map { at: u64, pages: u64, to: Option<u64>, access: Access },
    Unmap { at: u64, pages: u64 },
    UnmapAll,
    Hold { at: u64, pages: u64, access: Access },
    Drop { index: usize },
}

/// I/O pages that the steps use.
const ROOM: u64 = 24;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let access = prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::ReadWrite)];
    let length = prop_oneof![4 => Just(1u64), 3 => 1..4u64, 1 => Just(0), 1 => 1..ROOM];
    let map = (0..ROOM, length.clone(), proptest::option::weighted(0.9, 0..PAGES + 2), access.clone())
        .prop_map(|(at, pages, to, access)| Step::Map { at, pages, to, access });
    let unmap = (0..ROOM, length.clone()).prop_map(|(at, pages)| Step::Unmap { at, pages });
    let hold = (0..ROOM, length, access).prop_map(|(at, pages, access)| Step::Hold { at, pages, access });
    let drop = (0..8usize).prop_map(|index| Step::Drop { index });
    let step = prop_oneof![6 => map, 4 => unmap, 1 => Just(Step::UnmapAll), 5 => hold, 4 => drop];
    proptest::collection::vec(step, 1..60)
}

#[derive(Clone, Debug)]
struct Mapping {
    id: u64,
    at: u64,
    pages: u64,
    to: Option<u64>,
    access: Access,
}

impl Mapping {
    fn has(&self, page: u64) -> bool {
        (self.at..self.at + self.pages).contains(&page)
    }
    fn meets(&self, at: u64, pages: u64) -> bool {
        self.at < at + pages && at < self.at + self.pages
    }
    fn is_inside(&self, at: u64, pages: u64) -> bool {
        at <= self.at && self.at + self.pages <= at + pages
    }
}

#[derive(Default)]
struct Model {
    live: Vec<Mapping>,
    /// Unmapped ones that a hold may keep.
    closing: Vec<Mapping>,
    /// The mappings of each hold.
    holds: Vec<Vec<u64>>,
    next: u64,
    /// Expected calls of `on_drained`.
    count: u64,
}

impl Model {
    fn inside(&self, id: u64) -> usize {
        self.holds.iter().filter(|hold| hold.contains(&id)).count()
    }

    fn map(
        &mut self,
        at: u64,
        pages: u64,
        to: Option<u64>,
        access: Access,
        limit: usize,
    ) -> Result<(), Errno> {
        if pages == 0 {
            return Err(Errno::EINVAL);
        }
        if self.live.iter().any(|mapping| mapping.meets(at, pages)) {
            return Err(Errno::EEXIST);
        }
        if self.live.len() >= limit {
            return Err(Errno::ENOSPC);
        }
        if to.is_some_and(|to| to + pages > PAGES) {
            return Err(Errno::EFAULT);
        }
        self.next += 1;
        self.live.push(Mapping { id: self.next, at, pages, to, access });
        Ok(())
    }

    fn unmap(&mut self, at: u64, pages: u64) -> Result<Vec<u64>, Errno> {
        if pages == 0 {
            return Err(Errno::EINVAL);
        }
        if self.live.iter().any(|mapping| mapping.meets(at, pages) && !mapping.is_inside(at, pages)) {
            return Err(Errno::EINVAL);
        }
        let (gone, live) = self.live.drain(..).partition(|mapping| mapping.is_inside(at, pages));
        self.live = live;
        let ids = gone.iter().map(|mapping: &Mapping| mapping.id).collect();
        self.closing.extend(gone);
        self.settle();
        Ok(ids)
    }

    fn settle(&mut self) {
        let Self { closing, holds, .. } = self;
        closing.retain(|mapping| holds.iter().any(|hold| hold.contains(&mapping.id)));
    }

    /// The mappings of a hold, and the user page behind each of its pages.
    fn hold(&mut self, at: u64, pages: u64, access: Access) -> Result<Vec<Option<u64>>, Errno> {
        if pages == 0 {
            return Err(Errno::EINVAL);
        }
        let mut ids = Vec::new();
        let mut behind = Vec::new();
        for page in at..at + pages {
            let Some(mapping) = self.live.iter().find(|mapping| mapping.has(page)) else {
                let closing = self.closing.iter().any(|mapping| mapping.has(page));
                return Err(if closing { Errno::ENXIO } else { Errno::EFAULT });
            };
            if mapping.access.bits() & access.bits() != access.bits() {
                return Err(Errno::EACCES);
            }
            behind.push(mapping.to.map(|to| to + (page - mapping.at)));
            if !ids.contains(&mapping.id) {
                ids.push(mapping.id);
            }
        }
        self.holds.push(ids);
        Ok(behind)
    }

    fn drop_hold(&mut self, index: usize) {
        let gone = self.holds.remove(index);
        let told = gone
            .iter()
            .filter(|&&id| self.closing.iter().any(|mapping| mapping.id == id) && self.inside(id) == 0);
        self.count += told.count() as u64;
        self.settle();
    }

    /// Units of the region.
    fn units(&self) -> u64 {
        self.live.iter().chain(&self.closing).filter(|mapping| mapping.to.is_some()).count() as u64
    }
}

fn user_pages(held: &HeldRange) -> Vec<Option<u64>> {
    let mut pages = Vec::new();
    for piece in held.host_segments() {
        match piece {
            HostSegment::Local { ua, bytes, .. } => {
                let first = (ua.raw() - BASE) / PAGE;
                pages.extend((first..first + bytes / PAGE).map(Some));
            }
            HostSegment::Remote { bytes, .. } => pages.extend((0..bytes / PAGE).map(|_| None)),
            other => panic!("{other:?}"),
        }
    }
    pages
}

fn play(steps: Vec<Step>) -> Result<(), TestCaseError> {
    const LIMIT: usize = 9;
    let fixture = Fixture::with(IovaLimits { mappings: LIMIT as u32, ..IovaLimits::default() });
    let mut model = Model::default();
    let mut holds: Vec<HeldRange> = Vec::new();
    let mut unmappings: Vec<(Vec<u64>, Unmapping)> = Vec::new();
    for step in steps {
        match step {
            Step::Map { at, pages, to, access } => {
                let expected = model.map(at, pages, to, access, LIMIT);
                let backing = to.map_or(Backing::Remote, local);
                let got = fixture.map.map(iova(at), pages * PAGE, backing, access);
                prop_assert_eq!(got.map_err(|error| error.errno()), expected);
            }
            Step::Unmap { at, pages } => {
                let expected = model.unmap(at, pages);
                match fixture.map.unmap(iova(at), pages * PAGE) {
                    Ok(unmapping) => {
                        let ids = expected.unwrap();
                        prop_assert_eq!(unmapping.mappings(), ids.len() as u64);
                        unmappings.push((ids, unmapping));
                    }
                    Err(error) => prop_assert_eq!(Err(error.errno()), expected.map(|_| ())),
                }
            }
            Step::UnmapAll => {
                let ids = model.unmap(0, 1 << 50).unwrap();
                unmappings.push((ids, fixture.map.unmap_all()));
            }
            Step::Hold { at, pages, access } => {
                let expected = model.hold(at, pages, access);
                match fixture.map.hold(iova(at), pages * PAGE, access) {
                    Ok(held) => {
                        prop_assert_eq!(user_pages(&held), expected.unwrap());
                        holds.push(held);
                    }
                    Err(error) => prop_assert_eq!(Err(error.errno()), expected.map(|_| ())),
                }
            }
            Step::Drop { index } => {
                if !holds.is_empty() {
                    let index = index % holds.len();
                    model.drop_hold(index);
                    drop(holds.remove(index));
                }
            }
        }
        prop_assert_eq!(fixture.mapped(), model.units());
        prop_assert_eq!(fixture.drains.count(), model.count);
        let state = fixture.map.snapshot();
        prop_assert_eq!(state.mappings, model.live.len() as u64);
        prop_assert_eq!(state.closing.len(), model.closing.len());
        let inside: usize = model.live.iter().map(|mapping| model.inside(mapping.id)).sum();
        prop_assert_eq!(state.accesses, inside as u64);
        for (ids, unmapping) in &unmappings {
            let waits = ids.iter().filter(|&&id| model.inside(id) > 0).count();
            prop_assert_eq!(unmapping.waiting().len(), waits);
            prop_assert_eq!(unmapping.is_done(), waits == 0);
        }
    }
    drop(holds);
    drop(fixture.map);
    prop_assert_eq!(fixture.registration.state().unwrap().mapped, 0);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: if cfg!(miri) { 2 } else { 512 },
        failure_persistence: None,
        ..ProptestConfig::default()
    })]
    #[test]
    fn it_does_what_the_list_does(steps in steps()) {
        play(steps)?;
    }
}
