//! Options of the io_uring back end.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use prereg::AddressKind;

#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) threads: usize,
    pub(crate) progress: Option<Arc<dyn Fn(u64, u64) + Send + Sync>>,
    pub(crate) cancel: Option<Arc<AtomicBool>>,
    /// `None`: physical where possible.
    pub(crate) addresses: Option<AddressKind>,
    pub(crate) slot_limit: Option<u64>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("threads", &self.threads)
            .field("progress", &self.progress.is_some())
            .field("cancel", &self.cancel)
            .field("addresses", &self.addresses)
            .field("slot_limit", &self.slot_limit)
            .finish()
    }
}
