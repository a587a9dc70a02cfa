//! Foreign software on the disk: other tools than the guest's own driver, firmware, bootloaders.
//!
//! `tools` are Debian's programs for disks and file systems in a guest, `firmware` is machines that start from the disk,
//! `boot_disk` the disk for those. All of it comes from Debian's packages, fetched when the first case needs them.

mod boot_disk;
mod firmware;
mod tools;

use super::case::Case;

/// All of them.
pub(crate) fn cases() -> Vec<Case> {
    [tools::CASES, firmware::CASES].concat()
}
