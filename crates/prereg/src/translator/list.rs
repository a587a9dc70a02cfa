//! Mapping lists of pages, as a guest's indirect hypercall or a scattered I/O does: all pages or none.
//!
//! A list is processed in blocks. For each block all index entries are loaded first and the page numbers behind them
//! prefetched, so that their cache misses overlap; then each page is counted and its number read. Page by page, only as
//! many misses overlap as fit into the processor's window beside the other work.

use core::ptr;

use crate::addr::{HostAddr, PageShift, UserAddr};
use crate::errno::Errno;
use crate::lookup::region::{MapError, Mapping};
use crate::translator::Translator;

/// Pages of a block: somewhat more than the cache misses that a processor can have under way.
const BLOCK: usize = 64;

/// The reason why a list was not mapped. Nothing is counted.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// A page of it cannot be mapped. The page's errno.
    #[error("page {index} of the list: {error}")]
    Page {
        /// The index of the page in the list.
        index: usize,
        /// The reason.
        error: MapError,
    },
    /// More pages than output elements for their mappings. EINVAL.
    #[error(
        "the list has {pages} pages and the output has room for {capacity} mappings; pass one element for each page"
    )]
    OutputTooSmall {
        /// Pages asked for.
        pages: usize,
        /// Elements of the output slice.
        capacity: usize,
    },
}

crate::debug_as_display!(ListError);

impl ListError {
    /// The page's, or EINVAL.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Page { error, .. } => error.errno(),
            Self::OutputTooSmall { .. } => Errno::EINVAL,
        }
    }
}

impl Translator {
    /// Maps the page of `2^shift` bytes that holds each address of `list`, in any order and with repetitions, and
    /// stores the mappings in the first elements of `mappings`: all of them, or none. Faster than [`map`](Self::map) in
    /// a loop where page numbers are not in the cache. A mapping that an element held before is dropped.
    ///
    /// ```
    /// use prereg::{AddressSpace, Granule, PageShift, UserAddr};
    /// # use prereg_sim::SimHost;
    /// # let host = SimHost::new(Granule::K4);
    /// # let ram = host.memory(0x7f00_0000_0000, 16 << 12);
    /// # let space = AddressSpace::builder(host).build()?;
    /// let reg = space.register(&ram)?;
    /// let mut t = space.translator();
    /// let page = |number: u64| UserAddr::new(reg.ua().raw() + number * 4096);
    ///
    /// let mut mappings = [const { None }; 8];
    /// t.map_list(&[page(3), page(9), page(3)], PageShift::K4, &mut mappings)?;
    /// assert_eq!(mappings.iter().flatten().count(), 3);
    /// assert!(t.map_list(&[page(0), page(16)], PageShift::K4, &mut [None, None]).is_err()); // none of them
    /// t.unmap_list(&mut mappings);
    /// reg.unregister()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`ListError`]; nothing of the list is counted. Elements up to the page that failed are `None` then, the others
    /// unchanged.
    pub fn map_list(
        &mut self,
        list: &[UserAddr],
        shift: PageShift,
        mappings: &mut [Option<Mapping>],
    ) -> Result<(), ListError> {
        let Some(places) = mappings.get_mut(..list.len()) else {
            return Err(ListError::OutputTooSmall { pages: list.len(), capacity: mappings.len() });
        };
        let mut done = 0;
        for (pages, into) in list.chunks(BLOCK).zip(places.chunks_mut(BLOCK)) {
            let mapped = self.map_block(pages, shift, into);
            done += mapped;
            if mapped < pages.len() {
                let error = self.failure();
                self.unmap_list(&mut places[..done]);
                return Err(ListError::Page { index: done, error });
            }
        }
        Ok(())
    }

    /// [`unmap`](Self::unmap) for every mapping in `mappings`; leaves `None` in each element.
    pub fn unmap_list(&mut self, mappings: &mut [Option<Mapping>]) {
        for mapping in mappings.iter_mut().filter_map(Option::take) {
            self.unmap(mapping);
        }
    }

    /// Prefetches what mapping the page at `ua` will read, if the page index covers it: a hint for callers that know
    /// addresses ahead. Nothing is counted and no address is returned.
    #[inline]
    pub fn prefetch(&self, ua: UserAddr) {
        if let Some(entry) = self.path.load_entry(ua) {
            self.path.prefetch(entry, ua);
        }
    }

    /// Maps a block; returns how many of its pages are mapped. If not all, `failure` returns the reason.
    #[inline]
    fn map_block(&mut self, pages: &[UserAddr], shift: PageShift, into: &mut [Option<Mapping>]) -> usize {
        let mut entries = [ptr::null_mut(); BLOCK];
        let mut done = 0;
        while done < pages.len() {
            let (pages, into) = (&pages[done..], &mut into[done..]);
            self.load_entries(pages, shift, &mut entries);
            let generation = self.generation();
            for ((&ua, &entry), place) in pages.iter().zip(&entries).zip(into) {
                if let Some((host, slot)) = self.acquire_loaded(entry, ua) {
                    *place =
                        Some(Mapping::new(HostAddr::new(host), ua, shift, slot as u32, self.holder_counts()));
                    done += 1;
                    continue;
                }
                let Some((host, slot)) = self.acquire_missed(entry, ua, shift) else { return done };
                // The reference as it is now: the translator may have more counters than before.
                *place =
                    Some(Mapping::new(HostAddr::new(host), ua, shift, slot as u32, self.holder_counts()));
                done += 1;
                // An entry is valid for the snapshot it was loaded from while that one is in use: its slot may be given
                // to another region once the translator uses a newer one.
                if self.generation() != generation {
                    break;
                }
            }
        }
        done
    }

    /// Loads the index entry of each page, null where the inlined path does not serve it, and prefetches the page
    /// numbers behind them.
    #[inline]
    fn load_entries(&self, pages: &[UserAddr], shift: PageShift, entries: &mut [*mut u32; BLOCK]) {
        let served = shift <= self.system_page();
        for (&ua, entry) in pages.iter().zip(entries) {
            let found = self.path.load_entry_fast(ua).filter(|_| served);
            *entry = found.map_or(ptr::null_mut(), |entry| {
                self.path.prefetch(entry, ua);
                entry
            });
        }
    }
}
