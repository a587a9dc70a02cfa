//! How much memory one slot of a buffer table may hold: 1 GiB on today's kernels, more on newer ones.
//!
//! Found out by asking, not by version. A kernel that allows more than 1 GiB starts to pin, and so brings the first page
//! in before it meets the second, which has no access; one that does not refuses at once. Both say EFAULT, and whether
//! the first page came in tells them apart. It costs one page.
//!
//! How much more is not asked: the kernel would have to make a list of all the pages. The first region that is larger
//! tries, and a refusal halves the piece until it fits.

use std::os::fd::RawFd;

use prereg::Errno;

use crate::mapping::Mapping;
use crate::sys::{self, Buffer};

/// What every kernel with buffer tables allows.
pub(crate) const GUARANTEED: u64 = 1 << 30;

/// What is believed of a kernel that allows more. Half of what a slot's part of an address can name, so that the end of
/// one slot and the start of the next never look contiguous.
pub(crate) const ASSUMED_MAX: u64 = 1 << 39;

/// The bytes that one slot may be given, as far as can be known without pinning them.
pub(crate) fn probe(ring: RawFd, slot: u32) -> Result<u64, Errno> {
    let page = sys::page_size();
    let bytes = GUARANTEED + page;
    let reserved = Mapping::reservation(usize::try_from(bytes).map_err(|_| Errno::ENOMEM)?)?;
    let buffer = Buffer { ua: reserved.ua(), bytes };
    match sys::update_buffers(ring, slot, &[buffer], &[0]) {
        Err(_) => {}
        // Cannot be: all but one page is without access. The slot is emptied again, and nothing is learnt.
        Ok(_) => {
            sys::update_buffers(ring, slot, &[Buffer::NONE], &[0])?;
            return Ok(GUARANTEED);
        }
    }
    Ok(if sys::is_resident(reserved.ua(), page)? { ASSUMED_MAX } else { GUARANTEED })
}

/// The next piece to try after one of `bytes` was refused for no reason that lies in the memory.
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
