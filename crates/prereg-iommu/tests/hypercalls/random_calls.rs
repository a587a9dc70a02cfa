//! Random calls beside a model of the two rule sets, written from docs/specification.md with maps.
//!
//! After every step the result, every guest-visible value, every hardware entry and every region's count must be the model's: a
//! region's `mapped` is 1 plus the live hardware entries in it.

use std::collections::BTreeMap;

use prereg::{BusAddr, Granule, GuestAddr, PageShift, Registration, UserAddr};
use prereg_iommu::{Hypercall, MemorySlots, Rules, Tce};
use proptest::prelude::*;

use crate::guest::*;

/// The window: 12 guest pages of 64 KiB.
const START: u64 = 0x20_0000;
const PAGE: u64 = 0x1_0000;
const SUB: u64 = 0x1000;
const ENTRIES: u64 = 12;

/// Registered ranges as offsets and lengths in memory of 16 guest pages: some contain whole guest pages, some end inside one,
/// two are adjacent inside one.
const PIECES: [(u64, u64); 4] =
    [(0, 0x3_0000), (0x3_0000, 0x1_8000), (0x4_8000, 0x2_8000), (0x8_0000, 0x4000)];

const OK: i64 = 0;
const PARAMETER: i64 = -4;
const TOO_HARD: i64 = 9999;

#[derive(Clone, Debug)]
enum Step {
    Register(usize),
    Unregister(usize),
    Call(Hypercall, Vec<u64>),
}

/// The state of the window and of the guest's memory.
#[derive(Default)]
struct Model {
    values: BTreeMap<u64, u64>,
    /// User page and permission by hardware entry.
    hardware: BTreeMap<u64, (u64, u64)>,
    registered: [bool; PIECES.len()],
}

impl Model {
    fn piece_of(&self, ua: u64) -> Option<usize> {
        (0..PIECES.len()).find(|&piece| {
            let (offset, bytes) = PIECES[piece];
            self.registered[piece] && (A + offset..A + offset + bytes).contains(&ua)
        })
    }

    /// The user address behind a guest address: the slot of the guest's memory, and one at 0 that holds half a guest page.
    fn behind(gpa: u64) -> Option<u64> {
        match gpa {
            0..0x8000 => Some(A + 0x8_0000 + gpa),
            _ if (G..G + RAM).contains(&gpa) => Some(A + (gpa - G)),
            _ => None,
        }
    }

    fn whole_page(gpa: u64) -> Option<u64> {
        let first = Self::behind(gpa)?;
        (Self::behind(gpa.checked_add(PAGE - 1)?)? == first + PAGE - 1).then_some(first)
    }

    fn store(&mut self, index: u64, value: u64) {
        self.values.remove(&index);
        if value != 0 {
            self.values.insert(index, value);
        }
    }

    fn clear(&mut self, index: u64) {
        for sub in index * 16..index * 16 + 16 {
            self.hardware.remove(&sub);
        }
    }

    /// Maps entry `index`. If a subpage is not registered: no change if it is the first, all cleared otherwise.
    fn map(&mut self, index: u64, ua: u64, permission: u64) -> bool {
        match (0..16).find(|sub| self.piece_of(ua + sub * SUB).is_none()) {
            None => {
                for sub in 0..16 {
                    self.hardware.insert(index * 16 + sub, (ua + sub * SUB, permission));
                }
                true
            }
            Some(0) => false,
            Some(_) => {
                self.clear(index);
                false
            }
        }
    }

    fn strict(ioba: u64, pages: u64) -> Option<u64> {
        let index = ioba.checked_sub(START)? / PAGE;
        (ioba % PAGE == 0 && index <= ENTRIES && pages <= ENTRIES - index).then_some(index)
    }

    fn rounded(ioba: u64) -> Option<u64> {
        ioba.checked_sub(START).map(|offset| offset / PAGE).filter(|&index| index < ENTRIES)
    }

    fn fast_valid(&self, value: u64) -> bool {
        let address = value & !3;
        value & 3 == 0
            || address % PAGE == 0 && Self::whole_page(address).is_some_and(|ua| self.piece_of(ua).is_some())
    }

    fn fast_write(&mut self, index: u64, value: u64) -> i64 {
        if value & 3 == 0 {
            self.clear(index);
        } else if !Self::whole_page(value & !3).is_some_and(|ua| self.map(index, ua, value & 3)) {
            return TOO_HARD;
        }
        self.store(index, value);
        OK
    }

    fn fast(&mut self, call: Hypercall, list: &[u64]) -> (i64, Option<u64>) {
        if call.liobn() != u64::from(LIOBN) {
            return (TOO_HARD, None);
        }
        let code = match call {
            Hypercall::Get { ioba, .. } => match Self::strict(ioba.raw(), 1) {
                Some(index) => return (OK, Some(self.values.get(&index).copied().unwrap_or(0))),
                None => PARAMETER,
            },
            Hypercall::Put { ioba, tce, .. } => match Self::strict(ioba.raw(), 1) {
                None => PARAMETER,
                Some(_) if !self.fast_valid(tce.raw()) => TOO_HARD,
                Some(index) => self.fast_write(index, tce.raw()),
            },
            Hypercall::Stuff { ioba, tce, pages, .. } => match Self::strict(ioba.raw(), pages) {
                Some(first) if tce.raw() & 3 == 0 => {
                    for index in first..first + pages {
                        self.fast_write(index, tce.raw());
                    }
                    OK
                }
                _ => PARAMETER,
            },
            Hypercall::PutIndirect { ioba, list: at, pages, .. } => {
                let first = Self::strict(ioba.raw(), pages);
                match first {
                    _ if pages > 512 || at.raw() % 0x1000 != 0 => PARAMETER,
                    None => PARAMETER,
                    Some(_) if Self::behind(at.raw()).is_none() => TOO_HARD,
                    Some(_) if list.iter().any(|&value| !self.fast_valid(value)) => TOO_HARD,
                    Some(first) => {
                        for (index, &value) in (first..).zip(list) {
                            if Self::behind(value & !3).is_none() {
                                return (PARAMETER, None);
                            }
                            let code = self.fast_write(index, value);
                            if code != OK {
                                return (code, None);
                            }
                        }
                        OK
                    }
                }
            }
        };
        (code, None)
    }

    fn slow_write(&mut self, ioba: u64, value: u64) -> i64 {
        let Some(index) = Self::rounded(ioba) else { return PARAMETER };
        let target = Self::whole_page(value & !(PAGE - 1)).filter(|_| value & 3 != 0);
        if !target.is_some_and(|ua| self.map(index, ua, value & 3)) {
            self.clear(index);
        }
        self.store(index, value);
        OK
    }

    fn slow_each(&mut self, ioba: u64, values: impl Iterator<Item = u64>) -> i64 {
        let mut code = PARAMETER;
        for (step, value) in (0..).zip(values) {
            code = self.slow_write(ioba.wrapping_add(step * PAGE), value);
            if code != OK {
                break;
            }
        }
        code
    }

    fn slow(&mut self, call: Hypercall, list: &[u64]) -> (i64, Option<u64>) {
        if call.liobn() != u64::from(LIOBN) {
            return (PARAMETER, None);
        }
        let code = match call {
            Hypercall::Get { ioba, .. } => match Self::rounded(ioba.raw()) {
                Some(index) => return (OK, Some(self.values.get(&index).copied().unwrap_or(0))),
                None => PARAMETER,
            },
            Hypercall::Put { ioba, tce, .. } => self.slow_write(ioba.raw(), tce.raw()),
            Hypercall::Stuff { pages, .. } if pages > ENTRIES => PARAMETER,
            Hypercall::Stuff { ioba, tce, pages, .. } => {
                self.slow_each(ioba.raw(), (0..pages).map(|_| tce.raw()))
            }
            Hypercall::PutIndirect { list: at, pages, .. } if pages > 512 || at.raw() % 0x1000 != 0 => {
                PARAMETER
            }
            Hypercall::PutIndirect { ioba, list: at, pages, .. } => {
                let readable = Self::behind(at.raw()).is_some();
                let value = |index: u64| if readable { list[index as usize] } else { 0 };
                self.slow_each(ioba.raw(), (0..pages).map(value))
            }
        };
        (code, None)
    }
}

fn bus_address() -> impl Strategy<Value = u64> {
    prop_oneof![
        12 => (0..ENTRIES).prop_map(|index| START + index * PAGE),
        1 => Just(START + ENTRIES * PAGE),
        1 => (0..ENTRIES * PAGE).prop_map(|offset| START + offset),
        1 => prop_oneof![Just(START - PAGE), Just(0), Just(u64::MAX), any::<u64>()],
    ]
}

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        10 => (0..16u64, 1..4u64).prop_map(|(page, permission)| (G + page * PAGE) | permission),
        3 => Just(0),
        1 => (0..RAM).prop_map(|offset| G + offset),
        1 => (0..RAM + 2 * PAGE, 0..4u64).prop_map(|(offset, permission)| (G + offset) & !0xfff | permission),
        1 => prop_oneof![Just(1), Just(0x1000), Just(u64::MAX), Just(1 << 50), Just(1 << 50 | 3), any::<u64>()],
    ]
}

fn pages() -> impl Strategy<Value = u64> {
    prop_oneof![8 => 0..=ENTRIES, 1 => 0..20u64, 1 => prop_oneof![Just(512), Just(513), any::<u64>()]]
}

fn liobn() -> impl Strategy<Value = u64> {
    prop_oneof![20 => Just(u64::from(LIOBN)), 1 => prop_oneof![Just(0), Just(u64::from(LIOBN) | 1 << 32), any::<u64>()]]
}

fn call() -> impl Strategy<Value = Step> {
    let one = |call| Step::Call(call, Vec::new());
    prop_oneof![
        4 => (liobn(), bus_address(), value()).prop_map(move |(liobn, ioba, tce)| {
            one(Hypercall::Put { liobn, ioba: BusAddr::new(ioba), tce: Tce::new(tce) })
        }),
        1 => (liobn(), bus_address()).prop_map(move |(liobn, ioba)| one(Hypercall::Get { liobn, ioba: BusAddr::new(ioba) })),
        2 => (liobn(), bus_address(), prop_oneof![3 => Just(0), 1 => value()], pages()).prop_map(
            move |(liobn, ioba, tce, pages)| {
                one(Hypercall::Stuff { liobn, ioba: BusAddr::new(ioba), tce: Tce::new(tce), pages })
            }
        ),
        3 => (liobn(), bus_address(), prop::collection::vec(value(), 0..8), list_address()).prop_map(
            |(liobn, ioba, values, list)| {
                let pages = values.len() as u64;
                Step::Call(
                    Hypercall::PutIndirect { liobn, ioba: BusAddr::new(ioba), list: GuestAddr::new(list), pages },
                    values,
                )
            }
        ),
        1 => (513..1000u64, list_address()).prop_map(|(pages, list)| Step::Call(indirect(START, list, pages), Vec::new())),
    ]
}

fn list_address() -> impl Strategy<Value = u64> {
    prop_oneof![8 => Just(LIST), 1 => Just(G + RAM - 0x1000), 1 => Just(G + RAM), 1 => Just(LIST + 8), 1 => any::<u64>()]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        1 => (0..PIECES.len()).prop_map(Step::Register),
        1 => (0..PIECES.len()).prop_map(Step::Unregister),
        8 => call(),
    ]
}

struct Run {
    guest: Guest,
    model: Model,
    pieces: [Option<Registration>; PIECES.len()],
}

impl Run {
    fn new(rules: Rules) -> Self {
        let mut guest = Guest::bare(Granule::K4, rules);
        let mut slots = MemorySlots::new();
        slots.insert(GuestAddr::new(G), UserAddr::new(A), RAM).unwrap();
        slots.insert(GuestAddr::new(0), UserAddr::new(A + 0x8_0000), 0x8000).unwrap();
        guest.calls.replace_slots(slots);
        guest.create(window(START, PageShift::K64, ENTRIES));
        guest.attach(PageShift::K4);
        Self { guest, model: Model::default(), pieces: [const { None }; PIECES.len()] }
    }

    fn mapped(&self, piece: usize) -> u64 {
        self.model.hardware.values().filter(|&&(ua, _)| self.model.piece_of(ua) == Some(piece)).count() as u64
    }

    fn take(&mut self, step: &Step) {
        match step {
            Step::Register(piece) => {
                let (offset, bytes) = PIECES[*piece];
                if self.pieces[*piece].is_none() {
                    self.pieces[*piece] =
                        Some(self.guest.space.register(&self.guest.host.memory(A + offset, bytes)).unwrap());
                    self.model.registered[*piece] = true;
                }
            }
            Step::Unregister(piece) => {
                let mapped = self.mapped(*piece);
                if let Some(registration) = self.pieces[*piece].take() {
                    match registration.unregister() {
                        Ok(()) => {
                            assert_eq!(mapped, 0, "unregistered under live entries");
                            self.model.registered[*piece] = false;
                        }
                        Err(busy) => {
                            assert_eq!(busy.mapped(), mapped);
                            assert!(mapped > 0);
                            self.pieces[*piece] = Some(busy.into_inner());
                        }
                    }
                }
            }
            Step::Call(call, list) => self.call(*call, list),
        }
    }

    fn call(&mut self, call: Hypercall, list: &[u64]) {
        self.guest.lists.0.clear();
        if let Hypercall::PutIndirect { list: at, .. } = call {
            if Model::behind(at.raw()).is_some() {
                self.guest.lists.0.insert(at.raw(), list.to_vec());
            }
        }
        let (mut code, mut value) = (TOO_HARD, None);
        if self.guest.calls.rules() == Rules::Kvm {
            (code, value) = self.model.fast(call, list);
        }
        let fell_back_to_userspace = self.guest.calls.rules() == Rules::Kvm && code == TOO_HARD;
        if code == TOO_HARD {
            (code, value) = self.model.slow(call, list);
        }
        let reply = self.guest.call(call);
        assert_eq!(
            (reply.code.raw(), reply.value.map(Tce::raw), reply.fell_back_to_userspace),
            (code, value, fell_back_to_userspace)
        );
    }

    fn check(&mut self) {
        let table = self.guest.calls.tables().next().unwrap();
        for index in 0..ENTRIES {
            assert_eq!(
                table.value(index).raw(),
                self.model.values.get(&index).copied().unwrap_or(0),
                "value {index}"
            );
        }
        let hardware = self.guest.hardware().remove(0);
        for index in 0..ENTRIES * 16 {
            let seen = hardware.view(index).map(|entry| (entry.ua.raw(), entry.access.bits()));
            let expected = self.model.hardware.get(&index);
            assert_eq!(seen, expected.copied(), "hardware {index}");
            if let Some((ua, _)) = seen {
                let (mapping, _) = hardware.hold_mapping(&mut self.guest.translator, index).unwrap().unwrap();
                assert_eq!(Some(mapping.hpa()), self.guest.host.backs(ua));
                assert!(self.guest.host.pin_count(ua) > 0, "an address in a table is a pinned one");
            }
        }
        for piece in 0..PIECES.len() {
            if let Some(registration) = &self.pieces[piece] {
                assert_eq!(registration.state().unwrap().mapped, self.mapped(piece));
            }
        }
    }

    fn end(self) {
        let Self { guest, pieces, .. } = self;
        let host = guest.host.clone();
        // The table is dropped before the memory.
        guest.end_with(pieces.into_iter().flatten());
        host.assert_clean();
    }
}

fn run(rules: Rules, steps: &[Step]) {
    let mut run = Run::new(rules);
    for step in steps {
        run.take(step);
        run.check();
    }
    run.end();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn random_calls_answer_as_the_model_under_kvms_rules(steps in prop::collection::vec(step(), 1..60)) {
        run(Rules::Kvm, &steps);
    }

    #[test]
    fn random_calls_answer_as_the_model_under_qemus_rules(steps in prop::collection::vec(step(), 1..60)) {
        run(Rules::Qemu, &steps);
    }
}
