//! A trace of the VFIO system calls: one line per call, with its arguments and its result.
//!
//! For debugging refusals, and for the recordings that the tests of this folder replay:
//!
//! ```text
//! open /dev/vfio/vfio => ok
//! /dev/vfio/vfio VFIO_CHECK_EXTENSION 0x3 => 1
//! /dev/vfio/vfio VFIO_IOMMU_UNMAP_DMA 180000000... -> 180000000... => 0
//! /dev/vfio/vfio closed
//! ```

use std::fmt::Write;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use prereg::{Errno, PinError, UserRange};

use super::bar::Bar;
use super::kernel::{Argument, DEVICE_BIND_IOMMUFD, Descriptor, Kernel, Request};

/// A trace of system calls. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct IoctlTrace {
    lines: Arc<Mutex<Vec<String>>>,
}

impl IoctlTrace {
    /// An empty trace.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The lines so far.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of `ioctl(2)` calls so far.
    #[must_use]
    pub fn requests(&self) -> usize {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.iter().filter(|line| !line.starts_with("open ") && !line.ends_with(" closed")).count()
    }

    fn push(&self, line: String) {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }
}

/// A kernel whose calls are recorded.
#[derive(Debug)]
pub(crate) struct TracingKernel {
    kernel: Arc<dyn Kernel>,
    log: IoctlTrace,
}

impl TracingKernel {
    pub(crate) fn new(kernel: Arc<dyn Kernel>, log: IoctlTrace) -> Self {
        Self { kernel, log }
    }
}

#[derive(Debug)]
struct TracingDescriptor {
    name: String,
    inner: Arc<dyn Descriptor>,
    log: IoctlTrace,
}

impl Kernel for TracingKernel {
    fn open(&self, path: &Path) -> Result<Arc<dyn Descriptor>, Errno> {
        let name = path.display().to_string();
        match self.kernel.open(path) {
            Ok(inner) => {
                self.log.push(format!("open {name} => ok"));
                Ok(Arc::new(TracingDescriptor { name, inner, log: self.log.clone() }))
            }
            Err(errno) => {
                self.log.push(format!("open {name} => {errno}"));
                Err(errno)
            }
        }
    }

    fn prefault(&self, range: UserRange) -> Result<(), PinError> {
        self.kernel.prefault(range)
    }

    fn unpinnable_reason(&self, range: UserRange) -> PinError {
        self.kernel.unpinnable_reason(range)
    }
}

/// Bytes in hexadecimal.
fn digits(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A struct in hexadecimal, without the descriptor number in it.
pub(crate) fn shown(request: Request, bytes: &[u8]) -> String {
    let mut bytes = bytes.to_vec();
    if request == DEVICE_BIND_IOMMUFD {
        if let Some(number) = bytes.get_mut(8..12) {
            number.fill(0);
        }
    }
    digits(&bytes)
}

impl TracingDescriptor {
    fn record(&self, request: Request, argument: &str, result: String) {
        let space = if argument.is_empty() { "" } else { " " };
        self.log.push(format!("{} {}{space}{argument} => {result}", self.name, request.name));
    }
}

fn result_text(result: Result<i32, Errno>) -> String {
    match result {
        Ok(value) => value.to_string(),
        Err(errno) => errno.to_string(),
    }
}

/// The argument, before the call.
fn argument_text(request: Request, argument: &Argument<'_>) -> String {
    match argument {
        Argument::None => String::new(),
        Argument::Value(value) => format!("{value:#x}"),
        Argument::Struct(bytes) | Argument::StructWithList { bytes, .. } => shown(request, bytes),
        Argument::Descriptor(_) => "descriptor".to_owned(),
        Argument::Text(text) => text.to_string_lossy().into_owned(),
    }
}

impl Descriptor for TracingDescriptor {
    fn number(&self) -> i32 {
        self.inner.number()
    }

    fn ioctl(&self, request: Request, argument: Argument<'_>) -> Result<i32, Errno> {
        let mut text = argument_text(request, &argument);
        let result = match argument {
            Argument::Struct(bytes) => {
                let result = self.inner.ioctl(request, Argument::Struct(&mut *bytes));
                text = format!("{text} -> {}", shown(request, bytes));
                result
            }
            Argument::StructWithList { bytes, at, list } => {
                // The address of the list is not recorded.
                let result = self
                    .inner
                    .ioctl(request, Argument::StructWithList { bytes: &mut *bytes, at, list: &mut *list });
                if let Some(word) = bytes.get_mut(at..at + 8) {
                    word.fill(0);
                }
                let listed: Vec<u8> = list.iter().flat_map(|word| word.to_ne_bytes()).collect();
                text = format!("{text} -> {}+{}", digits(bytes), digits(&listed));
                result
            }
            other => self.inner.ioctl(request, other),
        };
        self.record(request, &text, result_text(result));
        result
    }

    fn ioctl_fd(&self, request: Request, argument: Argument<'_>) -> Result<Arc<dyn Descriptor>, Errno> {
        let text = argument_text(request, &argument);
        let result = self.inner.ioctl_fd(request, argument);
        let result_text = result.as_ref().map_or_else(ToString::to_string, |_| "descriptor".to_owned());
        self.record(request, &text, result_text);
        let inner = result?;
        Ok(Arc::new(TracingDescriptor { name: format!("device({text})"), inner, log: self.log.clone() }))
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> Result<usize, Errno> {
        self.inner.read_at(offset, into)
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> Result<usize, Errno> {
        self.inner.write_at(offset, from)
    }

    fn map(&self, offset: u64, bytes: u64) -> Result<Bar, Errno> {
        self.inner.map(offset, bytes)
    }
}

impl Drop for TracingDescriptor {
    fn drop(&mut self) {
        self.log.push(format!("{} closed", self.name));
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::VfioHost;
    use super::super::kernel::{CHECK_EXTENSION, GET_API_VERSION, IOMMU_UNMAP_DMA};
    use super::*;

    #[test]
    fn what_is_asked_is_written_down_until_the_descriptor_closes() {
        let log = IoctlTrace::new();
        let host = VfioHost::system().traced(&log);
        assert!(host.open("/dev/no-such-node").is_err());
        let open = host.open("/dev/null").unwrap();
        assert!(open.ioctl(CHECK_EXTENSION, Argument::Value(3)).is_err());
        assert!(open.ioctl(GET_API_VERSION, Argument::None).is_err());
        let mut bytes = [0; 8];
        bytes[0] = 8;
        if cfg!(target_endian = "little") {
            assert!(open.ioctl(IOMMU_UNMAP_DMA, Argument::Struct(&mut bytes)).is_err());
            assert_eq!(
                log.lines().last().unwrap(),
                "/dev/null VFIO_IOMMU_UNMAP_DMA 0800000000000000 -> 0800000000000000 => ENOTTY"
            );
            assert_eq!(log.requests(), 3);
        }
        drop(open);
        let lines = log.lines();
        assert_eq!(
            lines[..4],
            [
                "open /dev/no-such-node => ENOENT",
                "open /dev/null => ok",
                "/dev/null VFIO_CHECK_EXTENSION 0x3 => ENOTTY",
                "/dev/null VFIO_GET_API_VERSION => ENOTTY",
            ]
        );
        assert_eq!(lines.last().unwrap(), "/dev/null closed");
    }
}
