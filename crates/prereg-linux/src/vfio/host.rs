//! The host that VFIO is used on: its kernel and its sysfs.

use std::path::Path;
use std::sync::Arc;

use super::error::VfioError;
use super::ioctl_trace::{IoctlTrace, TracingKernel};
use super::kernel::{Descriptor, Kernel};
use super::sys::SystemKernel;
use super::sysfs::Sysfs;

/// The kernel and the sysfs that VFIO is used on.
#[derive(Clone, Debug)]
pub struct VfioHost {
    pub(crate) kernel: Arc<dyn Kernel>,
    pub(crate) sysfs: Sysfs,
}

impl VfioHost {
    /// This machine.
    #[must_use]
    pub fn system() -> Self {
        Self { kernel: Arc::new(SystemKernel), sysfs: Sysfs::at("/sys") }
    }

    /// Records every system call in `log`.
    #[must_use]
    pub fn traced(self, log: &IoctlTrace) -> Self {
        Self { kernel: Arc::new(TracingKernel::new(self.kernel, log.clone())), sysfs: self.sysfs }
    }

    /// Opens a node.
    pub(crate) fn open(&self, path: &str) -> Result<Arc<dyn Descriptor>, VfioError> {
        self.kernel.open(Path::new(path)).map_err(|errno| VfioError::of_open(path, errno))
    }
}

impl Default for VfioHost {
    fn default() -> Self {
        Self::system()
    }
}
