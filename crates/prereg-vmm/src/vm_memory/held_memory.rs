//! A view of an `IommuMemory` that holds everything translated through it, until it is dropped.
//!
//! `vm-memory` holds a translation only while it iterates over the slices. virtio-queue's `Reader` and `Writer` collect the
//! slices of a whole descriptor chain first and use them later, when the iterators are gone: an unmap in between would be
//! reported as done while the device still copies. A device makes one `HeldMemory` per chain and takes both from it; the
//! compiler then refuses slices that outlive it.

use std::fmt;
use std::iter::FusedIterator;
use std::sync::{Mutex, PoisonError};
use std::vec;

use vm_memory::bitmap::{BS, Bitmap, BitmapSlice};
use vm_memory::guest_memory::{Error, GuestMemorySliceIterator, Result};
use vm_memory::iommu::IotlbIterator;
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryBackend, GuestMemoryRegion, Iommu, IommuMemory, Permissions,
    VolatileSlice,
};

/// A view of an `IommuMemory` whose translations are held until it is dropped.
///
/// Each access adds a hold, so it is made for one request and dropped with it. Without an enabled IOMMU nothing is held.
pub struct HeldMemory<'m, M: GuestMemoryBackend, I: Iommu + 'm> {
    memory: &'m IommuMemory<M, I>,
    /// Iterators at their end, kept for the translations they own.
    held: Mutex<Vec<IotlbIterator<I::IotlbGuard<'m>>>>,
}

/// The slices of one access, in order.
pub struct HeldSlices<'a, B>(vec::IntoIter<Result<VolatileSlice<'a, B>>>);

/// The type of a region's dirty bitmap.
type BitmapOf<M> = <<M as GuestMemoryBackend>::R as GuestMemoryRegion>::B;

impl<'m, M: GuestMemoryBackend, I: Iommu> HeldMemory<'m, M, I> {
    /// Nothing is held yet.
    #[must_use]
    pub fn new(memory: &'m IommuMemory<M, I>) -> Self {
        Self { memory, held: Mutex::default() }
    }

    /// How many translations are held.
    #[must_use]
    pub fn translations(&self) -> usize {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The slices behind `[iova, iova + count)`, whose translation is held from here on.
    fn translate<'a>(
        &'a self,
        iova: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<HeldSlices<'a, BS<'a, BitmapOf<M>>>> {
        let memory: &'m IommuMemory<M, I> = self.memory;
        let mut translation = memory.iommu().translate(iova, count, access).map_err(Error::IommuError)?;
        let backend = self.memory.get_backend();
        let mut slices = Vec::new();
        let mut offset = 0;
        'translation: for range in translation.by_ref() {
            for slice in backend.get_slices(range.base, range.length) {
                let slice = slice.map(|slice| {
                    let bitmap = self.memory.bitmap().slice_at(iova.0.wrapping_add(offset) as usize);
                    offset += slice.len() as u64;
                    with_bitmap(&slice, bitmap)
                });
                let failed = slice.is_err();
                slices.push(slice);
                if failed {
                    // The slices before it can be used.
                    break 'translation;
                }
            }
        }
        self.held.lock().unwrap_or_else(PoisonError::into_inner).push(translation);
        Ok(HeldSlices(slices.into_iter()))
    }
}

/// This memory with another dirty bitmap: with an IOMMU, writes are logged by I/O virtual address.
#[expect(unsafe_code, reason = "makes a slice of a slice's memory")]
fn with_bitmap<'m, B: BitmapSlice>(slice: &VolatileSlice<'m, B>, bitmap: B) -> VolatileSlice<'m, B> {
    // SAFETY: the memory is the one of `slice`, for as long as `slice` could have been used.
    unsafe { VolatileSlice::with_bitmap(slice.ptr_guard_mut().as_ptr(), slice.len(), bitmap, None) }
}

impl<'m, M: GuestMemoryBackend, I: Iommu> GuestMemory for HeldMemory<'m, M, I> {
    type PhysicalMemory = M;
    type Bitmap = BitmapOf<M>;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.memory.check_range(addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>> {
        if self.memory.get_iommu_enabled() {
            return self.translate(addr, count, access);
        }
        let slices: Vec<_> = self.memory.get_backend().get_slices(addr, count).collect();
        Ok(HeldSlices(slices.into_iter()))
    }

    fn physical_memory(&self) -> Option<&M> {
        self.memory.physical_memory()
    }
}

impl<'a, B> Iterator for HeldSlices<'a, B> {
    type Item = Result<VolatileSlice<'a, B>>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.0.size_hint()
    }
}

impl<B> FusedIterator for HeldSlices<'_, B> {}

impl<'a, B: BitmapSlice> GuestMemorySliceIterator<'a, B> for HeldSlices<'a, B> {}

impl<M: GuestMemoryBackend, I: Iommu> fmt::Debug for HeldMemory<'_, M, I> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldMemory").field("translations", &self.translations()).finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for HeldSlices<'_, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeldSlices").field("left", &self.0.len()).finish()
    }
}
