//! prereg: a translator, page by page and in lists.

use std::hint::black_box;

use prereg::{Burst, Mapping, PageShift, Translator, UserAddr};

use super::candidate::{Candidate, Case, Workload, dependent, next, random, sequential};
use super::layout::{Address, Addresses, Pattern};

/// A thread's translator.
#[derive(Debug)]
pub struct Prereg(pub Translator);

impl Candidate for Prereg {
    /// `check`: returns no address, as nothing is counted.
    #[inline(always)]
    fn translate(&mut self, address: Address) -> u64 {
        match self.0.check(UserAddr::new(address.ua), PageShift::K4) {
            Ok(()) => 1,
            Err(_) => not_found(),
        }
    }

    #[inline(always)]
    fn map_unmap(&mut self, address: Address) -> u64 {
        let Ok(mapping) = self.0.map(UserAddr::new(address.ua), PageShift::K4) else { not_found() };
        let host = mapping.hpa().raw();
        self.0.unmap(mapping);
        host
    }

    #[inline(always)]
    fn range(&mut self, address: Address, bytes: u64) -> u64 {
        let Ok(mapping) = self.0.map_range(UserAddr::new(address.ua), bytes) else { not_found() };
        let sum = mapping.runs().fold(0, |sum: u64, run| sum.wrapping_add(run.host.raw()));
        self.0.unmap_range(mapping);
        sum >> 1
    }
}

/// A thread's translator, one burst for each pass.
#[derive(Debug)]
pub struct PreregBurst(pub Translator);

impl PreregBurst {
    #[inline(always)]
    fn map_unmap(burst: &mut Burst<'_>, address: Address) -> u64 {
        let Ok(mapping) = burst.map(UserAddr::new(address.ua), PageShift::K4) else { not_found() };
        mapping.hpa().raw()
    }
}

impl Workload for PreregBurst {
    fn does(&self, case: Case, _pattern: Pattern) -> bool {
        case == Case::MapUnmap
    }

    fn pass(&mut self, case: Case, pattern: Pattern, addresses: Addresses, _range: u64, count: u64) {
        if !self.does(case, pattern) {
            return;
        }
        match pattern {
            Pattern::Random => {
                let mut burst = self.0.burst();
                random(count, |n| Self::map_unmap(&mut burst, addresses.page(n)));
            }
            Pattern::Dependent => {
                let mut burst = self.0.burst();
                dependent(count, |n| Self::map_unmap(&mut burst, addresses.page(n)));
            }
            Pattern::Sequential => {
                let mut burst = self.0.burst();
                sequential(count, |n| Self::map_unmap(&mut burst, addresses.page(n)));
            }
        }
    }
}

/// Pages of a list, as in H_PUT_TCE_INDIRECT.
const LIST: usize = 512;

/// A translator with a list of mappings, as when a table is filled or an I/O starts: mapped at once, or page by page.
#[derive(Debug)]
pub struct PreregLists {
    translator: Translator,
    at_once: bool,
    pages: Vec<UserAddr>,
    mappings: Vec<Option<Mapping>>,
}

impl PreregLists {
    /// Room for one list, mapped at once or page by page.
    #[must_use]
    pub fn new(translator: Translator, at_once: bool) -> Self {
        Self {
            translator,
            at_once,
            pages: Vec::with_capacity(LIST),
            mappings: std::iter::repeat_with(|| None).take(LIST).collect(),
        }
    }

    /// Maps the collected pages, reads each address, and unmaps them.
    fn once(&mut self) -> u64 {
        if self.at_once {
            if self.translator.map_list(&self.pages, PageShift::K4, &mut self.mappings).is_err() {
                not_found();
            }
        } else {
            for (&page, place) in self.pages.iter().zip(&mut self.mappings) {
                let Ok(mapping) = self.translator.map(page, PageShift::K4) else { not_found() };
                *place = Some(mapping);
            }
        }
        let hosts = self.mappings[..self.pages.len()].iter().flatten().map(|mapping| mapping.hpa().raw());
        let sum = hosts.fold(0, u64::wrapping_add);
        let held = &mut self.mappings[..self.pages.len()];
        if self.at_once {
            self.translator.unmap_list(held);
        } else {
            for mapping in held.iter_mut().filter_map(Option::take) {
                self.translator.unmap(mapping);
            }
        }
        self.pages.clear();
        sum
    }
}

impl Workload for PreregLists {
    /// A page that depends on the previous result cannot be in the same list.
    fn does(&self, case: Case, pattern: Pattern) -> bool {
        case == Case::MapUnmap && pattern != Pattern::Dependent
    }

    fn pass(&mut self, case: Case, pattern: Pattern, addresses: Addresses, _range: u64, count: u64) {
        if !self.does(case, pattern) {
            return;
        }
        let (mut sum, mut state) = (0u64, 1);
        for number in 0..count {
            state = next(state);
            let page = if pattern == Pattern::Random { state >> 33 } else { number };
            self.pages.push(UserAddr::new(addresses.page(page).ua));
            if self.pages.len() == LIST || number + 1 == count {
                sum = sum.wrapping_add(self.once());
            }
        }
        black_box(sum);
    }
}

/// A candidate did not find registered memory: a defect of the benchmark.
#[cold]
#[inline(never)]
pub fn not_found() -> ! {
    panic!("a registered page was not found")
}
