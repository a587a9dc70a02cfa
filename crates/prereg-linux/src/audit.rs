//! Audit of pinned pages: whether they still back the addresses that they were registered under.
//!
//! A pin keeps the page, not its mapping. After a hole punched into a file, `MADV_DONTNEED` or a new mapping over the
//! old one, the process sees a new page while the device keeps using the old one, and no error is raised. An audit
//! reads the page map again and names every page that changed.

use prereg::{HostAddr, UserAddr, UserRange};

use crate::pagemap::{PageBacking, Pagemap, PagemapError};
use crate::sys;

/// A page whose mapping changed after it was pinned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangedPage {
    /// Its user address.
    pub ua: UserAddr,
    /// The pinned page, which the device uses.
    pub was: HostAddr,
    /// The page that the process sees now; `None` when nothing is mapped there.
    pub now: Option<HostAddr>,
}

/// Result of an audit.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Audit {
    /// Pages compared.
    pub checked: u64,
    /// Pages that differ, in order.
    pub changed: Vec<ChangedPage>,
    /// Pages whose frame this process is not allowed to see.
    pub unreadable: u64,
    /// Pages that were not compared, because the caller knew no address for them.
    pub skipped: u64,
}

impl Audit {
    /// Whether every page to be compared could be compared and had not changed.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.changed.is_empty() && self.unreadable == 0
    }
}

/// Compares every page of `range` with the host address that `expected` returns for its first byte (`None`: do not
/// compare).
///
/// A page that is mapped but not present in the page table is faulted in for reading. Meant for physical addresses
/// ([`AddressKind::Physical`](prereg::AddressKind::Physical)).
///
/// ```
/// use prereg::{HostAddr, Memory, UserRange};
/// use prereg_linux::{GuestMemory, Pagemap, audit_range};
/// let memory = GuestMemory::anonymous(1 << 16)?;
/// let map = Pagemap::open()?;
/// let range = UserRange::new(memory.ua(), memory.bytes(), map.granule())?;
/// let audit = audit_range(&map, range, |_| Some(HostAddr::new(0x1000)))?;
/// assert!(!audit.is_clean());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// [`PagemapError`].
pub fn audit_range(
    map: &Pagemap,
    range: UserRange,
    mut expected: impl FnMut(UserAddr) -> Option<HostAddr>,
) -> Result<Audit, PagemapError> {
    let mut audit = Audit::default();
    map.runs(range, |run| {
        if run.backing == PageBacking::Absent {
            let bytes = run.pages << map.granule().shift().get();
            let part = UserRange::new(run.ua, bytes, map.granule()).ok();
            prefault(run.ua.raw(), bytes, map.granule().bytes());
            return match part {
                Some(part) => map.runs(part, |run| audit.compare::<PagemapError>(map, run, &mut expected)),
                None => Ok(()),
            };
        }
        audit.compare(map, run, &mut expected)
    })?;
    Ok(audit)
}

/// Faults in the mapped pages of `[ua, ua + bytes)`: in one call, or page by page if there are holes.
fn prefault(ua: u64, bytes: u64, page: u64) {
    if sys::populate_read(ua, bytes).is_ok() {
        return;
    }
    for offset in (0..bytes).step_by(usize::try_from(page).unwrap_or(usize::MAX)) {
        // An unmapped page stays absent and is reported as such.
        let _ = sys::populate_read(ua + offset, page);
    }
}

impl Audit {
    fn compare<E>(
        &mut self,
        map: &Pagemap,
        run: crate::pagemap::PageRun,
        expected: &mut impl FnMut(UserAddr) -> Option<HostAddr>,
    ) -> Result<(), E> {
        for page in 0..run.pages {
            let offset = page << map.granule().shift().get();
            let ua = UserAddr::new(run.ua.raw() + offset);
            let Some(was) = expected(ua) else {
                self.skipped += 1;
                continue;
            };
            let now = match run.backing {
                PageBacking::Hidden => {
                    self.unreadable += 1;
                    continue;
                }
                PageBacking::Frames(host) => host.checked_add(offset),
                PageBacking::Absent => None,
            };
            self.checked += 1;
            if now != Some(was) {
                self.changed.push(ChangedPage { ua, was, now });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;
    use crate::pagemap::PageRun;
    use prereg::Granule;

    #[test]
    fn every_page_lands_in_exactly_one_count() {
        let map = Pagemap::open().unwrap();
        let page = map.granule().bytes();
        let memory = GuestMemory::memfd("audit", 8 * page).unwrap();
        memory.write(page, &[1]).unwrap();
        let range = UserRange::new(memory.ua(), memory.bytes(), map.granule()).unwrap();
        let audit =
            audit_range(&map, range, |ua| (ua != memory.ua()).then_some(HostAddr::new(page))).unwrap();
        assert_eq!(audit.skipped, 1);
        assert_eq!(audit.checked + audit.unreadable, 7);
        assert_eq!(audit.changed.len() as u64, audit.checked);
        assert!(!audit.is_clean());
    }

    #[test]
    fn pages_are_compared_one_by_one_within_a_run() {
        let map = Pagemap::open().unwrap();
        let page = map.granule().bytes();
        let mut audit = Audit::default();
        let run =
            PageRun { ua: UserAddr::new(0), pages: 4, backing: PageBacking::Frames(HostAddr::new(8 * page)) };
        let right = |ua: UserAddr| HostAddr::new(ua.raw() + 8 * page);
        let third = UserAddr::new(2 * page);
        let mut expected = |ua| Some(if ua == third { HostAddr::new(0) } else { right(ua) });
        audit.compare::<PagemapError>(&map, run, &mut expected).unwrap();
        assert_eq!(audit.checked, 4);
        assert_eq!(
            audit.changed,
            [ChangedPage { ua: third, was: HostAddr::new(0), now: Some(right(third)) }]
        );
        let gone = PageRun { backing: PageBacking::Absent, pages: 1, ..run };
        audit.compare::<PagemapError>(&map, gone, &mut |_| Some(HostAddr::new(page))).unwrap();
        assert_eq!(audit.changed[1].now, None);
        assert!(Granule::K4.bytes() <= page);
    }
}
