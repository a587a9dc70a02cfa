//! Arbitrary operations on an IOVA map, compared with a list that is searched linearly.
//!
//! Errors, pieces of accesses, waiting unmaps and drain callbacks must equal those of the list, and the region's units too; at the end
//! no unit is held, and nothing is pinned.

#![no_main]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use prereg::{Access, AddressSpace, Errno, Granule, Holder, Iova, UserAddr};
use prereg_iommu::iova::{
    Backing, HeldRange, HostSegment, IovaLimits, IovaMap, LocalSegment, OnDrained, Unmapping,
};
use prereg_sim::SimHost;

const UA: u64 = 0x20_0000_0000;
const PAGE: u64 = 4096;
/// Pages of each of two adjacent regions.
const PAGES: u64 = 32;
const LIMIT: u32 = 12;

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Range {
    page: u8,
    pages: u8,
    odd: u8,
    /// At the top of the address space.
    high: bool,
}

impl Range {
    fn numbers(self) -> (u64, u64) {
        let odd = if self.odd == 7 { 1 } else { 0 };
        let page = u64::from(self.page % 32);
        let first = if self.high { (u64::MAX - (32 * PAGE - 1)) + page * PAGE } else { page * PAGE };
        (first + odd, u64::from(self.pages % 9) * PAGE)
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Rights {
    Read,
    Write,
    Both,
}

impl Rights {
    fn access(self) -> Access {
        match self {
            Self::Read => Access::Read,
            Self::Write => Access::Write,
            Self::Both => Access::ReadWrite,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Step {
    Map { range: Range, to: u8, how: u8, rights: Rights },
    MapRaw { iova: u64, bytes: u64, ua: u64 },
    Unmap { range: Range },
    UnmapRaw { iova: u64, bytes: u64 },
    UnmapAll,
    Hold { range: Range, skip: u16, bytes: u16, rights: Rights },
    HoldRaw { iova: u64, bytes: u64 },
    Drop { which: u8 },
}

#[derive(Clone)]
struct Listed {
    id: u64,
    first: u64,
    last: u64,
    access: Access,
    /// Units it holds, and the user address of its first byte; none for remote memory.
    units: u64,
    ua: Option<u64>,
}

#[derive(Default)]
struct List {
    live: Vec<Listed>,
    closing: Vec<Listed>,
    holds: Vec<Vec<u64>>,
    ids: u64,
    drained: u64,
}

/// The last byte of a range; `None` for one that is empty or passes the top.
fn last_of(first: u64, bytes: u64) -> Option<u64> {
    first.checked_add(bytes.checked_sub(1)?)
}

fn whole(first: u64, bytes: u64) -> Result<u64, Errno> {
    if (first | bytes) % PAGE != 0 {
        return Err(Errno::EINVAL);
    }
    last_of(first, bytes).ok_or(Errno::EINVAL)
}

impl List {
    fn inside(&self, id: u64) -> usize {
        self.holds.iter().filter(|hold| hold.contains(&id)).count()
    }

    fn unmap(&mut self, first: u64, bytes: u64) -> Result<Vec<u64>, Errno> {
        let last = whole(first, bytes)?;
        self.unmap_to(first, last)
    }

    fn unmap_to(&mut self, first: u64, last: u64) -> Result<Vec<u64>, Errno> {
        let meets = |listed: &Listed| listed.first <= last && first <= listed.last;
        let within = |listed: &Listed| first <= listed.first && listed.last <= last;
        if self.live.iter().any(|listed| meets(listed) && !within(listed)) {
            return Err(Errno::EINVAL);
        }
        let (gone, live): (Vec<_>, Vec<_>) = self.live.drain(..).partition(within);
        self.live = live;
        let ids = gone.iter().map(|listed| listed.id).collect();
        self.closing.extend(gone);
        self.remove_unused();
        Ok(ids)
    }

    fn remove_unused(&mut self) {
        let Self { closing, holds, .. } = self;
        closing.retain(|listed| holds.iter().any(|hold| hold.contains(&listed.id)));
    }

    /// The mappings of an access, or its errno.
    fn hold(&self, first: u64, bytes: u64, access: Access) -> Result<Vec<Listed>, Errno> {
        let last = last_of(first, bytes).ok_or(Errno::EINVAL)?;
        let mut found = Vec::new();
        let mut at = first;
        loop {
            let has = |listed: &&Listed| listed.first <= at && at <= listed.last;
            let Some(listed) = self.live.iter().find(has) else {
                let closing = self.closing.iter().any(|listed| has(&listed));
                return Err(if closing { Errno::ENXIO } else { Errno::EFAULT });
            };
            if listed.access.bits() & access.bits() != access.bits() {
                return Err(Errno::EACCES);
            }
            found.push(listed.clone());
            if listed.last >= last {
                return Ok(found);
            }
            at = listed.last + 1;
        }
    }

    fn drop_hold(&mut self, index: usize) {
        let gone = self.holds.remove(index);
        let closing = |id: &&u64| self.closing.iter().any(|listed| listed.id == **id);
        self.drained += gone.iter().filter(closing).filter(|&&id| self.inside(id) == 0).count() as u64;
        self.remove_unused();
    }

    fn units(&self) -> u64 {
        self.live.iter().chain(&self.closing).map(|listed| listed.units).sum()
    }
}

#[derive(Default)]
struct DrainCount(AtomicU64);

impl OnDrained for DrainCount {
    fn on_drained(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// The backing of `bytes` bytes from page `to` of the two regions on: one piece, two pieces, or remote; with its units or its errno.
fn backing(to: u64, bytes: u64, how: u8) -> (Backing, Result<u64, Errno>) {
    let ua = UA + to * PAGE;
    let seam = UA + PAGES * PAGE;
    let end = ua + bytes;
    let inside = end <= UA + 2 * PAGES * PAGE;
    match how % 4 {
        0 => (Backing::Remote, Ok(0)),
        1 | 2 => {
            let one_region = inside && (end <= seam || ua >= seam);
            (Backing::Local(UserAddr::new(ua)), if one_region { Ok(1) } else { Err(Errno::EFAULT) })
        }
        _ => {
            let piece = |ua: u64, bytes| LocalSegment { ua: UserAddr::new(ua), bytes, owner: None };
            if ua < seam && end > seam {
                let pieces = vec![piece(ua, seam - ua), piece(seam, end - seam)];
                (Backing::Segments(pieces), if inside { Ok(2) } else { Err(Errno::EFAULT) })
            } else {
                let pieces = vec![piece(ua, bytes)];
                (Backing::Segments(pieces), if inside { Ok(1) } else { Err(Errno::EFAULT) })
            }
        }
    }
}

/// The pieces of an access are those of the list, in order.
fn check_pieces(held: &HeldRange, found: &[Listed], first: u64, bytes: u64, host: &SimHost) {
    let mut at = first;
    for piece in held.host_segments() {
        let listed =
            found.iter().find(|listed| listed.first <= at && at <= listed.last).expect("in the list");
        let offset = at - listed.first;
        let length = match piece {
            HostSegment::Local { ua, host: address, bytes } => {
                assert_eq!(Some(ua.raw()), listed.ua.map(|ua| ua + offset));
                assert_eq!(Some(address), host.backs(ua.raw()));
                bytes
            }
            HostSegment::Remote { iova, bytes } => {
                assert_eq!((listed.ua, iova.raw()), (None, at));
                bytes
            }
            other => panic!("{other:?}"),
        };
        assert!(length > 0 && length - 1 <= listed.last - at);
        at = at.wrapping_add(length);
    }
    assert_eq!(at, first.wrapping_add(bytes));
    assert_eq!(held.bytes(), bytes);
}

fuzz_target!(|steps: Vec<Step>| {
    let host = SimHost::new(Granule::K4);
    let space = AddressSpace::builder(host.clone()).build().unwrap();
    let low = space.register(&host.memory(UA, PAGES * PAGE)).expect("a region");
    let high = space.register(&host.memory(UA + PAGES * PAGE, PAGES * PAGE)).expect("a region");
    let drains = Arc::new(DrainCount::default());
    let limits = IovaLimits { mappings: LIMIT, ..IovaLimits::default() };
    let map = IovaMap::new(&space, limits, Holder::default(), Arc::clone(&drains) as Arc<dyn OnDrained>);
    let map = map.expect("memory for a map");
    let mut list = List::default();
    let mut holds: Vec<HeldRange> = Vec::new();
    let mut unmappings: Vec<(Vec<u64>, Unmapping)> = Vec::new();

    for step in steps {
        match step {
            Step::Map { range, to, how, rights } => {
                let (first, bytes) = range.numbers();
                let to = u64::from(to) % (2 * PAGES);
                let (backing, memory) = backing(to, bytes, how);
                let ua = (how % 4 != 0).then_some(UA + to * PAGE);
                let expected = whole(first, bytes).and_then(|last| {
                    if list.live.iter().any(|listed| listed.first <= last && first <= listed.last) {
                        return Err(Errno::EEXIST);
                    }
                    if list.live.len() >= LIMIT as usize {
                        return Err(Errno::ENOSPC);
                    }
                    Ok((last, memory?))
                });
                let access = rights.access();
                let got = map.map(Iova::new(first), bytes, backing, access);
                assert_eq!(got.map_err(|error| error.errno()), expected.map(|_| ()));
                if let Ok((last, units)) = expected {
                    list.ids += 1;
                    list.live.push(Listed { id: list.ids, first, last, access, units, ua });
                }
            }
            Step::MapRaw { iova, bytes, ua } => {
                // No registered memory is there.
                let ua = UserAddr::new(ua | 1 << 63);
                let got = map.map(Iova::new(iova), bytes, Backing::Local(ua), Access::Read);
                assert!(got.is_err());
            }
            Step::Unmap { range } => {
                let (first, bytes) = range.numbers();
                unmap(&map, &mut list, &mut unmappings, first, bytes);
            }
            Step::UnmapRaw { iova, bytes } => unmap(&map, &mut list, &mut unmappings, iova, bytes),
            Step::UnmapAll => {
                let ids = list.unmap_to(0, u64::MAX).expect("the whole space cuts no mapping");
                unmappings.push((ids, map.unmap_all()));
            }
            Step::Hold { range, skip, bytes, rights } => {
                let (first, _) = range.numbers();
                let first = first.saturating_add(u64::from(skip) % PAGE);
                hold(&map, &mut list, &mut holds, first, u64::from(bytes), rights.access(), &host);
            }
            Step::HoldRaw { iova, bytes } => {
                hold(&map, &mut list, &mut holds, iova, bytes, Access::Read, &host);
            }
            Step::Drop { which } => {
                if !holds.is_empty() {
                    let index = usize::from(which) % holds.len();
                    list.drop_hold(index);
                    drop(holds.remove(index));
                }
            }
        }
        let mapped = |registration: &prereg::Registration| registration.state().expect("registered").mapped;
        assert_eq!(mapped(&low) + mapped(&high), list.units());
        assert_eq!(drains.0.load(Ordering::SeqCst), list.drained);
        let state = map.snapshot();
        assert_eq!((state.mappings, state.closing.len()), (list.live.len() as u64, list.closing.len()));
        for (ids, unmapping) in &unmappings {
            let waits = ids.iter().filter(|&&id| list.inside(id) > 0).count();
            assert_eq!((unmapping.waiting().len(), unmapping.is_done()), (waits, waits == 0));
        }
    }
    drop(map);
    drop((low, high));
    drop(holds);
    space.reap();
    host.assert_clean();
});

fn unmap(
    map: &IovaMap,
    list: &mut List,
    unmappings: &mut Vec<(Vec<u64>, Unmapping)>,
    first: u64,
    bytes: u64,
) {
    let expected = list.unmap(first, bytes);
    match map.unmap(Iova::new(first), bytes) {
        Ok(unmapping) => {
            let ids = expected.expect("allowed");
            assert_eq!(unmapping.mappings(), ids.len() as u64);
            unmappings.push((ids, unmapping));
        }
        Err(error) => assert_eq!(Some(error.errno()), expected.err()),
    }
}

fn hold(
    map: &IovaMap,
    list: &mut List,
    holds: &mut Vec<HeldRange>,
    first: u64,
    bytes: u64,
    access: Access,
    host: &SimHost,
) {
    let expected = list.hold(first, bytes, access);
    match map.hold(Iova::new(first), bytes, access) {
        Ok(held) => {
            let found = expected.expect("allowed");
            check_pieces(&held, &found, first, bytes, host);
            list.holds.push(found.iter().map(|listed| listed.id).collect());
            holds.push(held);
        }
        Err(error) => assert_eq!(Some(error.errno()), expected.err()),
    }
}
