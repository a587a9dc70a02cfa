//! What a device is to the server: a few functions, and a bus that it reaches its client by.
//!
//! A [`Model`] is what a socket serves; it makes one [`Device`] for each client. The server keeps the bounds: no access
//! reaches a device that its [`Layout`] does not allow. Everything here is called on the client's thread, one call at a time.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use prereg::{Errno, Iova};

use super::dma::Dma;
use super::interrupts::Interrupts;
use super::irq_kind::IrqKind;
use crate::capabilities::Terms;
use crate::wire::SparseArea;

/// The parts of a region that a client may map.
#[derive(Clone, Debug)]
pub struct Sparse {
    /// The memory.
    pub fd: Arc<OwnedFd>,
    /// Where the region starts in it, in bytes.
    pub offset: u64,
    /// The parts, in bytes from the start of the region; all of it where there are none.
    pub areas: Vec<SparseArea>,
}

/// An eventfd that a client may write to instead of the region.
#[derive(Clone, Debug)]
pub struct Ioeventfd {
    /// The eventfd.
    pub fd: Arc<OwnedFd>,
    /// Where in the region, in bytes.
    pub offset: u64,
    /// The length of the write in bytes; 0 for any.
    pub bytes: u64,
    /// Only writes of this value.
    pub datamatch: Option<u64>,
}

/// A region of a device.
#[derive(Clone, Default, Debug)]
pub struct LayoutRegion {
    /// Its length in bytes; 0 for an index that the device does not use.
    pub bytes: u64,
    /// Whether it can be read.
    pub readable: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// How it can be mapped, if it can.
    pub mmap: Option<Sparse>,
    /// Eventfds that stand for writes to it.
    pub ioeventfds: Vec<Ioeventfd>,
}

impl LayoutRegion {
    /// `bytes` to read and write.
    #[must_use]
    pub fn read_write(bytes: u64) -> Self {
        Self { bytes, readable: true, writable: true, ..Self::default() }
    }

    /// `bytes` to read.
    #[must_use]
    pub fn read_only(bytes: u64) -> Self {
        Self { bytes, readable: true, ..Self::default() }
    }

    /// The same with parts that can be mapped.
    #[must_use]
    pub fn with_mmap(mut self, mmap: Sparse) -> Self {
        self.mmap = Some(mmap);
        self
    }

    /// The same with one more eventfd.
    #[must_use]
    pub fn with_ioeventfd(mut self, ioeventfd: Ioeventfd) -> Self {
        self.ioeventfds.push(ioeventfd);
        self
    }
}

/// What a device consists of.
#[derive(Clone, Default, Debug)]
pub struct Layout {
    /// By index; a client is told of as many as there are.
    pub regions: Vec<LayoutRegion>,
    /// How many interrupts of each kind, by [`IrqKind::index`].
    pub irqs: [u32; 5],
    /// Whether DEVICE_RESET does something.
    pub resets: bool,
}

impl Layout {
    /// BAR 0; the others follow.
    pub const BAR0: u32 = 0;
    /// The expansion ROM.
    pub const ROM: u32 = 6;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// How many regions a PCI device has: six BARs, ROM, configuration space, VGA.
    pub const PCI_REGIONS: u32 = 9;

    /// A PCI device that can be reset, with its nine regions, all empty, and no interrupts.
    #[must_use]
    pub fn pci() -> Self {
        let regions = (0..Self::PCI_REGIONS).map(|_| LayoutRegion::default()).collect();
        Self { regions, irqs: [0; 5], resets: true }
    }

    /// The same with region `index`; an index beyond the last makes empty ones up to it.
    #[must_use]
    pub fn with_region(mut self, index: u32, region: LayoutRegion) -> Self {
        let index = index as usize;
        if self.regions.len() <= index {
            self.regions.resize_with(index + 1, LayoutRegion::default);
        }
        self.regions[index] = region;
        self
    }

    /// The same with `count` interrupts of a kind; there is at most one INTx, ERR and REQ.
    #[must_use]
    pub fn with_irqs(mut self, kind: IrqKind, count: u32) -> Self {
        self.irqs[kind.index()] = count;
        self
    }
}

/// A device of one client.
pub trait Device: Send + Sync + 'static {
    /// What it consists of; asked once, before anything else.
    fn layout(&self) -> Layout;

    /// Reads `into.len()` bytes, at least 1, that lie in the region.
    ///
    /// # Errors
    /// What the client is answered.
    fn read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno>;

    /// Writes `from.len()` bytes, at least 1, that lie in the region.
    ///
    /// # Errors
    /// What the client is answered.
    fn write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno>;

    /// Puts the device back to where it began; returns when it is quiet.
    ///
    /// # Errors
    /// What the client is answered.
    fn reset(&self) -> Result<(), Errno>;

    /// `bytes` at `iova` (up to 2^64 - `iova`; 0 bytes at 0 for everything) are about to be unmapped: who keeps a hold for long
    /// gives it back now, or the client waits for its answer until he does.
    fn dma_unmapping(&self, _iova: Iova, _bytes: u64) {}

    /// The client is about to be told how to map a region that can be mapped. From here on it may have done so.
    fn region_offered(&self, _region: u32) {}

    /// The client is gone: stop, and give every hold back. Transfers fail from here on. Called once.
    fn client_gone(&self);

    /// Counters for metrics and status, by name.
    fn facts(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// What a socket serves.
pub trait Model: Send + Sync + 'static {
    /// What it is called in status and metrics.
    fn name(&self) -> &str;

    /// Makes the device of a client that has said its version.
    ///
    /// # Errors
    /// What the client's VERSION is answered: EBUSY for a model that serves only one at a time.
    fn attach(&self, bus: Bus) -> Result<Arc<dyn Device>, Errno>;
}

/// How a device reaches its client.
#[derive(Clone)]
pub struct Bus {
    /// The client's memory.
    pub dma: Dma,
    /// The client's interrupts.
    pub interrupts: Interrupts,
    /// The client's number, counted up by the server; no two clients of a server have the same.
    pub client: u64,
    /// What was agreed on with it.
    pub terms: Terms,
}

impl fmt::Debug for Bus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bus").field("client", &self.client).finish_non_exhaustive()
    }
}
