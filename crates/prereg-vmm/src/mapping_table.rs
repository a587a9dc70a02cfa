//! The mappings of a device address space by address: a tree of first addresses, and their entries in an array.
//!
//! Entries are large and stay where they are; the tree that a map changes has small nodes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use prereg::Iova;

use crate::dma_mapping::{DmaMapping, MemoryKind};
use crate::error::DmaMapError;
use crate::pins::Pins;

/// A mapping with what it holds.
pub(crate) struct Entry {
    pub(crate) mapping: DmaMapping,
    pub(crate) kind: MemoryKind,
    pub(crate) file: Option<OwnedFd>,
    /// Held until the unmap.
    pub(crate) pins: Pins,
}

/// Mappings that never overlap.
#[derive(Default)]
pub(crate) struct MappingTable {
    /// By first address: the slot in `entries`.
    slots: BTreeMap<u64, usize>,
    entries: Vec<Option<Entry>>,
    free: Vec<usize>,
    /// No mapping reaches beyond this address; `None` without mappings.
    bound: Option<u64>,
}

impl MappingTable {
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Adds a mapping, which the table [admits](Self::admits).
    #[inline]
    pub(crate) fn insert(&mut self, entry: Entry) {
        let first = entry.mapping.iova.raw();
        self.bound = self.bound.max(Some(entry.mapping.last()));
        let slot = match self.free.pop() {
            Some(slot) => {
                self.entries[slot] = Some(entry);
                slot
            }
            None => {
                self.entries.push(Some(entry));
                self.entries.len() - 1
            }
        };
        self.slots.insert(first, slot);
    }

    pub(crate) fn remove(&mut self, first: u64) -> Option<Entry> {
        let slot = self.slots.remove(&first)?;
        self.free.push(slot);
        if self.slots.is_empty() {
            self.bound = None;
        }
        self.entries[slot].take()
    }

    pub(crate) fn get(&self, first: u64) -> Option<&Entry> {
        self.entries[*self.slots.get(&first)?].as_ref()
    }

    pub(crate) fn get_mut(&mut self, first: u64) -> Option<&mut Entry> {
        self.entries[*self.slots.get(&first)?].as_mut()
    }

    /// The mappings by ascending address.
    pub(crate) fn mappings(&self) -> impl Iterator<Item = DmaMapping> {
        self.slots.values().filter_map(|&slot| self.mapping(slot))
    }

    #[inline]
    fn mapping(&self, slot: usize) -> Option<DmaMapping> {
        self.entries[slot].as_ref().map(|entry| entry.mapping)
    }

    /// Whether nothing is mapped in `[first, last]`.
    #[inline]
    pub(crate) fn admits(&self, first: u64, last: u64) -> Result<(), DmaMapError> {
        // Behind all mappings, which is where most are made, there is nothing to search.
        if self.bound.is_none_or(|bound| bound < first) {
            return Ok(());
        }
        // The last one that begins in the range or before it is the only one that can be in the way.
        let nearest = self.slots.range(..=last).next_back().and_then(|(_, &slot)| self.mapping(slot));
        match nearest {
            Some(mapping) if mapping.last() >= first => {
                Err(DmaMapError::Exists { iova: mapping.iova, bytes: mapping.bytes })
            }
            _ => Ok(()),
        }
    }

    /// The first addresses of the mappings that lie in the range, none of which reaches out of it.
    pub(crate) fn inside(&self, iova: Iova, last: u64) -> Result<Vec<u64>, DmaMapError> {
        let splits = |mapping: DmaMapping| DmaMapError::Splits { iova: mapping.iova, bytes: mapping.bytes };
        let before = self.slots.range(..iova.raw()).next_back().and_then(|(_, &slot)| self.mapping(slot));
        if let Some(mapping) = before.filter(|mapping| mapping.last() >= iova.raw()) {
            return Err(splits(mapping));
        }
        let mut found = Vec::new();
        for (&first, &slot) in self.slots.range(iova.raw()..=last) {
            if let Some(mapping) = self.mapping(slot).filter(|mapping| mapping.last() > last) {
                return Err(splits(mapping));
            }
            found.push(first);
        }
        Ok(found)
    }

    /// Takes everything out.
    pub(crate) fn take(&mut self) -> impl Iterator<Item = Entry> + use<> {
        std::mem::take(self).entries.into_iter().flatten()
    }
}
