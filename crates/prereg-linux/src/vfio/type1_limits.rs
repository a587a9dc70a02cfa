//! Limits of a type1 container: the reply of `VFIO_IOMMU_GET_INFO` and its capability chain.

use prereg::{Errno, Iova};

use super::error::VfioError;
use super::kernel::{Argument, Descriptor, IOMMU_GET_INFO};
use super::uapi::{u16_at, u32_at, u64_at};

/// Limits on the mappings of a type1 container.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Type1Limits {
    /// Allowed I/O addresses, first and last byte of each range.
    pub ranges: Vec<(Iova, Iova)>,
    /// A bit for every page size of the IOMMU.
    pub page_sizes: u64,
    /// Mappings that can still be made; `None` when the kernel does not report it (before 5.10). A new container has
    /// 65,535 by default.
    pub mappings_left: Option<u32>,
}

/// Ranges assumed for a kernel that does not list them (before 5.4): 39 bits, without the interrupt window.
const OLD_KERNELS: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];

const FLAG_PAGE_SIZES: u32 = 1;
const FLAG_CAPABILITIES: u32 = 2;
const CAPABILITY_RANGES: u16 = 1;
const CAPABILITY_LEFT: u16 = 3;
/// The largest reply that is accepted, in bytes.
const MOST: usize = 1 << 16;

impl Type1Limits {
    /// Queries a container.
    pub(crate) fn query(container: &dyn Descriptor) -> Result<Self, VfioError> {
        let mut bytes = vec![0; 256];
        loop {
            // At most 2^16, see `MOST`.
            let argsz = bytes.len() as u32;
            bytes.fill(0);
            bytes[..4].copy_from_slice(&argsz.to_ne_bytes());
            let during = IOMMU_GET_INFO.name;
            container.ioctl(IOMMU_GET_INFO, Argument::Struct(&mut bytes)).map_err(|errno| VfioError::Os {
                during,
                on: "the container".into(),
                errno,
            })?;
            // The kernel returns the length of the whole reply in the first word.
            let needed = u32_at(&bytes, 0).unwrap_or(0) as usize;
            if needed <= bytes.len() {
                return Self::parse(&bytes).ok_or(VfioError::BadReply { during });
            }
            if needed > MOST {
                return Err(VfioError::Os { during, on: "the container".into(), errno: Errno::E2BIG });
            }
            bytes.resize(needed, 0);
        }
    }

    /// Parses a reply; `None` when it is inconsistent.
    pub(crate) fn parse(bytes: &[u8]) -> Option<Self> {
        let flags = u32_at(bytes, 4)?;
        let page_sizes = if flags & FLAG_PAGE_SIZES == 0 { 0 } else { u64_at(bytes, 8)? };
        let mut limits = Self { ranges: Vec::new(), page_sizes, mappings_left: None };
        let mut at = if flags & FLAG_CAPABILITIES == 0 { 0 } else { u32_at(bytes, 16)? as usize };
        while at != 0 {
            let next = u32_at(bytes, at + 4)? as usize;
            match u16_at(bytes, at)? {
                CAPABILITY_RANGES => limits.ranges = parse_ranges(bytes, at)?,
                CAPABILITY_LEFT => limits.mappings_left = Some(u32_at(bytes, at + 8)?),
                _ => {}
            }
            // Offsets must ascend, or the chain might never end.
            if next != 0 && next <= at {
                return None;
            }
            at = next;
        }
        if limits.ranges.is_empty() {
            limits.ranges = OLD_KERNELS.map(|(first, last)| (Iova::new(first), Iova::new(last))).to_vec();
        }
        Some(limits)
    }

    /// [`ranges`](Self::ranges) as numbers.
    pub(crate) fn raw_ranges(&self) -> Vec<(u64, u64)> {
        self.ranges.iter().map(|(first, last)| (first.raw(), last.raw())).collect()
    }

    /// The smallest page size of the IOMMU; the system's when the kernel reports none.
    pub(crate) fn smallest_page(&self, system: u64) -> u64 {
        if self.page_sizes == 0 { system } else { 1 << self.page_sizes.trailing_zeros() }
    }
}

fn parse_ranges(bytes: &[u8], at: usize) -> Option<Vec<(Iova, Iova)>> {
    let count = u32_at(bytes, at + 8)? as usize;
    // Each range takes 16 bytes, so a wrong count fails at the end of the reply.
    (0..count)
        .map(|index| {
            let place = at + 16 + index.checked_mul(16)?;
            let (first, last) = (u64_at(bytes, place)?, u64_at(bytes, place + 8)?);
            (first <= last).then(|| (Iova::new(first), Iova::new(last)))
        })
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A reply with the given capabilities: ID and body of each.
    pub(crate) fn reply(flags: u32, page_sizes: u64, capabilities: &[(u16, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = vec![0; 24];
        bytes[4..8].copy_from_slice(&flags.to_ne_bytes());
        bytes[8..16].copy_from_slice(&page_sizes.to_ne_bytes());
        bytes[16..20].copy_from_slice(&(if capabilities.is_empty() { 0u32 } else { 24 }).to_ne_bytes());
        for (index, (id, body)) in capabilities.iter().enumerate() {
            let next =
                if index + 1 == capabilities.len() { 0 } else { (bytes.len() + 8 + body.len()) as u32 };
            bytes.extend(id.to_ne_bytes());
            bytes.extend(1u16.to_ne_bytes());
            bytes.extend(next.to_ne_bytes());
            bytes.extend(body);
        }
        let length = bytes.len() as u32;
        bytes[..4].copy_from_slice(&length.to_ne_bytes());
        bytes
    }

    /// The body of the capability that lists ranges.
    pub(crate) fn ranges(list: &[(u64, u64)]) -> Vec<u8> {
        let mut body = (list.len() as u32).to_ne_bytes().to_vec();
        body.extend([0; 4]);
        for (first, last) in list {
            body.extend(first.to_ne_bytes());
            body.extend(last.to_ne_bytes());
        }
        body
    }

    #[test]
    fn ranges_page_sizes_and_room_are_read_and_unknown_capabilities_skipped() {
        let list = [(0, 0xfedf_ffff), (0xfef0_0000, 0x7f_ffff_ffff)];
        let left = 65_535u32.to_ne_bytes().to_vec();
        let bytes = reply(3, 0x4020_1000, &[(2, vec![7; 24]), (1, ranges(&list)), (3, left)]);
        let limits = Type1Limits::parse(&bytes).unwrap();
        assert_eq!(limits.raw_ranges(), list);
        assert_eq!((limits.page_sizes, limits.mappings_left), (0x4020_1000, Some(65_535)));
        assert_eq!(limits.smallest_page(65_536), 4096);
    }

    #[test]
    fn an_old_kernel_is_given_what_every_iommu_maps() {
        let limits = Type1Limits::parse(&reply(1, 0x1000, &[])).unwrap();
        assert_eq!(limits.raw_ranges(), OLD_KERNELS);
        assert_eq!(limits.mappings_left, None);
        let limits = Type1Limits::parse(&reply(0, 0x1000, &[])).unwrap();
        assert_eq!(limits.smallest_page(65_536), 65_536);
    }

    #[test]
    fn answers_that_contradict_themselves_are_not_believed() {
        let good = reply(3, 0x1000, &[(1, ranges(&[(0, 9)])), (3, vec![1, 0, 0, 0])]);
        assert!(Type1Limits::parse(&good).is_some());
        for length in 0..good.len() {
            assert_eq!(Type1Limits::parse(&good[..length]), None, "cut at {length}");
        }
        let change = |at: usize, value: u32| {
            let mut bytes = good.clone();
            bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            Type1Limits::parse(&bytes)
        };
        // A chain that loops, one that leaves the reply, a count that is too large, a range that ends before it starts.
        assert_eq!(change(28, 24), None);
        assert_eq!(change(28, u32::MAX), None);
        assert_eq!(change(32, u32::MAX), None);
        assert_eq!(change(16, u32::MAX - 1), None);
        assert_eq!(Type1Limits::parse(&reply(3, 0x1000, &[(1, ranges(&[(9, 0)]))])), None);
    }
}
