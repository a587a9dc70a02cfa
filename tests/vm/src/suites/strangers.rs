//! Third-party software on the disk: tools, firmware, bootloaders.
//!
//! `tools` runs Debian's programs for disks and file systems in a guest, `firmware` boots machines from the disk, `boot_disk`
//! makes that disk. Debian's packages are fetched when the first case needs them.

mod boot_disk;
mod firmware;
mod tools;

use super::case::Case;

/// All cases.
pub(crate) fn cases() -> Vec<Case> {
    [tools::CASES, firmware::CASES].concat()
}
