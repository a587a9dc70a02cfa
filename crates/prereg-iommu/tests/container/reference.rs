//! The reference model: containers, regions and windows as sets and maps, written from docs/specification.md.
//!
//! Regions are sets of pages, containers what they registered, windows what each entry maps; it predicts every result.

use std::collections::{BTreeMap, BTreeSet};

use prereg::{Access, Errno};

use crate::fixture::{Asked, DEFAULT};

/// The end of memory: pages from this one on cannot be pinned.
pub(crate) const HOLE: u64 = 22;
/// Entries of the small windows: a system page of them.
pub(crate) const ENTRIES: u64 = 512;
/// Pages charged for such a window.
pub(crate) const SMALL: u64 = 2;
pub(crate) const DEFAULT_ENTRIES: u64 = 1 << 19;

pub(crate) type Range = (u64, u64);

#[derive(Default)]
pub(crate) struct Region {
    /// Containers by number, and other holders.
    pub(crate) owners: u64,
}

#[derive(Default)]
pub(crate) struct Window {
    pub(crate) start: u64,
    pub(crate) entries: u64,
    pub(crate) charge: u64,
    pub(crate) shows: BTreeMap<u64, u64>,
}

#[derive(Default)]
pub(crate) struct Modelled {
    pub(crate) bound: bool,
    pub(crate) enabled: bool,
    pub(crate) pending: bool,
    pub(crate) registered: BTreeSet<Range>,
    pub(crate) windows: [Option<Window>; 2],
}

pub(crate) struct Model {
    pub(crate) regions: BTreeMap<Range, Region>,
    pub(crate) containers: Vec<Modelled>,
    pub(crate) held: Vec<Range>,
}

impl Modelled {
    pub(crate) fn new() -> Self {
        Self { pending: true, ..Self::default() }
    }

    pub(crate) fn make_default(&mut self) {
        if std::mem::take(&mut self.pending) {
            self.windows[0] =
                Some(Window { start: 0, entries: DEFAULT_ENTRIES, charge: DEFAULT, shows: BTreeMap::new() });
        }
    }

    /// The window that contains entry `at`, counted in pages from 0 or from the second window's start.
    pub(crate) fn window(&mut self, at: u64) -> Option<&mut Window> {
        self.windows
            .iter_mut()
            .flatten()
            .find(|window| at >= window.start && at - window.start < window.entries)
    }
}

impl Model {
    pub(crate) fn new(containers: usize) -> Self {
        let containers = (0..containers).map(|_| Modelled::new()).collect();
        Self { regions: BTreeMap::new(), containers, held: Vec::new() }
    }

    pub(crate) fn mapped(&self, range: Range) -> u64 {
        let windows = self.containers.iter().flat_map(|container| container.windows.iter().flatten());
        let shown = windows.flat_map(|window| window.shows.values());
        shown.filter(|&&page| page >= range.0 && page < range.0 + range.1).count() as u64
    }

    pub(crate) fn region_of(&self, page: u64) -> Option<Range> {
        self.regions.keys().copied().find(|&(first, pages)| page >= first && page < first + pages)
    }

    pub(crate) fn claim(&mut self, first: u64, pages: u64) -> Asked {
        if pages == 0 {
            return Err(Errno::EINVAL);
        }
        if let Some(region) = self.regions.get_mut(&(first, pages)) {
            region.owners += 1;
            return Ok(());
        }
        if self.regions.keys().any(|&(other, length)| first < other + length && other < first + pages) {
            return Err(Errno::EINVAL);
        }
        if first + pages > HOLE {
            return Err(Errno::EFAULT);
        }
        self.regions.insert((first, pages), Region { owners: 1 });
        Ok(())
    }

    pub(crate) fn give_up(&mut self, range: Range) -> Asked {
        let mapped = self.mapped(range);
        let region = self.regions.get_mut(&range).ok_or(Errno::ENOENT)?;
        if region.owners > 1 {
            region.owners -= 1;
        } else if mapped > 0 {
            return Err(Errno::EBUSY);
        } else {
            self.regions.remove(&range);
        }
        Ok(())
    }

    /// Releases regions without owner and mappings.
    pub(crate) fn sweep(&mut self) {
        let gone: Vec<Range> = self
            .regions
            .iter()
            .filter(|(range, region)| region.owners == 0 && self.mapped(**range) == 0)
            .map(|(range, _)| *range)
            .collect();
        gone.iter().for_each(|range| {
            self.regions.remove(range);
        });
    }

    /// Whether a page can be mapped now.
    pub(crate) fn admits(&self, page: u64) -> Asked {
        match self.region_of(page) {
            None => Err(Errno::EINVAL),
            Some(range) if self.regions[&range].owners == 0 => Err(Errno::ENXIO),
            Some(_) => Ok(()),
        }
    }

    pub(crate) fn map(
        &mut self,
        container: usize,
        page: u64,
        at: u64,
        pages: u64,
        access: Option<Access>,
    ) -> Asked {
        if !self.containers[container].enabled {
            return Err(Errno::EPERM);
        }
        self.containers[container].make_default();
        let window = self.containers[container].window(at).ok_or(Errno::ENXIO)?;
        access.ok_or(Errno::EINVAL)?;
        if at - window.start + pages > window.entries {
            return Err(Errno::EINVAL);
        }
        for step in 0..pages {
            let admitted = self.admits(page + step);
            if let Some(window) = self.containers[container].window(at) {
                let first = at - window.start;
                match admitted {
                    Ok(()) => {
                        window.shows.insert(first + step, page + step);
                    }
                    Err(errno) => {
                        (first..first + step).for_each(|index| {
                            window.shows.remove(&index);
                        });
                        return Err(errno);
                    }
                }
            }
        }
        Ok(())
    }

    pub(crate) fn unmap(&mut self, container: usize, at: u64, pages: u64) -> Asked {
        let container = &mut self.containers[container];
        if !container.enabled {
            return Err(Errno::EPERM);
        }
        container.make_default();
        let window = container.window(at).ok_or(Errno::ENXIO)?;
        let first = at - window.start;
        if first + pages > window.entries {
            return Err(Errno::EINVAL);
        }
        window.shows.retain(|index, _| *index < first || *index >= first + pages);
        Ok(())
    }

    pub(crate) fn charge(&self) -> u64 {
        let tables = self.containers.iter().flat_map(|container| container.windows.iter().flatten());
        self.regions.keys().map(|range| range.1).sum::<u64>()
            + tables.map(|window| window.charge).sum::<u64>()
    }
}
