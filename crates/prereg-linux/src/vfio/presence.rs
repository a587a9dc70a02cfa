//! Memory before VFIO pins it: brought in by several threads, and looked at for what VFIO would map without a pin.
//!
//! A type1 container maps the registers of a device as it maps memory, without pinning anything: they can be taken away
//! under the mapping. That is no registered memory, so it is refused here, by what `madvise(MADV_POPULATE_WRITE)` says.

use prereg::{PinError, UserAddr, UserRange};

use crate::fault_in::{self, FaultIn, Old};
use crate::maps;
use crate::sys;

const DEVICE: &str = "it is a device's own memory, which is not pinned but can be taken away; register it as device memory \
                      (AddressSpace::register_device)";

/// Less is brought in by the pin itself as fast.
const WORTH_THREADS: u64 = 16 << 20;

/// Brings `range` in.
pub(super) fn bring_in(range: UserRange) -> Result<(), PinError> {
    let (ua, bytes) = (range.first().raw(), range.bytes());
    if bytes >= WORTH_THREADS {
        // What cannot come in is found again below.
        let _ = fault_in::populate(ua, bytes, FaultIn::default(), Old::Leave);
    }
    match sys::populate_write(ua, bytes) {
        // A kernel that cannot populate (before 5.14) says EINVAL to everything; then the pin has the only word.
        Err(prereg::Errno::EINVAL) if sys::can_populate() => Err(refused(range)),
        Err(prereg::Errno::EINVAL) | Ok(()) => Ok(()),
        Err(_) => maps::obstacle(range)
            .map_or(Ok(()), |found| Err(PinError::Fault { ua: found.ua, why: found.why })),
    }
}

/// Why a range cannot be populated at all: no right to write, or a device's.
fn refused(range: UserRange) -> PinError {
    if let Some(found) = maps::mapped_obstacle(range) {
        return PinError::Fault { ua: found.ua, why: found.why };
    }
    PinError::Unsupported { ua: first_device_page(range).unwrap_or(range.first()), why: DEVICE }
}

fn first_device_page(range: UserRange) -> Option<UserAddr> {
    let text = std::fs::read("/proc/self/maps").ok()?;
    let areas = maps::parse(&String::from_utf8_lossy(&text));
    let starts = areas
        .iter()
        .filter(|area| area.end > range.first().raw() && area.start <= range.last().raw())
        .map(|area| area.start.max(range.first().raw()));
    starts
        .into_iter()
        .find(|&start| sys::populate_write(start, sys::page_size()) == Err(prereg::Errno::EINVAL))
        .map(UserAddr::new)
}

/// What the kernel's EFAULT was about.
pub(super) fn obstacle(range: UserRange) -> PinError {
    match maps::obstacle(range) {
        Some(found) => PinError::Fault { ua: found.ua, why: found.why },
        None => PinError::Fault { ua: range.first(), why: maps::OTHER_KIND },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::GuestMemory;
    use crate::mapping::Mapping;
    use crate::pagemap::system_granule;

    fn range(ua: u64, bytes: u64) -> UserRange {
        UserRange::new(UserAddr::new(ua), bytes, system_granule().unwrap()).unwrap()
    }

    #[test]
    fn memory_comes_in_and_what_cannot_is_named() {
        let memory = GuestMemory::memfd("present", 24 << 20).unwrap();
        bring_in(range(memory.ua().raw(), memory.bytes())).unwrap();
        let reserved = Mapping::reservation(1 << 20).unwrap();
        let error = bring_in(range(reserved.ua(), 2 * sys::page_size())).unwrap_err();
        assert!(matches!(error, PinError::Fault { why, .. } if why.contains("PROT_NONE")), "{error}");
    }

    #[test]
    fn read_only_memory_is_no_device() {
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let page = sys::page_size();
        let area = maps::parse(&text)
            .into_iter()
            .find(|area| area.readable && !area.writable && area.path.starts_with('/'))
            .unwrap();
        let error = bring_in(range(area.start, page)).unwrap_err();
        assert!(matches!(error, PinError::Fault { why, .. } if why.contains("read-only")), "{error}");
    }

    #[test]
    fn pages_of_the_kernel_are_refused_by_name() {
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let Some(area) = maps::parse(&text).into_iter().find(|area| area.path == "[vvar]") else {
            eprintln!("skipped: this kernel shows no [vvar]");
            return;
        };
        let error = bring_in(range(area.start, sys::page_size())).unwrap_err();
        assert!(matches!(error, PinError::Fault { why, .. } if why.contains("kernel")), "{error}");
    }
}
