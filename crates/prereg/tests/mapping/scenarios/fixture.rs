//! The fixture of the scenarios: a simulated host, an address space, regions A and B.

use prereg::{AddressSpace, Granule, PageShift, RegionState, Registration, UserAddr};
use prereg_sim::{SimHost, SimMemory};

/// Aligned to 1 GiB, so that only a scenario's offsets limit alignment.
pub(crate) const A: u64 = 0x7f00_0000_0000;

pub(crate) struct Fixture {
    pub(crate) host: SimHost,
    pub(crate) space: AddressSpace,
    /// The system page in bytes.
    pub(crate) p: u64,
    pub(crate) granule: Granule,
}

impl Fixture {
    pub(crate) fn new(granule: Granule) -> Self {
        let host = SimHost::new(granule);
        host.limit_pages(64);
        Self {
            space: super::super::builder(host.clone()).build().unwrap(),
            host,
            p: granule.bytes(),
            granule,
        }
    }

    /// The address `pages` system pages after `a`.
    pub(crate) fn at(&self, pages: u64) -> UserAddr {
        UserAddr::new(A + pages * self.p)
    }

    /// Ordinary memory: `pages` pages, `first` pages after `a`.
    pub(crate) fn mem(&self, first: u64, pages: u64) -> SimMemory {
        self.host.memory(A + first * self.p, pages * self.p)
    }

    pub(crate) fn reg_a(&self) -> Registration {
        self.space.register(&self.mem(0, 16)).unwrap()
    }

    pub(crate) fn reg_b(&self) -> Registration {
        self.space.register(&self.mem(16, 16)).unwrap()
    }

    /// One more registration of A.
    pub(crate) fn get_a(&self) -> Registration {
        self.space.share(self.at(0), 16 * self.p).unwrap()
    }

    pub(crate) fn shift(&self) -> PageShift {
        self.granule.shift()
    }

    /// The two counters of a registration's region, as the kernel counts.
    pub(crate) fn counters(&self, registration: &Registration) -> (u64, u64) {
        let state: RegionState = registration.state().unwrap();
        (state.used, state.kernel_mapped())
    }

    pub(crate) fn charged(&self) -> u64 {
        self.host.charged_pages()
    }

    /// The end of every scenario.
    pub(crate) fn teardown(self) {
        drop(self.space);
        self.host.assert_clean();
    }
}

/// Each scenario as two tests, one for each system page size.
macro_rules! scenarios {
    ($($(#[$attr:meta])* fn $name:ident($fixture:ident) $body:block)*) => {
        $($(#[$attr])* fn $name($fixture: super::fixture::Fixture) { $body })*
        mod k4 {
            $(#[test] fn $name() { super::$name(super::super::fixture::Fixture::new(prereg::Granule::K4)); })*
        }
        mod k64 {
            $(#[test] fn $name() { super::$name(super::super::fixture::Fixture::new(prereg::Granule::K64)); })*
        }
    };
}
pub(crate) use scenarios;
