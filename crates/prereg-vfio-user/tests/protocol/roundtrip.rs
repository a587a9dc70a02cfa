//! Written messages are read back unchanged.

use prereg::{Access, Errno, Iova};
use prereg_vfio_user::wire::{
    Command, DeviceInfo, DmaAccess, DmaDone, Header, IoRegionKind, IoRegionsInfo, IoSubregion, IrqAction,
    IrqInfo, IrqSelection, MapMemory, RegionAccess, RegionInfo, RegionWrite, RegionWrites, SetIrqs,
    SparseArea, UnmapMemory, Version,
};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::client::body;

fn range() -> impl Strategy<Value = (u64, u64)> {
    any::<(u64, u64)>().prop_map(|(iova, bytes)| match iova {
        0 => (0, bytes.max(1)),
        _ => (iova, bytes % 0_u64.wrapping_sub(iova) + 1),
    })
}

fn access() -> impl Strategy<Value = Access> {
    prop_oneof![Just(Access::Read), Just(Access::Write), Just(Access::ReadWrite)]
}

proptest! {
    #[test]
    fn headers(id: u16, number: u16, size: u32, flags: u32, error: u32) {
        let header = Header { id, command: Command::new(number), size, flags, error };
        let bytes = body(|out| header.write(out));
        prop_assert_eq!(Header::read(&bytes.try_into().unwrap()), header);
    }

    #[test]
    fn failures_have_an_errno(id: u16, errno: i32) {
        let header = Header::failure(id, Command::DMA_MAP, Errno::from_raw(errno));
        let expected = if errno > 0 { errno } else { 5 };
        prop_assert_eq!(header.errno(), Some(Errno::from_raw(expected)));
    }

    #[test]
    fn versions(major: u16, minor: u16, data in vec(any::<u8>(), 0..64)) {
        let version = Version { major, minor, data: &data };
        let bytes = body(|out| version.write(out));
        prop_assert_eq!(Version::read(&bytes), Ok(version));
    }

    #[test]
    fn devices(resets: bool, regions: u32, irqs: u32) {
        let info = DeviceInfo { resets, regions, irqs };
        prop_assert_eq!(DeviceInfo::read(&body(|out| info.write(out))), Ok(info));
        prop_assert_eq!(DeviceInfo::read_command(&body(DeviceInfo::write_command)), Ok(()));
    }

    #[test]
    fn maps(access in access(), offset: u64, (iova, bytes) in range()) {
        let map = MapMemory { access, offset, iova: Iova::new(iova), bytes };
        prop_assert_eq!(MapMemory::read(&body(|out| map.write(out))), Ok(map));
    }

    #[test]
    fn unmaps((iova, bytes) in range()) {
        for unmap in [UnmapMemory::All, UnmapMemory::Range { iova: Iova::new(iova), bytes }] {
            prop_assert_eq!(UnmapMemory::read(&body(|out| unmap.write(out))), Ok(unmap));
        }
    }

    #[test]
    fn transfers(iova: u64, bytes: u64, data in vec(any::<u8>(), 0..64)) {
        let access = DmaAccess { iova: Iova::new(iova), bytes, data: &data };
        let bytes_written = body(|out| access.write(out));
        prop_assert_eq!(DmaAccess::read(&bytes_written), Ok(access));
        let done = DmaDone { iova: Iova::new(iova), bytes };
        prop_assert_eq!(DmaDone::read(&body(|out| done.write(out))), Ok(done));
    }

    #[test]
    fn regions(
        index: u32, argsz in 32_u32.., bytes: u64, offset: u64, flags in 0_u32..8, sparse in vec(any::<(u64, u64)>(), 0..9)
    ) {
        let areas: Vec<_> = sparse.iter().map(|(offset, bytes)| SparseArea { offset: *offset, bytes: *bytes }).collect();
        let flags = if areas.is_empty() { flags } else { flags | RegionInfo::CAPABILITIES };
        let count = areas.len();
        let info = RegionInfo { argsz, flags, index, bytes, offset, areas };
        let written = body(|out| info.write(out));
        prop_assert_eq!(Some(written.len() as u32), RegionInfo::bytes_with(count));
        prop_assert_eq!(RegionInfo::read(&written), Ok(info));
        let command = body(|out| RegionInfo::write_command(index, argsz, out));
        prop_assert_eq!(RegionInfo::read_command(&command), Ok((index, argsz)));
    }

    #[test]
    fn io_regions(index: u32, argsz in 16_u32.., parts in vec(any::<(u64, u64, u32, bool, u32, u64)>(), 0..9)) {
        let part = |(offset, bytes, descriptor, eventfd, flags, value): (u64, u64, u32, bool, u32, u64)| {
            let kind = match eventfd {
                true => IoRegionKind::Eventfd { flags, datamatch: value },
                false => IoRegionKind::Ioregion { flags, user_data: value },
            };
            IoSubregion { offset, bytes, descriptor, kind }
        };
        let info = IoRegionsInfo { argsz, index, subregions: parts.into_iter().map(part).collect() };
        prop_assert_eq!(IoRegionsInfo::read(&body(|out| info.write(out))), Ok(info));
        let command = body(|out| IoRegionsInfo::write_command(index, argsz, out));
        prop_assert_eq!(IoRegionsInfo::read_command(&command), Ok((index, argsz)));
    }

    #[test]
    fn irqs(index: u32, flags: u32, count: u32) {
        let info = IrqInfo { index, flags, count };
        prop_assert_eq!(IrqInfo::read(&body(|out| info.write(out))), Ok(info));
        prop_assert_eq!(IrqInfo::read_command(&body(|out| IrqInfo::write_command(index, out))), Ok(index));
    }

    #[test]
    fn interrupt_settings(index: u32, start in 0..1_u32 << 31, each in vec(any::<u8>(), 1..99), action in 0..3, kind in 0..3) {
        let action = [IrqAction::Mask, IrqAction::Unmask, IrqAction::Trigger][action as usize];
        let selection = [IrqSelection::All, IrqSelection::Each(&each), IrqSelection::Eventfds][kind as usize];
        let set = SetIrqs { index, start, count: each.len() as u32, action, selection };
        let written = body(|out| set.write(out));
        prop_assert_eq!(SetIrqs::read(&written), Ok(set));
    }

    #[test]
    fn accesses(region: u32, offset in 0..u64::MAX >> 1, data in vec(any::<u8>(), 1..64)) {
        for data in [&data[..], &[]] {
            let access = RegionAccess { offset, region, count: 64, data };
            let written = body(|out| access.write(out));
            prop_assert_eq!(RegionAccess::read(&written), Ok(access));
        }
    }

    #[test]
    fn many_writes(list in vec((any::<u32>(), 0..u64::MAX >> 1, vec(any::<u8>(), 1..9)), 1..99), done: u64) {
        let writes = list.iter().map(|(region, offset, data)| RegionWrite::new(*region, *offset, data).unwrap());
        let writes = RegionWrites::new(writes.collect());
        prop_assert_eq!(RegionWrites::read(&body(|out| writes.write(out))), Ok(writes));
        prop_assert_eq!(RegionWrites::read_reply(&body(|out| RegionWrites::write_reply(done, out))), Ok(done));
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in vec(any::<u8>(), 0..200)) {
        // Checks only that nothing panics; the tests above check the values.
        let _ = Version::read(&bytes);
        let _ = DeviceInfo::read_command(&bytes);
        let _ = DeviceInfo::read(&bytes);
        let _ = MapMemory::read(&bytes);
        let _ = UnmapMemory::read(&bytes);
        let _ = DmaAccess::read(&bytes);
        let _ = DmaDone::read(&bytes);
        let _ = RegionInfo::read_command(&bytes);
        let _ = RegionInfo::read(&bytes);
        let _ = IoRegionsInfo::read_command(&bytes);
        let _ = IoRegionsInfo::read(&bytes);
        let _ = IrqInfo::read_command(&bytes);
        let _ = IrqInfo::read(&bytes);
        let _ = SetIrqs::read(&bytes);
        let _ = RegionAccess::read(&bytes);
        let _ = RegionWrites::read(&bytes);
        let _ = RegionWrites::read_reply(&bytes);
    }
}
