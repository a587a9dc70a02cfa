//! Structs of `linux/vfio.h` and `linux/iommufd.h`, as bytes in native byte order.
//!
//! All padding is a named field, so the bytes of a struct are those of its fields.

use std::mem::offset_of;

/// A struct of the kernel's user API that can be converted to and from bytes.
pub(crate) trait UapiStruct: Copy {
    /// Its length.
    const BYTES: usize;
    /// Writes it to the start of `into`.
    fn write(&self, into: &mut [u8]);
    /// Reads it from the start of `from`.
    fn read(from: &[u8]) -> Self;
}

/// The `u32` at byte `at`, if it is inside.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The `u16` at byte `at`, if it is inside.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// The `u64` at byte `at`, if it is inside.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

macro_rules! structs {
    ($($(#[$doc:meta])* $name:ident ($c:literal, $bytes:literal) { $($field:ident: $kind:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[doc = concat!("`struct ", $c, "`.")]
            #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
            #[repr(C)]
            pub(crate) struct $name { $(pub(crate) $field: $kind),* }

            const _: () = assert!(size_of::<$name>() == $bytes && $bytes <= 64);
            const _: () = assert!($bytes == 0 $(+ size_of::<$kind>())*, "padding must be named");

            impl UapiStruct for $name {
                const BYTES: usize = $bytes;

                fn write(&self, into: &mut [u8]) {
                    $({
                        const AT: usize = offset_of!($name, $field);
                        into[AT..AT + size_of::<$kind>()].copy_from_slice(&self.$field.to_ne_bytes());
                    })*
                }

                fn read(from: &[u8]) -> Self {
                    let mut value = Self::default();
                    $({
                        const AT: usize = offset_of!($name, $field);
                        let mut field = value.$field.to_ne_bytes();
                        field.copy_from_slice(&from[AT..AT + size_of::<$kind>()]);
                        value.$field = <$kind>::from_ne_bytes(field);
                    })*
                    value
                }
            }
        )*

        /// Name in C, length, and the offset of every field, to be checked by a C compiler.
        #[cfg(test)]
        pub(crate) const ALL: &[(&str, usize, &[(&str, usize)])] =
            &[$(($c, $bytes, &[$((stringify!($field), offset_of!($name, $field))),*])),*];
    };
}

structs! {
    GroupStatus ("vfio_group_status", 8) { argsz: u32, flags: u32 }
    DeviceInfo ("vfio_device_info", 24) { argsz: u32, flags: u32, num_regions: u32, num_irqs: u32, cap_offset: u32, pad: u32 }
    RegionInfo ("vfio_region_info", 32) { argsz: u32, flags: u32, index: u32, cap_offset: u32, size: u64, offset: u64 }
    MapDma ("vfio_iommu_type1_dma_map", 32) { argsz: u32, flags: u32, vaddr: u64, iova: u64, size: u64 }
    UnmapDma ("vfio_iommu_type1_dma_unmap", 24) { argsz: u32, flags: u32, iova: u64, size: u64 }
    RegisterMemory ("vfio_iommu_spapr_register_memory", 24) { argsz: u32, flags: u32, vaddr: u64, size: u64 }
    SpaprInfo ("vfio_iommu_spapr_tce_info", 32) {
        argsz: u32, flags: u32, dma32_window_start: u32, dma32_window_size: u32, pgsizes: u64, windows: u32, levels: u32,
    }
    TceCreate ("vfio_iommu_spapr_tce_create", 40) {
        argsz: u32, flags: u32, page_shift: u32, resv1: u32, window_size: u64, levels: u32, resv2: u32, start_addr: u64,
    }
    TceRemove ("vfio_iommu_spapr_tce_remove", 16) { argsz: u32, flags: u32, start_addr: u64 }
    BindIommufd ("vfio_device_bind_iommufd", 16) { argsz: u32, flags: u32, iommufd: i32, out_devid: u32 }
    AttachPt ("vfio_device_attach_iommufd_pt", 12) { argsz: u32, flags: u32, pt_id: u32 }
    DetachPt ("vfio_device_detach_iommufd_pt", 8) { argsz: u32, flags: u32 }
    IoasAlloc ("iommu_ioas_alloc", 12) { size: u32, flags: u32, out_ioas_id: u32 }
    IoasIovaRanges ("iommu_ioas_iova_ranges", 32) {
        size: u32, ioas_id: u32, num_iovas: u32, reserved: u32, allowed_iovas: u64, out_iova_alignment: u64,
    }
    IoasMap ("iommu_ioas_map", 40) {
        size: u32, flags: u32, ioas_id: u32, reserved: u32, user_va: u64, length: u64, iova: u64,
    }
    IoasCopy ("iommu_ioas_copy", 40) {
        size: u32, flags: u32, dst_ioas_id: u32, src_ioas_id: u32, length: u64, dst_iova: u64, src_iova: u64,
    }
    IoasUnmap ("iommu_ioas_unmap", 24) { size: u32, ioas_id: u32, iova: u64, length: u64 }
    HwptAlloc ("iommu_hwpt_alloc", 40) {
        size: u32, flags: u32, dev_id: u32, pt_id: u32, out_hwpt_id: u32, reserved: u32, data_type: u32, data_len: u32,
        data_uptr: u64,
    }
}

/// `VFIO_GROUP_FLAGS_VIABLE`.
pub(crate) const GROUP_VIABLE: u32 = 1;
/// `VFIO_GROUP_FLAGS_CONTAINER_SET`.
pub(crate) const GROUP_HAS_CONTAINER: u32 = 2;
/// `VFIO_DEVICE_FLAGS_RESET`.
pub(crate) const DEVICE_RESETS: u32 = 1;
/// `VFIO_REGION_INFO_FLAG_MMAP`.
pub(crate) const REGION_MMAP: u32 = 4;
/// `VFIO_DMA_MAP_FLAG_READ` and `VFIO_DMA_MAP_FLAG_WRITE`.
pub(crate) const DMA_READ: u32 = 1;
pub(crate) const DMA_WRITE: u32 = 2;
/// `VFIO_IOMMU_SPAPR_INFO_DDW`.
pub(crate) const SPAPR_DDW: u32 = 1;
/// `IOMMU_IOAS_MAP_FIXED_IOVA`, `_WRITEABLE`, `_READABLE`.
pub(crate) const IOAS_FIXED: u32 = 1;
pub(crate) const IOAS_WRITEABLE: u32 = 2;
pub(crate) const IOAS_READABLE: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_comes_back_from_its_bytes() {
        let map = MapDma { argsz: 32, flags: 3, vaddr: 0x7f00_0000_1000, iova: 0x10_0000, size: 4096 };
        let mut bytes = [0xff; 32];
        map.write(&mut bytes);
        assert_eq!(u32_at(&bytes, 4), Some(3));
        assert_eq!(u64_at(&bytes, 16), Some(0x10_0000));
        assert_eq!(MapDma::read(&bytes), map);
        assert_eq!((u16_at(&bytes, 31), u32_at(&bytes, 29), u64_at(&bytes, usize::MAX)), (None, None, None));
    }
}
