//! The options of the io_uring back end.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use prereg::AddressKind;

use crate::error::BackendError;
use crate::options::Options;
use crate::sys;
use crate::uring::IoUring;

/// Options of an [`IoUring`], each with a default that suits most.
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
    /// A back end with one ring. Host addresses are physical when this process may see them, else (slot, offset):
    /// [`address_note`](Self::address_note) says which and why.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn new() -> Result<Self, BackendError> {
        Self::builder().build()
    }

    /// A back end with options.
    pub fn builder() -> IoUringBuilder {
        IoUringBuilder::default()
    }
}

impl IoUringBuilder {
    /// Threads that bring memory in before it is pinned; 0 (the default) means as many as there are processors, up to 8,
    /// and 1 leaves it to the pin.
    pub fn prefault_threads(mut self, threads: usize) -> Self {
        self.options.threads = threads;
        self
    }

    /// Called with bytes done and bytes in all while memory is brought in, from the threads that do it. Memory that is
    /// there already, or less than 16 MiB, is pinned without a call.
    pub fn progress(mut self, progress: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        self.options.progress = Some(Arc::new(progress));
        self
    }

    /// Once this is `true`, bringing memory in stops and the pin fails with EINTR, nothing pinned.
    pub fn cancel(mut self, cancel: Arc<AtomicBool>) -> Self {
        self.options.cancel = Some(cancel);
        self
    }

    /// Insists on a kind of host address: [`AddressKind::Physical`] fails where they are hidden,
    /// anything else means [`AddressKind::SlotOffset`].
    pub fn addresses(mut self, kind: AddressKind) -> Self {
        self.options.addresses = Some(kind);
        self
    }

    /// Gives one slot at most `bytes` (rounded down to whole pages, at least one, at most 512 GiB) instead of what the
    /// kernel is found to allow. More than it allows costs a failed attempt, no more.
    pub fn slot_limit(mut self, bytes: u64) -> Self {
        let page = sys::page_size();
        self.options.slot_limit = Some((bytes / page * page).clamp(page, crate::buffer_limit::ASSUMED_MAX));
        self
    }

    /// Makes the back end.
    ///
    /// # Errors
    /// [`BackendError`].
    pub fn build(self) -> Result<IoUring, BackendError> {
        IoUring::with_options(self.options)
    }
}
