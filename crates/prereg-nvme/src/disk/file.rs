//! A disk in a regular file or on a block device, through io_uring.
//!
//! A [`FileDisk`] owns the file, opened once and locked against other processes; its queues share it and own a ring each. Data
//! move directly between file and guest memory: through fixed buffers where guest memory is registered, without a copy and
//! without pinning per I/O; otherwise by plain reads and writes. A bounce buffer is used only for memory that only the client
//! can reach, for compares, and for memory whose alignment direct I/O does not accept.
//!
//! A file is used in one way, direct or through the page cache, never both: a cached write and a direct one to neighbouring
//! blocks of a page would overwrite each other. So misaligned requests are copied and not cached.
//!
//! Modules: `storage` is the file and its properties; `shared` is what queues share; `queue` performs `requests` in `part`s,
//! `data_path` chooses how, `copy_thread` copies from and to memory that only the client can reach.

mod copy_thread;
mod data_path;
mod options;
mod part;
mod queue;
mod requests;
mod shared;
mod storage;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use prereg_linux::PlainReason;

use super::{Changed, Disk, DiskCounters, DiskError, DiskQueue};
pub use options::{Direct, DiskOptions};
use queue::FileQueue;
use shared::Shared;
use storage::Storage;

/// A disk in a regular file or on a block device.
///
/// ```
/// use prereg_nvme::disk::{Disk, DiskOptions, FileDisk};
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("disk.img");
/// std::fs::File::create(&path)?.set_len(1 << 20)?;
/// let disk = FileDisk::open(&path, DiskOptions::default())?;
/// assert_eq!((disk.bytes(), disk.block_shift()), (1 << 20, 9));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct FileDisk {
    shared: Arc<Shared>,
}

impl FileDisk {
    /// Opens `path` and locks it: exclusively, or shared if it is read-only.
    ///
    /// # Errors
    /// [`DiskError`]; nothing is locked then.
    pub fn open(path: &Path, options: DiskOptions) -> Result<Self, DiskError> {
        let storage = Storage::open(path, &options)?;
        let bytes = storage.whole_blocks()?;
        Ok(Self { shared: Arc::new(Shared::new(storage, options.buffers, bytes)) })
    }

    /// Whether direct I/O is used.
    ///
    /// # Errors
    /// The reason why not, as text.
    pub fn direct(&self) -> Result<(), &'static str> {
        self.shared.storage.cached_because.map_or(Ok(()), Err)
    }

    /// Whether fixed buffers are used.
    ///
    /// # Errors
    /// The reason why not.
    pub fn fixed(&self) -> Result<(), PlainReason> {
        self.shared.pins.as_ref().map_or(Err(PlainReason::NoBackend), |pins| pins.fixed_io_support())
    }
}

impl Disk for FileDisk {
    fn bytes(&self) -> u64 {
        self.shared.bytes()
    }

    fn block_shift(&self) -> u8 {
        self.shared.storage.block_shift
    }

    fn read_only(&self) -> bool {
        self.shared.storage.read_only
    }

    fn discard_zeroes(&self) -> bool {
        self.shared.storage.punches
    }

    fn queue(&self, kick: Arc<OwnedFd>) -> Result<Box<dyn DiskQueue>, DiskError> {
        Ok(Box::new(FileQueue::new(&self.shared, kick)?))
    }

    fn refresh(&self) -> Result<Changed, DiskError> {
        let now = self.shared.storage.whole_blocks()?;
        let before = self.shared.set_bytes(now);
        Ok(if before == now { Changed::No } else { Changed::Bytes { before, now } })
    }

    fn counters(&self) -> DiskCounters {
        self.shared.counters()
    }
}
