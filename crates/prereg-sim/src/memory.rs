//! The simulated user address space: the mappings, and the host page behind each page.
//!
//! A mapping maps part of an object; two mappings of one object are aliases. Host page numbers are computed, so 2^28
//! pages cost as much as one. Base pages are never adjacent on the host; huge pages are contiguous inside and never
//! adjacent to each other.

use std::collections::BTreeMap;

use prereg::{Granule, PageShift};

/// Backing of simulated memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SimBacking {
    /// Base pages, never adjacent on the host.
    Base,
    /// Huge pages: contiguous and aligned blocks of `2^shift` bytes.
    Huge(PageShift),
    /// Memory that cannot be pinned (page-frame mappings, device memory).
    Unpinnable,
    /// No pages: a mapping beyond the end of its file.
    Missing,
}

/// Protection of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protection {
    /// Readable and writable.
    ReadWrite,
    /// Readable only: pinning for write fails.
    ReadOnly,
    /// No access.
    None,
}

/// Properties of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapSpec {
    /// The backing.
    pub backing: SimBacking,
    /// The protection.
    pub protection: Protection,
}

impl Default for MapSpec {
    fn default() -> Self {
        Self { backing: SimBacking::Base, protection: Protection::ReadWrite }
    }
}

/// An object: pages that mappings map and pins pin.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct ObjectId(u64);

#[derive(Clone, Copy, Debug)]
struct Object {
    first_frame: u64,
    backing: SimBacking,
}

/// A mapping: user pages up to `last` map `object` from page `offset` on.
#[derive(Clone, Copy, Debug)]
struct Vma {
    last: u64,
    object: ObjectId,
    offset: u64,
    protection: Protection,
    /// Locked by `mlock`.
    locked: bool,
}

/// Pages of an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct ObjectRange {
    pub(crate) object: ObjectId,
    pub(crate) first: u64,
    pub(crate) pages: u64,
}

/// A page that cannot be pinned, and the reason.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct UnpinnablePage {
    pub(crate) page: u64,
    pub(crate) why: &'static str,
}

/// The simulated address space, in page numbers.
#[derive(Clone, Debug)]
pub(crate) struct UserSpace {
    granule: Granule,
    vmas: BTreeMap<u64, Vma>,
    objects: BTreeMap<ObjectId, Object>,
    next_object: u64,
    next_frame: u64,
    /// Pages of locked mappings.
    locked_pages: u64,
}

impl UserSpace {
    pub(crate) fn new(granule: Granule) -> Self {
        // Frame 0 stays unused, so that no pinned page has address 0.
        Self {
            granule,
            vmas: BTreeMap::new(),
            objects: BTreeMap::new(),
            next_object: 0,
            next_frame: 1 << 18,
            locked_pages: 0,
        }
    }

    /// Maps a new object at `first..first + pages`, replacing existing mappings.
    pub(crate) fn map(&mut self, first: u64, pages: u64, spec: MapSpec) -> ObjectId {
        let object = ObjectId(self.next_object);
        self.next_object += 1;
        let align = match spec.backing {
            SimBacking::Huge(shift) => self.pages_per(shift),
            _ => 1,
        };
        let first_frame = self.next_frame.next_multiple_of(2 * align);
        self.next_frame = first_frame + 2 * pages.next_multiple_of(align) + 2;
        self.objects.insert(object, Object { first_frame, backing: spec.backing });
        self.map_object(first, pages, object, 0, spec.protection);
        object
    }

    fn map_object(&mut self, first: u64, pages: u64, object: ObjectId, offset: u64, protection: Protection) {
        self.unmap(first, pages);
        self.vmas.insert(first, Vma { last: first + pages - 1, object, offset, protection, locked: false });
    }

    /// Maps the pages at `source` at `first` too.
    pub(crate) fn alias(&mut self, first: u64, source: u64, pages: u64) {
        if let Some(vma) = self.vma(source) {
            let (start, vma) = vma;
            self.map_object(first, pages, vma.object, vma.offset + (source - start), vma.protection);
        }
    }

    /// Unmaps `first..first + pages`, splitting mappings if necessary.
    pub(crate) fn unmap(&mut self, first: u64, pages: u64) {
        for (start, vma) in self.cut(first, pages) {
            debug_assert!(start >= first && vma.last < first + pages);
            if vma.locked {
                self.locked_pages -= vma.last - start + 1;
            }
        }
    }

    /// Pages of locked mappings.
    pub(crate) fn locked_pages(&self) -> u64 {
        self.locked_pages
    }

    /// How many mapped pages of `first..first + pages` are not locked.
    pub(crate) fn unlocked(&self, first: u64, pages: u64) -> u64 {
        let mut count = 0;
        let mut page = first;
        while let Some((start, vma)) = self.at_or_after(page) {
            if start >= first + pages {
                break;
            }
            if !vma.locked {
                count += vma.last.min(first + pages - 1) - start.max(first) + 1;
            }
            page = vma.last + 1;
        }
        count
    }

    fn at_or_after(&self, page: u64) -> Option<(u64, Vma)> {
        self.vma(page).or_else(|| self.vmas.range(page..).next().map(|(&start, vma)| (start, *vma)))
    }

    /// Locks or unlocks the mapped pages of `first..first + pages`.
    pub(crate) fn lock(&mut self, first: u64, pages: u64, locked: bool) {
        for (start, vma) in self.cut(first, pages) {
            let length = vma.last - start + 1;
            match (vma.locked, locked) {
                (false, true) => self.locked_pages += length,
                (true, false) => self.locked_pages -= length,
                _ => {}
            }
            self.vmas.insert(start, Vma { locked, ..vma });
        }
    }

    /// The address space of a child after a fork: the same mappings, unlocked.
    pub(crate) fn fork(&self) -> Self {
        let mut child = self.clone();
        for vma in child.vmas.values_mut() {
            vma.locked = false;
        }
        child.locked_pages = 0;
        child
    }

    /// Changes the protection of `first..first + pages`.
    pub(crate) fn protect(&mut self, first: u64, pages: u64, protection: Protection) {
        for (start, vma) in self.cut(first, pages) {
            self.vmas.insert(start, Vma { protection, ..vma });
        }
    }

    /// Removes and returns the mappings in `first..first + pages`, splitting those that reach outside.
    fn cut(&mut self, first: u64, pages: u64) -> Vec<(u64, Vma)> {
        let last = first + (pages - 1);
        let hit: Vec<u64> = self
            .vmas
            .range(..=last)
            .rev()
            .take_while(|(_, vma)| vma.last >= first)
            .map(|(&start, _)| start)
            .collect();
        let mut taken = Vec::new();
        for start in hit {
            let Some(vma) = self.vmas.remove(&start) else { continue };
            if start < first {
                self.vmas.insert(start, Vma { last: first - 1, ..vma });
            }
            if vma.last > last {
                self.vmas.insert(last + 1, Vma { offset: vma.offset + (last + 1 - start), ..vma });
            }
            let from = start.max(first);
            taken.push((from, Vma { last: vma.last.min(last), offset: vma.offset + (from - start), ..vma }));
        }
        taken
    }

    fn vma(&self, page: u64) -> Option<(u64, Vma)> {
        let (&start, vma) = self.vmas.range(..=page).next_back()?;
        (vma.last >= page).then_some((start, *vma))
    }

    /// The objects' pages behind `first..first + pages`, for writing.
    pub(crate) fn object_ranges(&self, first: u64, pages: u64) -> Result<Vec<ObjectRange>, UnpinnablePage> {
        let mut found = Vec::new();
        let mut page = first;
        let end = first + pages;
        while page < end {
            let why = |why| UnpinnablePage { page, why };
            let (start, vma) = self.vma(page).ok_or(why("nothing is mapped there"))?;
            match vma.protection {
                Protection::ReadWrite => {}
                Protection::ReadOnly => {
                    return Err(why("the mapping is read-only; a device may write what is pinned"));
                }
                Protection::None => return Err(why("the mapping allows no access")),
            }
            match self.objects[&vma.object].backing {
                SimBacking::Unpinnable => {
                    return Err(why("it is device memory, which has no pages to pin"));
                }
                SimBacking::Missing => return Err(why("the file ends before it")),
                SimBacking::Base | SimBacking::Huge(_) => {}
            }
            let upto = (vma.last + 1).min(end);
            found.push(ObjectRange {
                object: vma.object,
                first: vma.offset + (page - start),
                pages: upto - page,
            });
            page = upto;
        }
        Ok(found)
    }

    /// Unmapped parts of `first..first + pages`: first page and length.
    pub(crate) fn gaps(&self, first: u64, pages: u64) -> Vec<(u64, u64)> {
        let end = first + pages;
        let mut gaps = Vec::new();
        let mut page = first;
        while page < end {
            if let Some((_, vma)) = self.vma(page) {
                page = vma.last + 1;
                continue;
            }
            let upto = self.vmas.range(page..end).next().map_or(end, |(&start, _)| start);
            gaps.push((page, upto - page));
            page = upto;
        }
        gaps
    }

    /// The host page number of a page of an object.
    pub(crate) fn frame(&self, object: ObjectId, page: u64) -> u64 {
        let Object { first_frame, backing } = self.objects[&object];
        match backing {
            SimBacking::Base | SimBacking::Unpinnable | SimBacking::Missing => first_frame + 2 * page,
            SimBacking::Huge(shift) => {
                let block = self.pages_per(shift);
                first_frame + page / block * (2 * block) + page % block
            }
        }
    }

    /// Contiguous runs of `segment` on the host: first frame and length, in order.
    pub(crate) fn runs(&self, segment: ObjectRange) -> impl Iterator<Item = (u64, u64)> + '_ {
        let block = match self.objects[&segment.object].backing {
            SimBacking::Huge(shift) => self.pages_per(shift),
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
