//! Builder of the io_uring back end.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use prereg::AddressKind;

use crate::error::BackendError;
use crate::options::Options;
use crate::sys;
use crate::uring::IoUring;

/// Options of an [`IoUring`]. All have defaults.
#[derive(Clone, Default)]
#[must_use]
pub struct IoUringBuilder {
    options: Options,
}

impl fmt::Debug for IoUringBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("IoUringBuilder").field(&self.options).finish()
    }
}

impl IoUring {
    /// A back end with default options. Host addresses are physical if this process may see them, else (slot, offset);
    /// [`address_note`](Self::address_note) says which and why.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn new() -> Result<Self, BackendError> {
        Self::builder().build()
    }

    /// A back end with other options.
    pub fn builder() -> IoUringBuilder {
        IoUringBuilder::default()
    }
}

impl IoUringBuilder {
    /// Threads that prefault memory before it is pinned. 0 (the default) means one per processor, at most 8; 1 leaves
    /// faulting to the pin itself.
    pub fn prefault_threads(mut self, threads: usize) -> Self {
        self.options.threads = threads;
        self
    }

    /// Called with bytes done and total bytes while memory is prefaulted, from the prefaulting threads. Not called for
    /// memory that is resident already or smaller than 16 MiB.
    pub fn progress(mut self, progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.options.progress = Some(Arc::new(progress));
        self
    }

    /// When this becomes `true`, prefaulting stops and the pin fails with EINTR, with nothing pinned.
    pub fn cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.options.cancel = Some(cancel);
        self
    }

    /// Requires a kind of host address. [`AddressKind::Physical`] fails where physical addresses are hidden; any other
    /// kind means [`AddressKind::SlotOffset`].
    pub fn addresses(mut self, kind: AddressKind) -> Self {
        self.options.addresses = Some(kind);
        self
    }

    /// Limits a slot to `bytes` (rounded down to whole pages, at least one page, at most 512 GiB) instead of the probed
    /// limit. If the kernel allows less, a pin costs one more attempt.
    pub fn slot_limit(mut self, bytes: u64) -> Self {
        let page = sys::page_size();
        self.options.slot_limit = Some((bytes / page * page).clamp(page, crate::buffer_limit::ASSUMED_MAX));
        self
    }

    /// Initialises the back end.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn build(self) -> Result<IoUring, BackendError> {
        IoUring::with_options(self.options)
    }
}
