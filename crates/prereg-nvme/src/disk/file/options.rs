//! What may be chosen when a file is opened as a disk.

use std::sync::Arc;

use prereg_linux::IoUring;

/// Whether the page cache is passed by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Direct {
    /// Where the file system can, for blocks of the disk's size.
    #[default]
    Auto,
    /// Or not at all.
    On,
    /// Never.
    Off,
}

/// How a file is opened as a disk.
#[derive(Clone, Debug, Default)]
pub struct DiskOptions {
    /// Nothing is ever written.
    pub read_only: bool,
    /// Whether the page cache is passed by.
    pub direct: Direct,
    /// The block: 9 (512 bytes) to 12 (4096). `None`: a device's own, and 512 bytes for a file, on whatever it lies.
    pub block_shift: Option<u8>,
    /// The back end that registers the guest's memory, with (slot, offset) addresses. `None`: plain reads and writes.
    pub buffers: Option<Arc<IoUring>>,
}
