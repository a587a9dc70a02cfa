//! Options of a file disk.

use std::sync::Arc;

use prereg_linux::IoUring;

/// Whether to use direct I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Direct {
    /// If the file system supports it for blocks of the disk's size.
    #[default]
    Auto,
    /// Always; otherwise opening fails.
    On,
    /// Never.
    Off,
}

/// How to open a file as a disk.
#[derive(Clone, Debug, Default)]
pub struct DiskOptions {
    /// The disk is read-only.
    pub read_only: bool,
    /// Whether to use direct I/O.
    pub direct: Direct,
    /// The block size as a shift: 9 (512 bytes) to 12 (4096). `None`: a block device's own, and 512 bytes for a file, whatever
    /// it is on.
    pub block_shift: Option<u8>,
    /// The backend that registers guest memory, with (slot, offset) addresses. `None`: plain reads and writes.
    pub buffers: Option<Arc<IoUring>>,
}
