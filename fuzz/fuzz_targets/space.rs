//! A caller that registers, maps and gives back in any order with any numbers, on a host whose calls fail when it hurts.
//!
//! After every step each region has as many registrations and mappings as the caller holds, and as many pages are pinned
//! and charged as the regions have; in the end none.

#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use prereg::{AddressSpace, Granule, HostAddr, Mapping, PageShift, Registration, UserAddr};
use prereg_sim::SimHost;

const UA: u64 = 0x20_0000_0000;
const PAGE: u64 = 4096;
const PAGES: u64 = 64;

#[derive(Arbitrary, Debug)]
enum Step {
    Register { page: u8, pages: u8, odd: bool, new: bool },
    RegisterRaw { ua: u64, bytes: u64 },
    RegisterDevice { page: u8, pages: u8, host: u64 },
    Share { page: u8, pages: u8 },
    Unregister { which: u8 },
    Drop { which: u8 },
    Map { page: u8, low: u16, shift: u8 },
    MapRaw { ua: u64, shift: u8 },
    Unmap { which: u8, dropped: bool },
    FailNth { n: u8 },
    Limit { pages: u8 },
}

fn pick<T>(list: &mut Vec<T>, which: u8) -> Option<T> {
    (!list.is_empty()).then(|| list.swap_remove(usize::from(which) % list.len()))
}

fn at(page: u8) -> u64 {
    UA + u64::from(page % 80) * PAGE
}

fn bytes(pages: u8, odd: bool) -> u64 {
    u64::from(pages % 20) * PAGE + u64::from(odd)
}

fuzz_target!(|steps: Vec<Step>| {
    let host = SimHost::new(Granule::K4);
    let _ = host.memory(UA, PAGES * PAGE);
    let space = AddressSpace::builder(host.clone()).build().unwrap();
    let mut translator = space.translator();
    let mut registrations: Vec<Registration> = Vec::new();
    let mut mappings: Vec<Mapping> = Vec::new();

    for step in steps {
        match step {
            Step::Register { page, pages, odd, new } => {
                let memory = host.range(at(page), bytes(pages, odd));
                let made = if new { space.register_new(&memory) } else { space.register(&memory) };
                registrations.extend(made.ok());
            }
            Step::RegisterRaw { ua, bytes } => {
                registrations.extend(space.register(&host.range(ua, bytes)).ok())
            }
            Step::RegisterDevice { page, pages, host } => {
                let made =
                    space.register_device(UserAddr::new(at(page)), bytes(pages, false), HostAddr::new(host));
                registrations.extend(made.ok());
            }
            Step::Share { page, pages } => {
                registrations.extend(space.share(UserAddr::new(at(page)), bytes(pages, false)));
            }
            Step::Unregister { which } => {
                if let Some(registration) = pick(&mut registrations, which) {
                    if let Err(refused) = registration.unregister() {
                        assert!(refused.mapped() > 0);
                        registrations.push(refused.into_inner());
                    }
                }
            }
            Step::Drop { which } => drop(pick(&mut registrations, which)),
            Step::Map { page, low, shift } => {
                let ua = UserAddr::new(at(page) + u64::from(low) % PAGE);
                let Some(shift) = PageShift::new(12 + u32::from(shift % 8)) else { continue };
                mappings.extend(translator.map(ua, shift).ok());
            }
            Step::MapRaw { ua, shift } => {
                let Some(shift) = PageShift::new(u32::from(shift)) else { continue };
                mappings.extend(translator.map(UserAddr::new(ua), shift).ok());
            }
            Step::Unmap { which, dropped } => {
                if let Some(mapping) = pick(&mut mappings, which) {
                    if dropped { drop(mapping) } else { translator.unmap(mapping) }
                }
            }
            Step::FailNth { n } => host.fail_nth(u64::from(n % 8)),
            Step::Limit { pages } => host.limit_pages(u64::from(pages)),
        }

        let state = space.snapshot();
        let mut pinned = 0;
        for region in &state.regions {
            let inside = |ua: UserAddr| ua >= region.ua && ua.raw() - region.ua.raw() < region.bytes;
            let used =
                registrations.iter().filter(|r| r.ua() == region.ua && r.bytes() == region.bytes).count();
            let mapped = mappings.iter().filter(|m| inside(m.ua())).count();
            assert_eq!(region.used, used as u64, "{region:?}");
            assert_eq!(region.mapped, 1 + mapped as u64, "{region:?}");
            assert!(used + mapped > 0, "neither registered nor mapped: {region:?}");
            if !region.device {
                pinned += region.pages;
            }
        }
        for mapping in &mappings {
            let held = state
                .regions
                .iter()
                .find(|r| mapping.ua() >= r.ua && mapping.ua().raw() - r.ua.raw() < r.bytes);
            let device = held.expect("a mapping keeps its region").device;
            if !device {
                let page = mapping.ua().align_down(PageShift::K4);
                let offset = mapping.ua().raw() - page.raw();
                let backs = host.backs(page.raw()).and_then(|host| host.checked_add(offset));
                assert_eq!(backs, Some(mapping.hpa()));
            }
        }
        assert_eq!(state.pinned_pages, pinned);
        assert_eq!(host.pinned_pages(), pinned);
        assert_eq!(host.charged_pages(), pinned);
    }

    drop(registrations);
    drop(mappings);
    drop(translator);
    drop(space);
    host.assert_clean();
});
