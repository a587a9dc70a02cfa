//! Arbitrary requests to two containers of one process: each succeeds or returns an errno, and the counts match after each.

#![no_main]

use std::sync::Arc;

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use prereg::{AddressSpace, Granule, Memory, UserRange};
use prereg_iommu::container::{Argument, Container, Owner, Platform, SoftwareGroup, UserMemory};
use prereg_sim::SimHost;

const A: u64 = 0x7000_0000_0000;

struct Ram(SimHost);

impl UserMemory for Ram {
    fn at(&self, range: UserRange) -> Option<Box<dyn Memory>> {
        Some(Box::new(self.0.range(range.first().raw(), range.bytes())))
    }
}

#[derive(Arbitrary, Debug)]
enum Word {
    Any(u64),
    Page(u8),
    Small(u8),
    Head(u8, u8),
    Second(u8),
}

impl Word {
    fn value(&self) -> u64 {
        match *self {
            Self::Any(any) => any,
            Self::Page(page) => A + u64::from(page % 80) * 4096,
            Self::Small(pages) => u64::from(pages) * 4096,
            Self::Head(argsz, flags) => u64::from(argsz) | u64::from(flags) << 32,
            Self::Second(page) => (1 << 59) + u64::from(page) * 4096,
        }
    }
}

#[derive(Arbitrary, Debug)]
struct Request {
    second: bool,
    command: u8,
    any_command: Option<u32>,
    words: Vec<Word>,
    cut: u8,
}

fuzz_target!(|requests: Vec<Request>| {
    let host = SimHost::new(Granule::K4);
    host.memory(A, 64 * 4096);
    let space = Arc::new(AddressSpace::builder(host.clone()).build().unwrap());
    let account = Arc::new(host.clone());
    let owner = Owner::new(space.clone(), account.clone(), account, Arc::new(Ram(host.clone())));
    let mut containers = [1, 2].map(|number| {
        let mut container = Container::new(number);
        container
            .attach(Arc::new(SoftwareGroup::new(number as u32, Platform::POWERNV)))
            .expect("a first group");
        container
    });
    for request in requests.iter().take(64) {
        let container = &mut containers[usize::from(request.second)];
        let command = request.any_command.unwrap_or(0x3b64 + u32::from(request.command % 24));
        let first = request.words.first().map_or(7, Word::value);
        let mut bytes: Vec<u8> = request.words.iter().flat_map(|word| word.value().to_ne_bytes()).collect();
        bytes.truncate(bytes.len().saturating_sub(usize::from(request.cut % 8)));
        let argument =
            if command & 0xff < 0x70 { Argument::Value(first) } else { Argument::Bytes(&mut bytes) };
        let _ = container.ioctl(&owner, command, argument);
        let entries: u64 =
            containers.iter().flat_map(Container::windows).map(|(_, table)| table.live()).sum();
        let regions = space.snapshot().regions;
        // A container of the first version maps pages without a registration.
        let v1 = containers
            .iter()
            .any(|container| container.version() == Some(prereg_iommu::container::Version::V1));
        let mapped: u64 = regions.iter().map(|region| region.mapped).sum();
        assert!(v1 || mapped == entries, "{mapped} units, {entries} entries");
    }
    drop(containers);
    host.assert_clean();
});
