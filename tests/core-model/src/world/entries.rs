//! Table entries, in blocks.

use prereg::{Access, EntryBlock, EntryBlockError, MapError, PageShift, UserAddr};

use super::{Block, Checked, Entry, Reader, World, holder, nth};
use crate::model;
use crate::op::Op;
use crate::surface;

const ENTRIES: usize = 6;
/// User addresses from here on do not fit an entry.
const UA_LIMIT: u64 = 1 << 56;

const fn access(word: u16) -> Access {
    match word % 3 {
        0 => Access::Read,
        1 => Access::Write,
        _ => Access::ReadWrite,
    }
}

impl World {
    pub(super) fn new_block(&mut self, op: Op) -> Checked {
        let Some(space) = self.open_space(op.a) else { return Ok(()) };
        let shift = match op.b % 8 {
            0 => PageShift::M2,
            1 => PageShift::K64,
            2 => self.case.granule.shift(),
            3 => PageShift::new(11).unwrap_or(PageShift::K4),
            _ => PageShift::K4,
        };
        let holder = holder(op.c >> 4);
        self.trace.push(format!("space {space}: block {} of {shift} for {holder}", self.blocks.len()));
        let Some(real) = &self.spaces[space].real else { return Ok(()) };
        match EntryBlock::new(real, shift, ENTRIES, holder) {
            Ok(real) => {
                same!((real.len(), real.shift(), real.is_empty()), (ENTRIES, shift, false), "the block");
                ensure!(shift >= PageShift::K4, "a block of pages below 4 KiB");
                let entries = (0..ENTRIES).map(|_| None).collect();
                self.blocks.push(Block { real, space, holder, entries });
            }
            Err(error) => same!(error, EntryBlockError::PageTooSmall { shift }, "no block"),
        }
        Ok(())
    }

    /// A block and a translator, mostly of the same space; the first block is made.
    fn block_and_reader(&mut self, op: Op) -> Result<Option<(usize, usize)>, String> {
        if self.blocks.is_empty() {
            self.new_block(Op { b: 4, ..op })?;
        }
        let Some(reader) = self.reader(op.b)? else { return Ok(None) };
        let Some(block) = nth(&self.blocks, op.a) else { return Ok(None) };
        let friends: Vec<usize> = (0..self.readers.len())
            .filter(|&at| self.readers[at].space == self.blocks[block].space)
            .collect();
        let reader = match nth(&friends, op.b) {
            Some(friend) if op.c % 16 != 0 => friends[friend],
            _ => reader,
        };
        Ok(Some((block, reader)))
    }

    /// Whether the reader is of another space than the block.
    fn is_foreign(&self, block: usize, reader: usize) -> bool {
        self.blocks[block].space != self.readers[reader].space
    }

    pub(super) fn set_entry(&mut self, op: Op) -> Checked {
        let Some((block, reader)) = self.block_and_reader(op)? else { return Ok(()) };
        let mut random = op.choices();
        let space = self.blocks[block].space;
        let shift = self.blocks[block].real.shift();
        let index = random.index(ENTRIES + 1);
        let mut ua = UserAddr::new(self.address(space, op.c, &mut random));
        if !random.one_in(8) {
            ua = ua.align_down(shift);
        }
        let access = access(op.b >> 8);
        self.trace.push(format!("block {block}, translator {reader}: set {index} to {ua} {access:?}"));
        let want = if self.is_foreign(block, reader) {
            Err(MapError::Foreign)
        } else if index >= ENTRIES {
            Err(MapError::NoEntry { index, len: ENTRIES })
        } else if !ua.is_aligned(shift) {
            Err(MapError::Misaligned { ua, shift })
        } else if ua.raw() >= UA_LIMIT {
            Err(MapError::Unregistered { ua, shift })
        } else {
            self.spaces[space].model.map(ua, shift)
        };
        let got = self.blocks[block].real.set(&mut self.readers[reader].real, index, ua, access);
        let (before, (id, _)) = match (got, want) {
            (Ok(before), Ok(found)) => (before, found),
            // Nothing was looked up.
            (Err(got), Err(want)) if ua.raw() >= UA_LIMIT => {
                same!(got, want, "entry not set");
                return Ok(());
            }
            (Err(got), Err(want)) => return self.missed(reader, got, want),
            (got, want) => return Err(format!("entry set: got {got:?}, want {want:x?}")),
        };
        let holder = self.blocks[block].holder;
        if let Some(region) = self.spaces[space].model.regions.get_mut(&id) {
            model::add(&mut region.mapped, holder);
        }
        let old = self.blocks[block].entries[index].replace(Entry { ua, id, access });
        same!(before, old.as_ref().map(|old| old.access), "the access before");
        self.emptied(space, holder, shift, old)?;
        self.right_entry(block, index)
    }

    /// The unit of an entry that went, in the model; what a device could write is marked.
    fn emptied(
        &mut self,
        space: usize,
        holder: prereg::Holder,
        shift: PageShift,
        old: Option<Entry>,
    ) -> Checked {
        let Some(Entry { ua, id, access }) = old else { return Ok(()) };
        let granule = self.case.granule;
        let region = self.spaces[space].model.regions.get_mut(&id);
        if let Some(region) = region.filter(|region| access.writes() && region.pin.is_some()) {
            region.mark(ua.raw(), shift.bytes(), granule);
        }
        self.given_back(space, id, holder)
    }

    /// Compares what entry `index` shows with the model.
    pub(super) fn right_entry(&mut self, block: usize, index: usize) -> Checked {
        let Block { real, space, entries, .. } = &self.blocks[block];
        let entry = entries.get(index).and_then(Option::as_ref);
        same!(real.access(index), entry.map(|entry| entry.access), "the access of entry {index}");
        let seen = surface::look_at(real, index);
        same!(
            seen.map(|(ua, _, access)| (ua, access)),
            entry.map(|entry| (entry.ua, entry.access)),
            "entry {index}"
        );
        if let (Some((ua, Some(host), _)), Some(entry)) = (seen, entry) {
            let region = self.spaces[*space].model.regions.get(&entry.id);
            same!(
                Some(host.raw()),
                region.map(|region| region.truth.host(ua.raw())),
                "the address in entry {index}"
            );
            self.summary.addresses += 1;
        }
        Ok(())
    }

    pub(super) fn clear_entry(&mut self, op: Op) -> Checked {
        let Some((block, reader)) = self.block_and_reader(op)? else { return Ok(()) };
        let index = op.choices().index(ENTRIES + 1);
        self.trace.push(format!("block {block}, translator {reader}: clear {index}"));
        let foreign = self.is_foreign(block, reader);
        let Block { real, space, holder, entries } = &mut self.blocks[block];
        let (space, holder, shift) = (*space, *holder, real.shift());
        let got = real.clear(&mut self.readers[reader].real, index);
        if foreign {
            same!(got, Err(MapError::Foreign), "entry cleared");
            return Ok(());
        }
        let old = entries.get_mut(index).and_then(Option::take);
        same!(got, Ok(old.as_ref().map(|old| old.access)), "entry cleared");
        self.emptied(space, holder, shift, old)?;
        self.right_entry(block, index)
    }

    pub(super) fn take_entry(&mut self, op: Op) -> Checked {
        let Some((block, reader)) = self.block_and_reader(op)? else { return Ok(()) };
        let index = op.choices().index(ENTRIES + 1);
        self.trace.push(format!("block {block}, translator {reader}: take {index}"));
        let foreign = self.is_foreign(block, reader);
        let Block { real, space, entries, .. } = &self.blocks[block];
        let shift = real.shift();
        let got = real.hold_mapping(&mut self.readers[reader].real, index);
        let entry = entries.get(index).and_then(Option::as_ref).map(|entry| (entry.ua, entry.access));
        let want = match entry {
            _ if foreign => Err(MapError::Foreign),
            None => Ok(None),
            Some((ua, access)) => {
                self.spaces[*space].model.map(ua, shift).map(|(id, _)| Some((id, ua, access)))
            }
        };
        match (got, want) {
            (Ok(None), Ok(None)) => Ok(()),
            (Ok(Some((mapping, access))), Ok(Some((id, ua, expected)))) => {
                same!(access, expected, "the access through entry {index}");
                self.keep(reader, id, mapping, (ua, shift))
            }
            (Err(got), Err(want)) => self.missed(reader, got, want),
            (got, want) => Err(format!("taken through an entry: got {got:?}, want {want:?}")),
        }
    }

    pub(super) fn drop_block(&mut self, op: Op) -> Checked {
        let Some(index) = nth(&self.blocks, op.a) else { return Ok(()) };
        self.trace.push(format!("drop block {index}"));
        self.drop_block_at(index)
    }

    pub(super) fn drop_block_at(&mut self, index: usize) -> Checked {
        let Block { real, space, holder, entries } = self.blocks.swap_remove(index);
        let shift = real.shift();
        for entry in entries {
            self.emptied(space, holder, shift, entry)?;
        }
        drop(real);
        Ok(())
    }

    /// Compares every entry of every block.
    pub(super) fn right_entries(&mut self) -> Checked {
        for block in 0..self.blocks.len() {
            let Block { real, entries, .. } = &self.blocks[block];
            same!(real.live(), entries.iter().flatten().count() as u64, "live entries of block {block}");
            (0..ENTRIES).try_for_each(|index| self.right_entry(block, index))?;
        }
        Ok(())
    }

    /// The number of translators of space `space`.
    pub(super) fn readers_of(&self, space: usize) -> u64 {
        self.readers.iter().filter(|Reader { space: other, .. }| *other == space).count() as u64
    }
}
