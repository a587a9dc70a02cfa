//! The most memory that one slot of a buffer table can hold: 1 GiB on older kernels, more on newer ones.
//!
//! Probed instead of derived from the kernel's version. The probe offers 1 GiB and a page, of which only the first page
//! is accessible. A kernel that allows more than 1 GiB starts to pin, faults the first page in and fails at the second;
//! an older one refuses at once. Both return EFAULT, and whether the first page is resident distinguishes them.
//!
//! The exact limit is not probed, because the kernel would allocate a list of all the pages. The first larger region
//! tries, and each refusal halves the size until it fits.

use std::os::fd::RawFd;

use prereg::Errno;

use crate::mapping::Mapping;
use crate::sys::{self, Buffer};

/// The size that every kernel with buffer tables accepts.
pub(crate) const GUARANTEED: u64 = 1 << 30;

/// The size assumed of a kernel that accepts more than [`GUARANTEED`]. Half of what the offset bits of a slot address
/// can express, so that the end of one slot and the start of the next never look contiguous.
pub(crate) const ASSUMED_MAX: u64 = 1 << 39;

/// The bytes that one slot can hold, as far as can be determined without pinning them.
pub(crate) fn probe(ring: RawFd, slot: u32) -> Result<u64, Errno> {
    let page = sys::page_size();
    let bytes = GUARANTEED + page;
    let reserved = Mapping::reservation(usize::try_from(bytes).map_err(|_| Errno::ENOMEM)?)?;
    let buffer = Buffer { ua: reserved.ua(), bytes };
    match sys::update_buffers(ring, slot, &[buffer], &[0]) {
        Err(_) => {}
        // Unexpected, as only one page is accessible. Empties the slot and assumes the guaranteed size.
        Ok(_) => {
            sys::update_buffers(ring, slot, &[Buffer::NONE], &[0])?;
            return Ok(GUARANTEED);
        }
    }
    // A seccomp filter may refuse mincore (systemd's @system-service does not have it): several slots do for a large region.
    let resident = sys::is_resident(reserved.ua(), page).unwrap_or(false);
    Ok(if resident { ASSUMED_MAX } else { GUARANTEED })
}

/// The next size to try after `bytes` was refused for a reason other than the memory itself.
pub(crate) const fn smaller(bytes: u64) -> Option<u64> {
    if bytes <= GUARANTEED {
        None
    } else if bytes / 2 > GUARANTEED {
        Some(bytes / 2)
    } else {
        Some(GUARANTEED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_end_at_what_every_kernel_allows() {
        let mut tried = vec![ASSUMED_MAX];
        while let Some(next) = smaller(*tried.last().unwrap()) {
            tried.push(next);
        }
        assert_eq!(tried.len(), 10);
        assert!(tried.windows(2).all(|pair| pair[1] * 2 == pair[0]));
        assert_eq!(tried.last(), Some(&GUARANTEED));
        assert_eq!(smaller(GUARANTEED + 4096), Some(GUARANTEED));
    }
}
