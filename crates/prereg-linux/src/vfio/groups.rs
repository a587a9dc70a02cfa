//! What the IOMMU groups of this host are good for: who holds their devices, and what a container over them can map.

use prereg::Iova;

use super::container::{Container, TYPE1_V2};
use super::error::VfioError;
use super::host::VfioHost;
use super::spapr::window::SpaprLimits;
use super::sysfs::GroupDevice;
use super::type1_limits::Type1Limits;

/// An IOMMU group, and whether it can be had.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct GroupReport {
    /// Its number.
    pub number: u32,
    /// What kind of domain the kernel gives it (`DMA`, `DMA-FQ`, `identity`), if it says.
    pub kind: Option<String>,
    /// Its devices. All of a group go to a user together.
    pub devices: Vec<GroupDevice>,
    /// I/O addresses that cannot be mapped for it: first and last byte, and why.
    pub reserved: Vec<(Iova, Iova, String)>,
    /// What a container over it can map, for a group that was free to be asked; or why the group cannot be had.
    pub limits: Result<GroupLimits, VfioError>,
}

/// What a container over a group can map.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum GroupLimits {
    /// A type1 container.
    Type1(Type1Limits),
    /// A SPAPR TCE v2 container.
    Spapr(SpaprLimits),
}

impl VfioHost {
    /// Every IOMMU group of this host, by number. A group that is bound to VFIO and not in use is opened for a moment, to
    /// ask what can be mapped; the others are only looked at.
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

    /// What a container over the group of these devices can map.
    fn try_container(&self, devices: &[GroupDevice]) -> Result<GroupLimits, VfioError> {
        let first = devices.first().map(|device| device.device.clone()).unwrap_or_default();
        let bound = devices.iter().find(|device| device.is_bound_to_vfio());
        // Without a bound device the first one says what is missing.
        let device = bound.map_or(first, |device| device.device.clone());
        match Container::open(self, &device, TYPE1_V2) {
            Ok(container) => Type1Limits::query(container.descriptor()).map(GroupLimits::Type1),
            Err(missing @ VfioError::NoIommuType { .. }) => match SpaprLimits::query(self, &device) {
                Ok(limits) => Ok(GroupLimits::Spapr(limits)),
                // Most machines have neither driver loaded rather than POWER's.
                Err(VfioError::NoIommuType { .. }) => Err(missing),
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        }
    }

    /// Mappings that one type1 container may hold; `None` when its driver is not loaded.
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
