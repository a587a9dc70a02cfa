//! Random requests, hypercalls and registrations beside the reference model.
//!
//! After every step the visible state must equal the model's: a region's `mapped` is the number of entries that map it plus
//! one, regions and tables are charged, each registered page is pinned once, and every entry has a pinned address of the user's
//! page.

use std::collections::BTreeMap;

use prereg::{
    Access, BusAddr, Errno, Granule, GuestAddr, MapError, PageShift, Registration, Translator, UserAddr,
};
use prereg_iommu::container::Container;
use prereg_iommu::{Geometry, HReturn, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Rules, Tce};
use proptest::prelude::*;

use crate::fixture::{A, Asked, K4, Process, User, group, number};
use crate::reference::{DEFAULT_ENTRIES, ENTRIES, HOLE, Model, Modelled, Range, SMALL, Window};

/// Pages of memory.
const PAGES: u64 = 24;
const CONTAINERS: usize = 2;
const LIOBN: u64 = 0x8000_0000;

#[derive(Clone, Debug)]
enum Step {
    Register {
        container: usize,
        first: u64,
        pages: u64,
    },
    Unregister {
        container: usize,
        first: u64,
        pages: u64,
    },
    Map {
        container: usize,
        page: u64,
        at: u64,
        pages: u64,
        access: Option<Access>,
    },
    Unmap {
        container: usize,
        at: u64,
        pages: u64,
    },
    Create {
        container: usize,
        shift: u32,
    },
    Remove {
        container: usize,
        slot: u64,
    },
    Close {
        container: usize,
    },
    /// A registration without a container.
    Hold {
        first: u64,
        pages: u64,
    },
    LetGo {
        index: usize,
    },
    /// The guest writes page `page` (or nothing) into entry `at` of the first container's first window.
    Put {
        at: u64,
        page: Option<u64>,
    },
    Stuff {
        at: u64,
        pages: u64,
    },
}

/// The second window's first page on the bus.
const HIGH: u64 = (1 << 59) / K4;

struct Machine<'p> {
    process: &'p Process,
    users: Vec<User<'p>>,
    held: Vec<Registration>,
    calls: Hypercalls,
    translator: Translator,
}

fn steps() -> impl Strategy<Value = Step> {
    let container = 0..CONTAINERS;
    let range = (0..PAGES, 0..8u64);
    let at = prop_oneof![4 => 0..12u64, 1 => ENTRIES - 3..ENTRIES + 2, 2 => HIGH..HIGH + 6, 1 => Just(DEFAULT_ENTRIES - 2)];
    let access = prop_oneof![
        6 => Just(Some(Access::ReadWrite)),
        2 => Just(Some(Access::Read)),
        1 => Just(None)
    ];
    prop_oneof![
        5 => (container.clone(), range.clone())
            .prop_map(|(container, (first, pages))| Step::Register { container, first, pages }),
        5 => (container.clone(), range.clone())
            .prop_map(|(container, (first, pages))| Step::Unregister { container, first, pages }),
        8 => (container.clone(), 0..PAGES, at.clone(), 0..5u64, access)
            .prop_map(|(container, page, at, pages, access)| Step::Map { container, page, at, pages, access }),
        4 => (container.clone(), at, 0..6u64)
            .prop_map(|(container, at, pages)| Step::Unmap { container, at, pages }),
        2 => (container.clone(), prop_oneof![3 => Just(12u32), 1 => Just(13)])
            .prop_map(|(container, shift)| Step::Create { container, shift }),
        2 => (container.clone(), 0..3u64).prop_map(|(container, slot)| Step::Remove { container, slot }),
        1 => container.prop_map(|container| Step::Close { container }),
        2 => range.prop_map(|(first, pages)| Step::Hold { first, pages }),
        2 => (0..4usize).prop_map(|index| Step::LetGo { index }),
        5 => (0..12u64, proptest::option::of(0..PAGES)).prop_map(|(at, page)| Step::Put { at, page }),
        1 => (0..12u64, 0..8u64).prop_map(|(at, pages)| Step::Stuff { at, pages }),
    ]
}

/// Makes ranges that were registered before more likely.
fn aim(step: Step, model: &Model, round: usize) -> Step {
    let known: Vec<Range> = model.regions.keys().copied().collect();
    let pick = |seed: u64| known.get((seed as usize + round) % known.len().max(1)).copied();
    match step {
        Step::Unregister { container, first, pages } if pages > 1 => {
            let (first, pages) = pick(first).unwrap_or((first, pages));
            Step::Unregister { container, first, pages }
        }
        Step::Register { container, first, pages } if pages > 4 => {
            let (first, pages) = pick(first).unwrap_or((first, pages));
            Step::Register { container, first, pages }
        }
        step => step,
    }
}

impl Machine<'_> {
    fn ua(page: u64) -> UserAddr {
        UserAddr::new(A + page * K4)
    }

    /// Creates the guest's table anew over the first window of the first container, as a VMM does after a change.
    fn attach(&mut self) {
        self.calls.remove(Liobn::new(LIOBN as u32));
        let table =
            self.users[0].container.windows().find(|(slot, _)| *slot == 0).map(|(_, table)| table.clone());
        let Some(table) = table else { return };
        let entries = table.geometry().entries().min(ENTRIES);
        let shape = Geometry::for_guest(BusAddr::new(0), PageShift::K4, entries).unwrap();
        self.calls.create(Liobn::new(LIOBN as u32), shape).unwrap().attach(table).unwrap();
    }

    fn hypercall(&mut self, call: Hypercall) -> HReturn {
        let no_lists = |_: GuestAddr, _: &mut [u64]| Err(NotRam);
        self.translator.refresh();
        self.calls.fast(&mut self.translator, &no_lists, call).code
    }

    /// Performs `step` on both sides; returns both results.
    fn perform(&mut self, step: &Step, model: &mut Model) -> (Asked, Asked) {
        match *step {
            Step::Register { container, first, pages } => {
                let modelled = &mut model.containers[container];
                modelled.bound = true;
                let expected = if modelled.registered.contains(&(first, pages)) {
                    Err(Errno::EBUSY)
                } else {
                    model.claim(first, pages)
                };
                if expected.is_ok() {
                    model.containers[container].registered.insert((first, pages));
                    model.containers[container].enabled = true;
                }
                (self.users[container].register(A + first * K4, pages), expected)
            }
            Step::Unregister { container, first, pages } => {
                let modelled = &model.containers[container];
                let expected = if !modelled.bound {
                    Err(Errno::EPERM)
                } else if !modelled.registered.contains(&(first, pages)) {
                    Err(Errno::ENOENT)
                } else {
                    model.give_up((first, pages))
                };
                if expected.is_ok() {
                    model.containers[container].registered.remove(&(first, pages));
                }
                (self.users[container].unregister(A + first * K4, pages), expected)
            }
            Step::Map { container, page, at, pages, access } => {
                let expected = model.map(container, page, at, pages, access);
                (self.users[container].map_as(access, A + page * K4, at * K4, pages * K4), expected)
            }
            Step::Unmap { container, at, pages } => {
                let expected = model.unmap(container, at, pages);
                (self.users[container].unmap(at * K4, pages * K4), expected)
            }
            Step::Create { container, shift } => {
                let modelled = &mut model.containers[container];
                modelled.bound = true;
                modelled.make_default();
                let expected = match modelled.windows.iter().position(Option::is_none) {
                    None => Err(Errno::ENOSPC),
                    Some(_) if shift != 12 => Err(Errno::EINVAL),
                    Some(slot) => {
                        let start = if slot == 0 { 0 } else { HIGH };
                        let shows = BTreeMap::new();
                        modelled.windows[slot] =
                            Some(Window { start, entries: ENTRIES, charge: SMALL, shows });
                        Ok(())
                    }
                };
                (self.users[container].create(shift, ENTRIES * K4, 1).map(drop), expected)
            }
            Step::Remove { container, slot } => {
                let modelled = &mut model.containers[container];
                modelled.bound = true;
                let start = if slot == 0 { 0 } else { HIGH };
                let found = modelled.windows.iter().position(|window| {
                    window.as_ref().is_some_and(|window| window.start == start && slot < 2)
                });
                let expected = if slot == 0 && std::mem::take(&mut modelled.pending) {
                    Ok(())
                } else {
                    found.map(|slot| modelled.windows[slot] = None).ok_or(Errno::EINVAL)
                };
                // The third is the start of no window.
                let asked = if slot < 2 { start * K4 } else { HIGH * K4 + K4 };
                (self.users[container].remove(asked), expected)
            }
            Step::Close { container } => {
                let old = std::mem::replace(&mut model.containers[container], Modelled::new());
                for range in &old.registered {
                    if let Some(region) = model.regions.get_mut(range) {
                        region.owners -= 1;
                    }
                }
                if container == 0 {
                    self.calls.remove(Liobn::new(LIOBN as u32));
                }
                // A closed container's group is free for the container that replaces it.
                let user = &mut self.users[container];
                user.container = Container::new(container as u64 + 1);
                user.container.attach(group(container as u32)).unwrap();
                user.container.set_iommu(prereg_iommu::container::Version::V2).unwrap();
                (Ok(()), Ok(()))
            }
            Step::Hold { first, pages } => {
                let expected = model.claim(first, pages);
                let memory = self.process.host.range(A + first * K4, pages * K4);
                let answer = self.process.owner.space().register(&memory);
                let answer = answer.map(|held| self.held.push(held)).map_err(|error| error.errno());
                if expected.is_ok() {
                    model.held.push((first, pages));
                }
                (answer, expected)
            }
            Step::LetGo { index } => {
                if index >= self.held.len() {
                    return (Ok(()), Ok(()));
                }
                let expected = model.give_up(model.held[index]);
                let answer = match self.held.remove(index).unregister() {
                    Ok(()) => {
                        model.held.remove(index);
                        Ok(())
                    }
                    Err(kept) => {
                        let errno = kept.errno();
                        self.held.insert(index, kept.into_inner());
                        Err(errno)
                    }
                };
                (answer, expected)
            }
            Step::Put { at, page } => {
                let admitted = page.map_or(Ok(()), |page| model.admits(page));
                let Some(window) = model.containers[0].windows[0].as_mut() else { return (Ok(()), Ok(())) };
                let tce = Tce::new(page.map_or(0, |page| (page * K4) | 3));
                let code = self.hypercall(Hypercall::Put { liobn: LIOBN, ioba: BusAddr::new(at * K4), tce });
                let expected = if at >= window.entries.min(ENTRIES) {
                    HReturn::PARAMETER
                } else if admitted.is_ok() {
                    match page {
                        Some(page) => window.shows.insert(at, page),
                        None => window.shows.remove(&at),
                    };
                    HReturn::SUCCESS
                } else {
                    HReturn::TOO_HARD
                };
                assert_eq!(code, expected, "{step:?}");
                (Ok(()), Ok(()))
            }
            Step::Stuff { at, pages } => {
                let Some(window) = model.containers[0].windows[0].as_mut() else { return (Ok(()), Ok(())) };
                let (ioba, tce) = (BusAddr::new(at * K4), Tce::new(0));
                let code = self.hypercall(Hypercall::Stuff { liobn: LIOBN, ioba, tce, pages });
                assert_eq!(code, HReturn::SUCCESS);
                window.shows.retain(|index, _| *index < at || *index >= at + pages);
                (Ok(()), Ok(()))
            }
        }
    }

    fn check(&self, model: &Model) {
        let state = self.process.owner.space().snapshot();
        let seen: Vec<(Range, u64, u64)> = state
            .regions
            .iter()
            .map(|region| (((region.ua.raw() - A) / K4, region.pages), region.used, region.kernel_mapped()))
            .collect();
        let expected: Vec<(Range, u64, u64)> = model
            .regions
            .iter()
            .map(|(range, region)| (*range, region.owners, 1 + model.mapped(*range)))
            .collect();
        assert_eq!(seen, expected, "start and pages, used, mapped");
        assert_eq!(self.process.locked(), model.charge(), "regions and tables are charged");
        let mut translator = self.process.owner.space().translator();
        let pages: u64 = model.regions.keys().map(|range| range.1).sum();
        assert_eq!(self.process.host.pinned_pages(), pages, "each registered page is pinned once");
        for (user, modelled) in self.users.iter().zip(&model.containers) {
            for (slot, table) in user.container.windows() {
                let window = modelled.windows[slot].as_ref().expect("a window of the model");
                let mut shown = BTreeMap::new();
                table.for_each_live(0, u64::MAX, |index, _| {
                    let ua = table.view(index).expect("a live entry").ua;
                    let page = (ua.raw() - Self::ua(0).raw()) / K4;
                    match table.hold_mapping(&mut translator, index) {
                        Ok(taken) => {
                            let host = taken.map(|(mapping, _)| mapping.hpa());
                            assert_eq!(host, self.process.host.backs(ua.raw()), "the page's own address");
                        }
                        Err(error) => {
                            assert_eq!(error, MapError::Closing { ua });
                            let range = model.region_of(page).expect("a region of the model");
                            assert_eq!(
                                model.regions[&range].owners, 0,
                                "only a region without owners is closing"
                            );
                        }
                    }
                    assert_eq!(self.process.host.pin_count(ua.raw()), 1, "what is mapped is pinned");
                    shown.insert(index, page);
                });
                assert_eq!(shown, window.shows, "the entries of window {slot}");
            }
        }
    }
}

fn run(steps: &[Step]) {
    let process = Process::new();
    process.host.unmap(A + HOLE * K4, (64 - HOLE) * K4);
    let mut slots = MemorySlots::new();
    slots.insert(GuestAddr::new(0), UserAddr::new(A), PAGES * K4).unwrap();
    let users: Vec<User<'_>> = (0..CONTAINERS).map(|group| User::new(&process, group as u32)).collect();
    let translator = process.owner.space().translator();
    let calls = Hypercalls::new(Rules::Kvm, slots);
    let mut machine = Machine { process: &process, users, held: Vec::new(), calls, translator };
    let mut model = Model::new(CONTAINERS);
    for (round, step) in steps.iter().enumerate() {
        let step = aim(step.clone(), &model, round);
        machine.attach();
        let (answer, expected) = machine.perform(&step, &mut model);
        assert_eq!(answer, expected, "{step:?}");
        machine.attach();
        model.sweep();
        machine.process.owner.space().reap();
        machine.check(&model);
    }
    let Machine { users, held, calls, translator, .. } = machine;
    drop((users, held, calls, translator));
    process.host.assert_clean();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: if cfg!(miri) { 1 } else { 300 }, ..ProptestConfig::default() })]

    #[test]
    fn containers_hypercalls_and_regions_agree_with_the_model(steps in proptest::collection::vec(steps(), 1..80)) {
        run(&steps);
    }
}

#[test]
fn a_container_that_goes_leaves_what_a_hypercall_mapped_elsewhere() {
    assert_eq!(Granule::K4.bytes(), K4);
    run(&[
        Step::Register { container: 1, first: 0, pages: 4 },
        Step::Register { container: 0, first: 8, pages: 2 },
        Step::Map { container: 0, page: 8, at: 0, pages: 1, access: Some(Access::Read) },
        Step::Put { at: 3, page: Some(1) },
        Step::Close { container: 1 },
        Step::Put { at: 4, page: Some(2) },
        Step::Put { at: 3, page: None },
        Step::Put { at: 4, page: Some(2) },
    ]);
    assert_eq!(number(Ok(())), Ok(()));
}
