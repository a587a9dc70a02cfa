//! Reports on the IOMMU groups of this host.

use prereg::Iova;

use super::container::{Container, TYPE1_V2};
use super::error::VfioError;
use super::host::VfioHost;
use super::spapr::window::SpaprLimits;
use super::sysfs::GroupDevice;
use super::type1_limits::Type1Limits;

/// An IOMMU group, and what a container over it can map.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct GroupReport {
    /// Its number.
    pub number: u32,
    /// The type of its default domain (`DMA`, `DMA-FQ`, `identity`), if known.
    pub kind: Option<String>,
    /// Its devices. They can only be assigned together.
    pub devices: Vec<GroupDevice>,
    /// Reserved I/O addresses: first and last byte, and the kind.
    pub reserved: Vec<(Iova, Iova, String)>,
    /// Limits of a container over the group, or the reason why none can be opened.
    pub limits: Result<GroupLimits, VfioError>,
}

/// Limits of a container.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GroupLimits {
    /// A type1 container.
    Type1(Type1Limits),
    /// A SPAPR TCE v2 container.
    Spapr(SpaprLimits),
}

impl VfioHost {
    /// Every IOMMU group of this host, by number. A group that is bound to VFIO and not in use is opened briefly to
    /// query its limits; other groups are not opened.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupReport> {
        let report = |number| {
            let devices = self.sysfs.devices_of(number);
            let reserved = self.sysfs.reserved_of(number).into_iter();
            GroupReport {
                number,
                kind: self.sysfs.kind_of(number),
                reserved: reserved
                    .map(|(first, last, why)| (Iova::new(first), Iova::new(last), why))
                    .collect(),
                limits: self.try_container(&devices),
                devices,
            }
        };
        self.sysfs.groups().into_iter().map(report).collect()
    }

    /// Limits of a container over the group of these devices.
    fn try_container(&self, devices: &[GroupDevice]) -> Result<GroupLimits, VfioError> {
        let first = devices.first().map(|device| device.device.clone()).unwrap_or_default();
        let bound = devices.iter().find(|device| device.is_bound_to_vfio());
        // Without a device bound to VFIO, the first one yields the error that says what is missing.
        let device = bound.map_or(first, |device| device.device.clone());
        match Container::open(self, &device, TYPE1_V2) {
            Ok(container) => Type1Limits::query(container.descriptor()).map(GroupLimits::Type1),
            Err(missing @ VfioError::NoIommuType { .. }) => match SpaprLimits::query(self, &device) {
                Ok(limits) => Ok(GroupLimits::Spapr(limits)),
                // Most machines lack both drivers and are not POWER machines, so the first error is the more useful
                // one.
                Err(VfioError::NoIommuType { .. }) => Err(missing),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// The most mappings of one type1 container; `None` when its driver is not loaded.
    #[must_use]
    pub(crate) fn type1_mappings(&self) -> Option<u64> {
        self.sysfs.type1_entry_limit()
    }
}

#[cfg(test)]
mod tests {
    use super::super::replay::Recording;
    use super::super::sysfs::tests::tree;
    use super::*;

    #[test]
    fn every_group_says_what_can_be_mapped_or_why_it_cannot_be_had() {
        let (_root, sysfs) = tree();
        let recording = Recording::parse(include_str!("recordings/group-asked.txt"));
        let host = VfioHost { kernel: recording.kernel(), sysfs };
        let groups = host.groups();
        assert_eq!(groups.iter().map(|group| group.number).collect::<Vec<_>>(), [1, 2, 4]);
        let Ok(GroupLimits::Type1(limits)) = &groups[0].limits else { panic!("{:?}", groups[0].limits) };
        assert_eq!((limits.page_sizes, limits.mappings_left), (0x4020_1000, Some(65_535)));
        assert_eq!(groups[0].reserved.len(), 1);
        let text = groups[1].limits.as_ref().unwrap_err().to_string();
        assert!(text.contains("0000:00:02.1 is held by e1000e"), "{text}");
        let text = groups[2].limits.as_ref().unwrap_err().to_string();
        assert!(text.contains("bound to no driver"), "{text}");
        recording.assert_exhausted();
    }
}
