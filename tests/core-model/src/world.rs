//! Real address spaces beside the model, and one operation after the other on both.
//!
//! After each operation the calls of the hosts are compared with the model, and after most of them the state of each
//! space. At the end all is dropped, and nothing may be left.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use prereg::{
    Access, AddressSpace, Draining, EntryBlock, Granule, HeapTables, Holder, HolderKind, Mapping, PageShift,
    RangeMapping, Registration, TableMemory, Translator, UserAddr,
};

use crate::host::Host;
use crate::layout::ORDINARY;
use crate::model;
use crate::op::{Op, Verb};
use crate::random::Random;
use crate::surface::{self, Fence};

/// Fails with a message where a condition does not hold.
macro_rules! ensure {
    ($holds:expr, $($message:tt)+) => {
        if !$holds {
            return Err(format!($($message)+));
        }
    };
}
/// Fails where two values differ.
macro_rules! same {
    ($got:expr, $want:expr, $($message:tt)+) => {{
        let (got, want) = (&$got, &$want);
        if got != want {
            return Err(format!("{}: got {got:x?}, want {want:x?}", format_args!($($message)+)));
        }
    }};
}

mod end;
mod entries;
mod mapping;
mod registering;
mod state;

/// `Ok` if all agreed with the model; else the difference.
type Checked = Result<(), String>;

/// The parameters of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Case {
    /// The fence of every address space.
    pub fence: Fence,
    /// The system page.
    pub granule: Granule,
    /// Short lists and few neighbours, for an interpreter.
    pub small: bool,
    /// Only regions of a multiple of eight pages: then the index points into their tables instead of holding addresses.
    pub aligned: bool,
}

/// Counts of a case.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Summary {
    /// Host addresses that were compared with the truth.
    pub addresses: u64,
    /// Operations that came to nothing for want of something to work on.
    pub idle: u64,
    /// The most retired regions that a space kept.
    pub unreclaimed: u64,
}

/// Performs `ops` and compares every answer with the model.
///
/// # Errors
/// The difference, and all operations before it.
pub fn run_case(ops: &[Op], case: Case) -> Result<Summary, String> {
    let mut world = World::new(case);
    let done = catch_unwind(AssertUnwindSafe(|| world.perform(ops)));
    let failed = match done {
        Ok(Ok(())) => return world.end(),
        Ok(Err(message)) => message,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            format!("panicked: {}", text.unwrap_or("with no text"))
        }
    };
    let trace = world.trace.join("\n  ");
    // The rest may be in a state in which it cannot be dropped.
    std::mem::forget(world);
    Err(format!("{failed}\n{case:?}\n  {trace}"))
}

/// An address space and its model.
struct Space {
    real: Option<AddressSpace>,
    host: Host,
    tables: Arc<HeapTables>,
    model: model::Space,
    /// The most regions there were at once.
    most_regions: u64,
}

/// A registration and its region in the model.
struct Claim {
    real: Registration,
    space: usize,
    id: u64,
    holder: Holder,
}

struct Reader {
    real: Translator,
    space: usize,
    holder: Holder,
}

enum Unit {
    Page(Mapping),
    Range(RangeMapping),
}

/// A live mapping of a page or a range.
struct Live {
    unit: Unit,
    space: usize,
    id: u64,
    holder: Holder,
}

struct Entry {
    ua: UserAddr,
    id: u64,
    access: Access,
}

struct Block {
    real: EntryBlock,
    space: usize,
    holder: Holder,
    entries: Vec<Option<Entry>>,
}

struct Drain {
    real: Draining,
    space: usize,
    id: u64,
    waiting: bool,
}

struct World {
    case: Case,
    spaces: Vec<Space>,
    claims: Vec<Claim>,
    readers: Vec<Reader>,
    lives: Vec<Live>,
    blocks: Vec<Block>,
    drains: Vec<Drain>,
    /// The operations, for the report of a failure.
    trace: Vec<String>,
    summary: Summary,
}

/// The `word`th of `list`, counted round.
fn nth<T>(list: &[T], word: u16) -> Option<usize> {
    (!list.is_empty()).then(|| usize::from(word) % list.len())
}

fn holder(word: u16) -> Holder {
    match word % 4 {
        0 => Holder::default(),
        1 => Holder { container: 1, kind: HolderKind::TableEntry },
        2 => Holder { container: 1, kind: HolderKind::InFlight },
        _ => Holder { container: 2, kind: HolderKind::Other },
    }
}

impl World {
    fn new(case: Case) -> Self {
        let mut world = Self {
            case,
            spaces: Vec::new(),
            claims: Vec::new(),
            readers: Vec::new(),
            lives: Vec::new(),
            blocks: Vec::new(),
            drains: Vec::new(),
            trace: Vec::new(),
            summary: Summary::default(),
        };
        world.new_space();
        world
    }

    fn new_space(&mut self) {
        let host = Host::new(self.case.granule);
        let tables = Arc::new(HeapTables::new());
        let memory: Arc<dyn TableMemory> = tables.clone();
        let real = Some(surface::space(&host, self.case.fence, memory));
        let model = model::Space::new(self.case.granule);
        self.spaces.push(Space { real, host, tables, model, most_regions: 0 });
    }

    fn page(&self) -> u64 {
        self.case.granule.bytes()
    }

    /// An address space that has an owner.
    fn open_space(&self, word: u16) -> Option<usize> {
        let open: Vec<usize> =
            (0..self.spaces.len()).filter(|&index| self.spaces[index].real.is_some()).collect();
        nth(&open, word).map(|index| open[index])
    }

    /// A translator; the first one is made.
    fn reader(&mut self, word: u16) -> Result<Option<usize>, String> {
        if self.readers.is_empty() {
            self.new_reader(word, word)?;
        }
        Ok(nth(&self.readers, word))
    }

    /// An address in space `space`: mostly in one of its regions, sometimes where none may be.
    fn address(&self, space: usize, word: u16, random: &mut Random) -> u64 {
        let Space { model, host, .. } = &self.spaces[space];
        let within = if random.one_in(2) { random.below(self.page()) } else { 0 };
        let regions = model.regions.len();
        if regions == 0 || word % 16 == 15 {
            let spot = host.spots()[usize::from(word >> 4) % ORDINARY];
            return (spot.ua + random.below(spot.pages + 1) * self.page()).wrapping_add(within);
        }
        let region = model.regions.values().nth(usize::from(word >> 4) % regions);
        let Some(region) = region else { return within };
        let pages = region.range.pages(self.case.granule);
        // First and last pages are where mistakes are.
        let page = match random.below(4) {
            0 => 0,
            1 => pages - 1,
            _ => random.below(pages),
        };
        region.range.first().raw() + page * self.page() + within
    }

    fn shift(&self, word: u16) -> PageShift {
        let granule = self.case.granule.shift();
        let shift = match word % 16 {
            0..=5 => return PageShift::K4,
            6..=8 => return granule,
            9 => granule.get() + 1,
            10 => 9,
            11 => 0,
            12 => 16,
            13 => 21,
            14 => 22,
            _ => u32::from(word >> 4) % 64,
        };
        PageShift::new(shift).unwrap_or(granule)
    }

    fn perform(&mut self, ops: &[Op]) -> Checked {
        for op in ops {
            let noted = self.trace.len();
            self.step(*op)?;
            self.settle()?;
            self.summary.idle += u64::from(noted == self.trace.len());
            // Not after each one: looking at a space releases what is idle.
            if op.c % 8 != 7 {
                self.compare()?;
            }
        }
        Ok(())
    }

    fn step(&mut self, op: Op) -> Checked {
        match op.verb {
            Verb::Register => self.register(op, model::Wish::Any),
            Verb::RegisterNew => self.register(op, model::Wish::New),
            Verb::RegisterDevice => self.register_device(op),
            Verb::Share => self.share(op),
            Verb::Unregister => self.unregister(op),
            Verb::UnregisterMany => self.unregister_many(op),
            Verb::DropRegistration => self.drop_registration(op),
            Verb::Drain => self.drain(op),
            Verb::AskDraining => self.ask_draining(op),
            Verb::EndDraining => self.end_draining(op),
            Verb::AskRegistration => self.ask_registration(op),
            Verb::Crowd => self.crowd(op),
            Verb::Churn => self.churn(op),
            Verb::Map => self.map(op),
            Verb::Unmap => self.unmap(op),
            Verb::Burst => self.burst(op),
            Verb::MapList => self.map_list(op),
            Verb::UnmapList => self.unmap_list(op),
            Verb::MapRange => self.map_range(op),
            Verb::LookAtRange => self.look_at_range(op),
            Verb::Check => self.check(op),
            Verb::DropMapping => self.drop_mapping(op),
            Verb::MarkDirty => self.mark_dirty(op),
            Verb::NewTranslator => self.new_reader(op.a, op.c),
            Verb::DropTranslator => self.drop_reader(op),
            Verb::Refresh => self.refresh(op),
            Verb::NewBlock => self.new_block(op),
            Verb::SetEntry => self.set_entry(op),
            Verb::ClearEntry => self.clear_entry(op),
            Verb::TakeEntry => self.take_entry(op),
            Verb::DropBlock => self.drop_block(op),
            Verb::Find => self.find(op),
            Verb::DeviceAt => self.device_at(op),
            Verb::Reap => self.reap(op),
            Verb::NewSpace => {
                if self.spaces.len() < 3 {
                    self.trace.push("another space".to_owned());
                    self.new_space();
                }
                Ok(())
            }
            Verb::DropSpace => self.drop_space(op),
        }
    }

    /// Compares the calls of the hosts since the last operation with what the model removed.
    fn settle(&mut self) -> Checked {
        self.spaces.iter_mut().enumerate().try_for_each(|(index, space)| {
            let told = space.host.take_unpinned();
            space.model.settle(&space.host, told).map_err(|wrong| format!("space {index}: {wrong}"))
        })
    }
}
