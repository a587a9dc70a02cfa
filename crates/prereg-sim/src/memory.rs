//! The pretended user address space: which pages are mapped where, and which host page backs each.
//!
//! A mapping shows part of an object; two mappings of one object are aliases. Host page numbers follow from a formula, so
//! that 2^28 pages cost no more than one: base pages are never neighbours on the host, huge pages are contiguous inside and
//! never touch each other.

use std::collections::BTreeMap;

use prereg::{Granule, PageShift};

/// What backs a piece of pretended memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// Base pages, none beside another on the host.
    Base,
    /// Huge pages: contiguous and aligned blocks of `2^shift` bytes.
    Huge(PageShift),
    /// Something that cannot be pinned (page-frame mappings, device memory).
    Unpinnable,
    /// Nothing: a mapping beyond the end of its file.
    Missing,
}

/// What the pretended page tables allow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// Readable and writable.
    ReadWrite,
    /// Readable only: pinning for write fails.
    ReadOnly,
    /// Nothing.
    None,
}

/// How to map pretended memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSpec {
    /// What backs it.
    pub backing: Backing,
    /// What is allowed.
    pub protection: Protection,
}

impl Default for MapSpec {
    fn default() -> Self {
        Self { backing: Backing::Base, protection: Protection::ReadWrite }
    }
}

/// Pages of some origin; mappings show them, pins hold them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ObjectId(u64);

#[derive(Clone, Copy, Debug)]
struct Object {
    first_frame: u64,
    backing: Backing,
}

/// A mapped stretch: page numbers `first..=last` of user memory show `object` from `offset` on.
#[derive(Clone, Copy, Debug)]
struct Area {
    last: u64,
    object: ObjectId,
    offset: u64,
    protection: Protection,
    /// Locked by `mlock`.
    locked: bool,
}

/// A stretch of one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Segment {
    pub(crate) object: ObjectId,
    pub(crate) first: u64,
    pub(crate) pages: u64,
}

/// Why a page is not there to be pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Missing {
    pub(crate) page: u64,
    pub(crate) why: &'static str,
}

/// The pretended address space, in page numbers.
#[derive(Clone, Debug)]
pub(crate) struct UserSpace {
    granule: Granule,
    areas: BTreeMap<u64, Area>,
    objects: BTreeMap<ObjectId, Object>,
    next_object: u64,
    next_frame: u64,
    /// Pages of areas that are locked.
    locked_pages: u64,
}

impl UserSpace {
    pub(crate) fn new(granule: Granule) -> Self {
        // Host page 0 stays unused, so that no pinned page has address 0.
        Self {
            granule,
            areas: BTreeMap::new(),
            objects: BTreeMap::new(),
            next_object: 0,
            next_frame: 1 << 18,
            locked_pages: 0,
        }
    }

    /// Maps a new object at `first..first + pages`; what was mapped there is gone.
    pub(crate) fn map(&mut self, first: u64, pages: u64, spec: MapSpec) -> ObjectId {
        let object = ObjectId(self.next_object);
        self.next_object += 1;
        let align = match spec.backing {
            Backing::Huge(shift) => self.pages_per(shift),
            _ => 1,
        };
        let first_frame = self.next_frame.next_multiple_of(2 * align);
        self.next_frame = first_frame + 2 * pages.next_multiple_of(align) + 2;
        self.objects.insert(object, Object { first_frame, backing: spec.backing });
        self.show(first, pages, object, 0, spec.protection);
        object
    }

    fn show(&mut self, first: u64, pages: u64, object: ObjectId, offset: u64, protection: Protection) {
        self.unmap(first, pages);
        self.areas.insert(first, Area { last: first + pages - 1, object, offset, protection, locked: false });
    }

    /// Maps at `first` what is mapped at `source`.
    pub(crate) fn alias(&mut self, first: u64, source: u64, pages: u64) {
        if let Some(area) = self.area(source) {
            let (start, area) = area;
            self.show(first, pages, area.object, area.offset + (source - start), area.protection);
        }
    }

    /// Unmaps `first..first + pages`, cutting areas where need be.
    pub(crate) fn unmap(&mut self, first: u64, pages: u64) {
        for (start, area) in self.cut(first, pages) {
            debug_assert!(start >= first && area.last < first + pages);
            if area.locked {
                self.locked_pages -= area.last - start + 1;
            }
        }
    }

    /// Pages of areas that are locked.
    pub(crate) fn locked_pages(&self) -> u64 {
        self.locked_pages
    }

    /// How many mapped pages of `first..first + pages` are not locked.
    pub(crate) fn unlocked(&self, first: u64, pages: u64) -> u64 {
        let mut count = 0;
        let mut page = first;
        while let Some((start, area)) = self.at_or_after(page) {
            if start >= first + pages {
                break;
            }
            if !area.locked {
                count += area.last.min(first + pages - 1) - start.max(first) + 1;
            }
            page = area.last + 1;
        }
        count
    }

    fn at_or_after(&self, page: u64) -> Option<(u64, Area)> {
        self.area(page).or_else(|| self.areas.range(page..).next().map(|(&start, area)| (start, *area)))
    }

    /// Locks or unlocks what is mapped in `first..first + pages`.
    pub(crate) fn lock(&mut self, first: u64, pages: u64, locked: bool) {
        for (start, area) in self.cut(first, pages) {
            let length = area.last - start + 1;
            match (area.locked, locked) {
                (false, true) => self.locked_pages += length,
                (true, false) => self.locked_pages -= length,
                _ => {}
            }
            self.areas.insert(start, Area { locked, ..area });
        }
    }

    /// What a child process has after a fork: the same mappings, none of them locked.
    pub(crate) fn fork(&self) -> Self {
        let mut child = self.clone();
        for area in child.areas.values_mut() {
            area.locked = false;
        }
        child.locked_pages = 0;
        child
    }

    /// Changes what is allowed at `first..first + pages`.
    pub(crate) fn protect(&mut self, first: u64, pages: u64, protection: Protection) {
        for (start, area) in self.cut(first, pages) {
            self.areas.insert(start, Area { protection, ..area });
        }
    }

    /// Takes out everything mapped in `first..first + pages` and returns it, cut to fit.
    fn cut(&mut self, first: u64, pages: u64) -> Vec<(u64, Area)> {
        let last = first + (pages - 1);
        let hit: Vec<u64> = self
            .areas
            .range(..=last)
            .rev()
            .take_while(|(_, area)| area.last >= first)
            .map(|(&start, _)| start)
            .collect();
        let mut taken = Vec::new();
        for start in hit {
            let Some(area) = self.areas.remove(&start) else { continue };
            if start < first {
                self.areas.insert(start, Area { last: first - 1, ..area });
            }
            if area.last > last {
                self.areas.insert(last + 1, Area { offset: area.offset + (last + 1 - start), ..area });
            }
            let from = start.max(first);
            taken.push((
                from,
                Area { last: area.last.min(last), offset: area.offset + (from - start), ..area },
            ));
        }
        taken
    }

    fn area(&self, page: u64) -> Option<(u64, Area)> {
        let (&start, area) = self.areas.range(..=page).next_back()?;
        (area.last >= page).then_some((start, *area))
    }

    /// The stretches that back `first..first + pages` for writing.
    pub(crate) fn segments(&self, first: u64, pages: u64) -> Result<Vec<Segment>, Missing> {
        let mut found = Vec::new();
        let mut page = first;
        let end = first + pages;
        while page < end {
            let why = |why| Missing { page, why };
            let (start, area) = self.area(page).ok_or(why("nothing is mapped there"))?;
            match area.protection {
                Protection::ReadWrite => {}
                Protection::ReadOnly => {
                    return Err(why("the mapping is read-only; a device may write what is pinned"));
                }
                Protection::None => return Err(why("the mapping allows no access")),
            }
            match self.objects[&area.object].backing {
                Backing::Unpinnable => {
                    return Err(why("it is device memory, which has no pages to pin"));
                }
                Backing::Missing => return Err(why("the file ends before it")),
                Backing::Base | Backing::Huge(_) => {}
            }
            let upto = (area.last + 1).min(end);
            found.push(Segment {
                object: area.object,
                first: area.offset + (page - start),
                pages: upto - page,
            });
            page = upto;
        }
        Ok(found)
    }

    /// The stretches of `first..first + pages` where nothing is mapped: first page and length.
    pub(crate) fn gaps(&self, first: u64, pages: u64) -> Vec<(u64, u64)> {
        let end = first + pages;
        let mut gaps = Vec::new();
        let mut page = first;
        while page < end {
            if let Some((_, area)) = self.area(page) {
                page = area.last + 1;
                continue;
            }
            let upto = self.areas.range(page..end).next().map_or(end, |(&start, _)| start);
            gaps.push((page, upto - page));
            page = upto;
        }
        gaps
    }

    /// The host page number of a page of an object.
    pub(crate) fn frame(&self, object: ObjectId, page: u64) -> u64 {
        let Object { first_frame, backing } = self.objects[&object];
        match backing {
            Backing::Base | Backing::Unpinnable | Backing::Missing => first_frame + 2 * page,
            Backing::Huge(shift) => {
                let block = self.pages_per(shift);
                first_frame + page / block * (2 * block) + page % block
            }
        }
    }

    /// Contiguous stretches of `segment` on the host: first frame and length, in order.
    pub(crate) fn runs(&self, segment: Segment) -> impl Iterator<Item = (u64, u64)> + '_ {
        let block = match self.objects[&segment.object].backing {
            Backing::Huge(shift) => self.pages_per(shift),
            _ => 1,
        };
        let end = segment.first + segment.pages;
        let mut page = segment.first;
        std::iter::from_fn(move || {
            if page == end {
                return None;
            }
            let upto = ((page / block + 1) * block).min(end);
            let run = (self.frame(segment.object, page), upto - page);
            page = upto;
            Some(run)
        })
    }

    fn pages_per(&self, shift: PageShift) -> u64 {
        (shift.bytes() / self.granule.bytes()).max(1)
    }
}
