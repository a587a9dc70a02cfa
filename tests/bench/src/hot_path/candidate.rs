//! Candidates, and the loop that all of them run in, compiled into each.

use std::hint::black_box;

use serde::Serialize;

use super::layout::{Address, Addresses, PAGE, Pattern};

/// The measured operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// Find the region (candidates that count) or the address (those that do not).
    Translate,
    /// Find the address, count the use, end the use.
    MapUnmap,
    /// Map and unmap 128 KiB at once, and visit every contiguous piece.
    Range,
    /// Register and unregister one more small region, without pinning.
    Register,
}

impl Case {
    /// Its name in the table.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Translate => "translate",
            Self::MapUnmap => "map-unmap",
            Self::Range => "range",
            Self::Register => "register",
        }
    }
}

/// An algorithm that finds addresses. Each method returns a number that depends on the address it found, so that the next
/// address can depend on it.
///
/// All requested addresses are registered: a candidate that does not find one panics.
pub trait Candidate {
    /// Finds an address.
    fn translate(&mut self, address: Address) -> u64;
    /// Finds an address, counts its use and ends it.
    fn map_unmap(&mut self, address: Address) -> u64;
    /// Finds all pages of a range, counts their use as one and ends it.
    fn range(&mut self, address: Address, bytes: u64) -> u64;
}

/// A candidate in its loop.
pub trait Workload {
    /// Whether it supports `case` with this pattern.
    fn does(&self, case: Case, pattern: Pattern) -> bool {
        let _ = (case, pattern);
        true
    }

    /// Runs `case` on `count` addresses. Equal arguments request equal addresses.
    fn pass(&mut self, case: Case, pattern: Pattern, addresses: Addresses, range: u64, count: u64);
}

impl<S: Candidate> Workload for S {
    // One closure per loop: the compiler does not inline one that two loops share.
    fn pass(&mut self, case: Case, pattern: Pattern, addresses: Addresses, range: u64, count: u64) {
        match (case, pattern) {
            (Case::Translate, Pattern::Random) => {
                random(count, |n| self.translate(addresses.page(n)));
            }
            (Case::Translate, Pattern::Dependent) => {
                dependent(count, |n| self.translate(addresses.page(n)));
            }
            (Case::Translate, Pattern::Sequential) => {
                sequential(count, |n| self.translate(addresses.page(n)));
            }
            (Case::MapUnmap, Pattern::Random) => {
                random(count, |n| self.map_unmap(addresses.page(n)));
            }
            (Case::MapUnmap, Pattern::Dependent) => {
                dependent(count, |n| self.map_unmap(addresses.page(n)));
            }
            (Case::MapUnmap, Pattern::Sequential) => {
                sequential(count, |n| self.map_unmap(addresses.page(n)));
            }
            (Case::Range, Pattern::Random) => {
                random(count, |n| self.range(addresses.range(n), range));
            }
            (Case::Range, Pattern::Dependent) => {
                dependent(count, |n| self.range(addresses.range(n), range));
            }
            (Case::Range, Pattern::Sequential) => {
                let pages = range / PAGE;
                sequential(count, |n| self.range(addresses.range(n * pages), range));
            }
            // Measured by `registration`: it uses no addresses.
            (Case::Register, _) => {}
        }
    }
}

/// Knuth's 64-bit generator; its upper bits are random enough to miss caches.
#[inline(always)]
pub(super) const fn next(state: u64) -> u64 {
    state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407)
}

#[inline(always)]
pub(super) fn random(count: u64, mut step: impl FnMut(u64) -> u64) {
    let (mut sum, mut state) = (0u64, 1);
    for _ in 0..count {
        state = next(state);
        sum = sum.wrapping_add(step(state >> 33));
    }
    black_box(sum);
}

#[inline(always)]
pub(super) fn dependent(count: u64, mut step: impl FnMut(u64) -> u64) {
    let (mut state, zero) = (1, black_box(0));
    for _ in 0..count {
        // The compiler does not know that the result is masked out.
        state = next(state ^ (step(state >> 33) & zero));
    }
    black_box(state);
}

#[inline(always)]
pub(super) fn sequential(count: u64, mut step: impl FnMut(u64) -> u64) {
    let mut sum = 0u64;
    for number in 0..count {
        sum = sum.wrapping_add(step(number));
    }
    black_box(sum);
}

/// The empty loop.
#[derive(Debug)]
pub struct Nothing;

impl Candidate for Nothing {
    #[inline(always)]
    fn translate(&mut self, address: Address) -> u64 {
        black_box(address.ua)
    }

    #[inline(always)]
    fn map_unmap(&mut self, address: Address) -> u64 {
        black_box(address.ua)
    }

    #[inline(always)]
    fn range(&mut self, address: Address, _bytes: u64) -> u64 {
        black_box(address.ua)
    }
}
