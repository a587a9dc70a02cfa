//! Prefaulting of memory that VFIO is about to pin, and refusal of memory that it would map without pinning.
//!
//! A type1 container maps device registers like memory, but without a pin, so they can be removed while mapped. Such
//! memory is refused here, as `madvise(MADV_POPULATE_WRITE)` does not accept it.

use prereg::{PinError, UserAddr, UserRange};

use crate::prefault::{self, Fallback, Prefault};
use crate::proc_maps;
use crate::sys;

const DEVICE: &str = "it is a device's own memory, which is not pinned but can be taken away; register it as device memory \
                      (AddressSpace::register_device)";

/// Smaller memory is faulted in as fast by the pin itself.
const WORTH_THREADS: u64 = 16 << 20;

/// Faults `range` in.
pub(super) fn prefault(range: UserRange) -> Result<(), PinError> {
    let (ua, bytes) = (range.first().raw(), range.bytes());
    if bytes >= WORTH_THREADS {
        // A page that fails here fails again below.
        let _ = prefault::populate(ua, bytes, Prefault::default(), Fallback::Skip);
    }
    match sys::populate_write(ua, bytes) {
        // A kernel that cannot populate (before 5.14) always returns EINVAL; then only the pin can fail.
        Err(prereg::Errno::EINVAL) if sys::can_populate() => Err(refused(range)),
        Err(prereg::Errno::EINVAL) | Ok(()) => Ok(()),
        Err(_) => proc_maps::unpinnable_reason(range).map_or(Ok(()), |found| Err(found.into())),
    }
}

/// The error for a range that cannot be populated: it is read-only or device memory.
fn refused(range: UserRange) -> PinError {
    if let Some(found) = proc_maps::vma_reason(range) {
        return found.into();
    }
    PinError::Unsupported { ua: first_device_page(range).unwrap_or(range.first()), why: DEVICE }
}

fn first_device_page(range: UserRange) -> Option<UserAddr> {
    let text = std::fs::read("/proc/self/maps").ok()?;
    let vmas = proc_maps::parse(&String::from_utf8_lossy(&text));
    let starts = vmas
        .iter()
        .filter(|vma| vma.end > range.first().raw() && vma.start <= range.last().raw())
        .map(|vma| vma.start.max(range.first().raw()));
    starts
        .into_iter()
        .find(|&start| sys::populate_write(start, sys::page_size()) == Err(prereg::Errno::EINVAL))
        .map(UserAddr::new)
}

/// The error for the kernel's EFAULT.
pub(super) fn unpinnable_reason(range: UserRange) -> PinError {
    match proc_maps::unpinnable_reason(range) {
        Some(found) => found.into(),
        None => PinError::Fault { ua: range.first(), why: proc_maps::OTHER_KIND },
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
        prefault(range(memory.ua().raw(), memory.bytes())).unwrap();
        let reserved = Mapping::reservation(1 << 20).unwrap();
        let error = prefault(range(reserved.ua(), 2 * sys::page_size())).unwrap_err();
        assert!(matches!(error, PinError::Fault { why, .. } if why.contains("PROT_NONE")), "{error}");
    }

    #[test]
    fn read_only_memory_is_no_device() {
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let page = sys::page_size();
        let vma = proc_maps::parse(&text)
            .into_iter()
            .find(|vma| vma.readable && !vma.writable && vma.path.starts_with('/'))
            .unwrap();
        let error = prefault(range(vma.start, page)).unwrap_err();
        assert!(matches!(error, PinError::Fault { why, .. } if why.contains("read-only")), "{error}");
    }

    #[test]
    fn pages_of_the_kernel_are_refused_by_name() {
        let text = std::fs::read_to_string("/proc/self/maps").unwrap();
        let Some(vma) = proc_maps::parse(&text).into_iter().find(|vma| vma.path == "[vvar]") else {
            eprintln!("skipped: this kernel shows no [vvar]");
            return;
        };
        let error = prefault(range(vma.start, sys::page_size())).unwrap_err();
        assert!(matches!(error, PinError::Fault { why, .. } if why.contains("kernel")), "{error}");
    }
}
