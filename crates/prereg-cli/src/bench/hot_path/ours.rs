//! prereg itself: a translator.

use prereg::{PageShift, Translator, UserAddr};

use super::layout::Address;
use super::subject::Subject;

/// One thread's translator.
#[derive(Debug)]
pub struct Ours(pub Translator);

impl Subject for Ours {
    /// `check`: no address leaves without being counted.
    #[inline(always)]
    fn translate(&mut self, address: Address) -> u64 {
        match self.0.check(UserAddr::new(address.ua), PageShift::K4) {
            Ok(()) => 1,
            Err(_) => missed(),
        }
    }

    #[inline(always)]
    fn map_unmap(&mut self, address: Address) -> u64 {
        let Ok(mapping) = self.0.map(UserAddr::new(address.ua), PageShift::K4) else { missed() };
        let host = mapping.hpa().raw();
        self.0.unmap(mapping);
        host
    }

    #[inline(always)]
    fn range(&mut self, address: Address, bytes: u64) -> u64 {
        let Ok(mapping) = self.0.map_range(UserAddr::new(address.ua), bytes) else { missed() };
        let sum = mapping.runs().fold(0, |sum: u64, run| sum.wrapping_add(run.host.raw()));
        self.0.unmap_range(mapping);
        sum >> 1
    }
}

/// A subject did not find what is registered: a defect of the benchmark.
#[cold]
#[inline(never)]
pub fn missed() -> ! {
    panic!("a registered page was not found")
}
