//! A burst: many maps in a row, with the fields of the translator in registers.
//!
//! The fence of each map orders memory, so a translator reads its fields from memory again after it. A burst has a copy of
//! them by value. Nothing else is different: a map stores to the same counter, passes the same fence and loads the same ref.
//!
//! A mapping of a burst is a host address and the counter that has its unit. Only the translator's thread may write that
//! counter, and only while no other thread uses the translator. So neither a burst nor its mappings can be sent to another
//! thread, and both borrow the translator: as long as one of them lives, it cannot be moved, refreshed or used otherwise.

#![expect(unsafe_code, reason = "a mapping refers to the counter that has its unit")]

use core::fmt;
use core::marker::PhantomData;
use core::mem;

use super::{Acquired, Translator};
use crate::addr::{HostAddr, PageShift, UserAddr};
use crate::lookup::region::{MapError, Mapping};
use crate::sync::atomic::AtomicI64;
use crate::sync::percpu_ref::PercpuRef;
use crate::translator::fast_path::{Arrays, FastResult};

/// A translator's fields by value, for many maps in a row: [`Translator::burst`].
pub struct Burst<'t> {
    arrays: Arrays,
    translator: &'t mut Translator,
    /// Not `Send`, as its mappings: they are counted where it counts.
    thread: PhantomData<*const ()>,
}

/// One live mapping of one page, made by a [`Burst`]. Dropping it releases it.
///
/// While it lives, its region cannot be unregistered and the page stays pinned at [`hpa`](Self::hpa). It cannot outlive the
/// borrow of the translator nor leave its thread; [`Burst::keep`] turns it into a [`Mapping`], which can.
///
/// The translator is borrowed as long as the mapping lives:
/// ```compile_fail,E0499
/// # use prereg::{PageShift, Translator, UserAddr};
/// fn refreshed_under_it(translator: &mut Translator, ua: UserAddr) {
///     let mapping = translator.burst().map(ua, PageShift::K4);
///     translator.refresh();
///     drop(mapping);
/// }
/// ```
/// ```compile_fail,E0505
/// # use prereg::{PageShift, Translator, UserAddr};
/// fn outlives_it(mut translator: Translator, ua: UserAddr) {
///     let mapping = translator.burst().map(ua, PageShift::K4);
///     drop(translator);
///     drop(mapping);
/// }
/// ```
/// Another thread cannot release it, nor go on with the burst:
/// ```compile_fail,E0277
/// # use prereg::{PageShift, Translator, UserAddr};
/// fn released_elsewhere(translator: &mut Translator, ua: UserAddr) {
///     let mapping = translator.burst().map(ua, PageShift::K4);
///     std::thread::scope(|scope| _ = scope.spawn(move || drop(mapping)));
/// }
/// ```
/// ```compile_fail,E0277
/// # use prereg::{PageShift, Translator, UserAddr};
/// fn mapped_elsewhere(translator: &mut Translator, ua: UserAddr) {
///     let mut burst = translator.burst();
///     let mapping = burst.map(ua, PageShift::K4);
///     std::thread::scope(|scope| _ = scope.spawn(move || drop(burst.map(ua, PageShift::K4))));
///     drop(mapping);
/// }
/// ```
#[must_use = "the page is mapped only while this lives"]
pub struct BurstMapping<'t> {
    host: HostAddr,
    /// The slot, and the counters that have its unit: of the translator's reader, which lives longer than the borrow.
    slot: usize,
    counts: *const AtomicI64,
    /// Not `Send`: one thread writes the counter.
    borrow: PhantomData<(&'t (), *const ())>,
}

impl Translator {
    /// A burst: this translator's fields by value, for many maps in a row. It takes some instructions to make, and saves
    /// some on each map.
    ///
    /// ```
    /// use prereg::{AddressSpace, Granule, PageShift, UserAddr};
    /// # use prereg_sim::SimHost;
    /// # let host = SimHost::new(Granule::K4);
    /// # let ram = host.memory(0x7f00_0000_0000, 16 << 12);
    /// # let space = AddressSpace::builder(host).build()?;
    /// let reg = space.register(&ram)?;
    /// let mut translator = space.translator();
    /// let mut burst = translator.burst();
    /// for page in 0..16 {
    ///     let ua = UserAddr::new(reg.ua().raw() + page * 4096);
    ///     let mapping = burst.map(ua, PageShift::K4)?;
    ///     println!("{ua} is at {}", mapping.hpa());
    ///     // Released here.
    /// }
    /// let first = burst.map(reg.ua(), PageShift::K4)?;
    /// let second = burst.map(reg.ua(), PageShift::K4)?;
    /// // For longer than the burst.
    /// let kept = burst.keep(first, reg.ua(), PageShift::K4).map_err(|_| "another burst's, or another page's")?;
    /// drop(second);
    /// translator.unmap(kept);
    /// reg.unregister()?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[inline]
    pub fn burst(&mut self) -> Burst<'_> {
        Burst { arrays: self.path.arrays, translator: self, thread: PhantomData }
    }
}

impl<'t> Burst<'t> {
    /// Maps the page of `2^shift` bytes that holds `ua`, as [`Translator::map`].
    ///
    /// # Errors
    /// As [`Translator::map`].
    #[inline(always)]
    pub fn map(&mut self, ua: UserAddr, shift: PageShift) -> Result<BurstMapping<'t>, MapError> {
        let (host, slot) = match self.translator.path.enter(self.arrays, ua, shift) {
            FastResult::Entered(host, slot) => (host, slot),
            FastResult::Counted(slot) => {
                self.slow(|translator| translator.acquire_counted(ua, shift, slot))?
            }
            FastResult::Missed => self.slow(|translator| translator.acquire_cold(ua, shift))?,
        };
        Ok(BurstMapping { host: HostAddr::new(host), slot, counts: self.arrays.counts, borrow: PhantomData })
    }

    /// A map by the translator, which may switch to a newer snapshot.
    #[inline(always)]
    fn slow(&mut self, acquire: impl FnOnce(&mut Translator) -> Acquired) -> Result<Acquired, MapError> {
        let (host, slot) = acquire(self.translator);
        self.arrays = self.translator.path.arrays;
        if slot == 0 { Err(self.translator.failure()) } else { Ok((host, slot)) }
    }

    /// Turns `mapping` of the page of `2^shift` bytes around `ua` into a [`Mapping`], which may outlive the burst and leave
    /// the thread.
    ///
    /// # Errors
    /// The mapping as it was, if another translator made it or if it is not of that page.
    pub fn keep<'a>(
        &self,
        mapping: BurstMapping<'a>,
        ua: UserAddr,
        shift: PageShift,
    ) -> Result<Mapping, BurstMapping<'a>> {
        let Some(slot) = self.translator.slot_mapped(&mapping, ua, shift) else { return Err(mapping) };
        let host = mapping.host;
        // The unit is the new mapping's.
        mem::forget(mapping);
        Ok(Mapping::new(host, ua, shift, slot, self.translator.holder_counts()))
    }
}

impl Translator {
    /// The slot of a mapping that a burst of this translator made of the page of `shift` around `ua`.
    fn slot_mapped(&self, mapping: &BurstMapping<'_>, ua: UserAddr, shift: PageShift) -> Option<u32> {
        let slot = mapping.slot as u32;
        let region = self.reader_view().region_in(slot).filter(|_| self.reader.counts_in(mapping.counts))?;
        // SAFETY: the mapping's unit keeps it.
        let region = unsafe { region.as_ref() };
        let is_it = region.admits(ua, shift).is_ok() && region.table.host(ua) == mapping.host;
        is_it.then_some(slot)
    }
}

impl BurstMapping<'_> {
    /// The address at which a device reaches the byte that was asked for.
    #[must_use]
    #[inline(always)]
    pub fn hpa(&self) -> HostAddr {
        self.host
    }
}

impl Drop for BurstMapping<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the unit is counted there; the counters live as long as the reader, whose translator is borrowed, and
        // the translator's thread is this one.
        PercpuRef::leave(unsafe { &*self.counts.wrapping_add(self.slot) });
    }
}

impl fmt::Debug for Burst<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Burst").field("holder", &self.translator.holder()).finish_non_exhaustive()
    }
}

impl fmt::Debug for BurstMapping<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BurstMapping").field("host", &self.host).finish_non_exhaustive()
    }
}
