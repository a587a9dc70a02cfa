//! The baseline of a replay: every map pins its page and every unmap unpins it.
//!
//! Each map pins its page by the back end of the replay and stores nothing, so that only the pins are measured. Pages that are still
//! pinned at the end are unpinned by a destructor.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use prereg::{DirtyPages, Granule, PageList, Pin, PinId, UserAddr, UserRange};

use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Bar;
use crate::trace::record::{PERMISSION, Record, Trace, Window};

/// The results of the run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Baseline {
    /// Time after the clearing at boot.
    pub took: Duration,
    /// Entries written in that time.
    pub tces: u64,
    /// Pins.
    pub pins: u64,
    /// The reason if it stopped before the end of the trace.
    pub stopped: Option<String>,
}

/// Enough pins for a mean.
const MAX_PINS: u64 = 500_000;

/// Records between two reads of the clock and the interrupt flag.
const CHUNK: usize = 256;

/// Replays `trace` over guest RAM at `ram`, pinning with `host`.
///
/// # Errors
/// [`Interrupted`]; everything is unpinned.
pub(crate) fn run(
    trace: &Trace,
    ram: UserAddr,
    host: &dyn Pin,
    interrupt: &Interrupt,
    bar: &Bar,
) -> Result<Baseline, Interrupted> {
    let mut pinned = PinPerMap {
        host,
        granule: host.granule(),
        ram,
        ram_bytes: trace.ram_bytes,
        tables: Vec::new(),
        pins: 0,
    };
    let mut result = Baseline::default();
    let (boot, rest) = trace.records.split_at(trace.first_mapping());
    for record in boot {
        // Creates windows; the entries that these calls clear are empty.
        let _ = pinned.step(trace, record);
    }
    let mut tces = 0;
    for (number, chunk) in rest.chunks(CHUNK).enumerate() {
        interrupt.check()?;
        bar.position((number * CHUNK) as u64);
        let start = Instant::now();
        let flow = chunk.iter().try_for_each(|record| pinned.step(trace, record).map_continue(|n| tces += n));
        result.took += start.elapsed();
        if let ControlFlow::Break(why) = flow {
            result.stopped = Some(why);
            break;
        }
    }
    result.tces = tces;
    result.pins = pinned.pins;
    Ok(result)
}

/// The pinned pages by table and entry.
struct PinPerMap<'a> {
    host: &'a dyn Pin,
    granule: Granule,
    ram: UserAddr,
    ram_bytes: u64,
    tables: Vec<Table>,
    pins: u64,
}

struct Table {
    window: Window,
    /// Blocks of entries; `None` if none of them was ever mapped.
    blocks: Vec<Option<Box<Block>>>,
}

type Block = [Option<(PinId, UserRange)>; 512];

impl PinPerMap<'_> {
    /// Replays one record; continues with the number of entries written.
    fn step(&mut self, trace: &Trace, record: &Record) -> ControlFlow<String, u64> {
        match *record {
            Record::Window(index) => {
                let window = trace.windows[index as usize];
                // The parser checked that the window's table fits this host.
                let blocks = usize::try_from(window.entries.div_ceil(512)).unwrap_or(0);
                self.tables
                    .push(Table { window, blocks: std::iter::repeat_with(|| None).take(blocks).collect() });
                ControlFlow::Continue(0)
            }
            Record::Remove { liobn } => {
                if let Some(at) = self.tables.iter().position(|table| table.window.liobn == liobn) {
                    let table = self.tables.swap_remove(at);
                    self.unpin_all(&table);
                }
                ControlFlow::Continue(0)
            }
            Record::Put { liobn, ioba, tce, ret: 0 } => self.write(liobn, ioba, std::iter::once(tce)),
            Record::Indirect { liobn, ioba, list, ret: 0 } => {
                self.write(liobn, ioba, trace.values(&trace.lists[list as usize]).iter().copied())
            }
            Record::Stuff { liobn, ioba, tce, count, ret: 0 } => self.stuff(liobn, ioba, tce, count),
            _ => ControlFlow::Continue(0),
        }
    }

    fn table(&self, liobn: u64) -> Option<usize> {
        self.tables.iter().position(|table| table.window.liobn == liobn)
    }

    fn write(
        &mut self,
        liobn: u64,
        ioba: prereg::BusAddr,
        tces: impl Iterator<Item = u64>,
    ) -> ControlFlow<String, u64> {
        let Some(at) = self.table(liobn) else { return ControlFlow::Continue(0) };
        let Some(first) = self.tables[at].window.index(ioba) else { return ControlFlow::Continue(0) };
        let mut written = 0;
        for tce in tces {
            self.set(at, first + written, tce)?;
            written += 1;
        }
        ControlFlow::Continue(written)
    }

    fn stuff(&mut self, liobn: u64, ioba: prereg::BusAddr, tce: u64, count: u64) -> ControlFlow<String, u64> {
        let Some(at) = self.table(liobn) else { return ControlFlow::Continue(0) };
        let window = self.tables[at].window;
        let Some(first) = window.index(ioba) else { return ControlFlow::Continue(0) };
        let end = first.saturating_add(count).min(window.entries);
        let mut index = first;
        while index < end {
            // A block that was never mapped has no pins.
            if tce & PERMISSION == 0 && self.tables[at].blocks[(index / 512) as usize].is_none() {
                index = (index / 512 + 1) * 512;
                continue;
            }
            self.set(at, index, tce)?;
            index += 1;
        }
        ControlFlow::Continue(end - first)
    }

    /// Writes one entry: unpins its old page and pins its new one.
    fn set(&mut self, at: usize, index: u64, tce: u64) -> ControlFlow<String> {
        let table = &mut self.tables[at];
        if index >= table.window.entries {
            return ControlFlow::Continue(());
        }
        let shift = table.window.shift;
        let block = &mut table.blocks[(index / 512) as usize];
        if tce & PERMISSION == 0 && block.is_none() {
            return ControlFlow::Continue(());
        }
        let cell = &mut block.get_or_insert_with(|| Box::new([None; 512]))[(index % 512) as usize];
        if let Some((pin, range)) = cell.take() {
            self.host.unpin(pin, range, DirtyPages::none());
        }
        let gpa = tce & !shift.mask();
        if tce & PERMISSION == 0 || gpa.checked_add(shift.bytes()).is_none_or(|end| end > self.ram_bytes) {
            return ControlFlow::Continue(());
        }
        if self.pins == MAX_PINS {
            return ControlFlow::Break(format!("{MAX_PINS} pins are enough for a mean"));
        }
        let Some(ua) = self.ram.checked_add(gpa) else { return ControlFlow::Continue(()) };
        let pinned = UserRange::new(ua, shift.bytes(), self.granule)
            .map_err(|error| error.to_string())
            .and_then(|range| {
                let pin = self.host.pin(range, &mut PageList::new(range, self.granule).sink());
                pin.map(|pin| (pin, range)).map_err(|error| error.to_string())
            });
        match pinned {
            Ok(pinned) => {
                *cell = Some(pinned);
                self.pins += 1;
                ControlFlow::Continue(())
            }
            Err(why) => ControlFlow::Break(why),
        }
    }

    fn unpin_all(&self, table: &Table) {
        for (pin, range) in table.blocks.iter().flatten().flat_map(|block| block.iter().flatten()) {
            self.host.unpin(*pin, *range, DirtyPages::none());
        }
    }
}

impl Drop for PinPerMap<'_> {
    fn drop(&mut self) {
        for table in std::mem::take(&mut self.tables) {
            self.unpin_all(&table);
        }
    }
}
