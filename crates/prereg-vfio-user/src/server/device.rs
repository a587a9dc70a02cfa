//! Devices as the server sees them, and the context through which a device accesses its client.
//!
//! A [`DeviceFactory`] serves a socket: it creates a [`Device`] for each client. The server checks accesses against the
//! device's [`Layout`]. Everything here is called on the client's thread, one call at a time.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use prereg::{Errno, Iova};

use super::dma::Dma;
use super::interrupts::Interrupts;
use super::irq_kind::IrqKind;
use super::observer::EventSource;
use crate::capabilities::Negotiated;
use crate::wire::SparseArea;

/// The mappable memory of a region.
#[derive(Clone, Debug)]
pub struct Sparse {
    /// The memory.
    pub fd: Arc<OwnedFd>,
    /// The offset of the region in it, in bytes.
    pub offset: u64,
    /// The mappable areas, in bytes from the start of the region; none means all of it.
    pub areas: Vec<SparseArea>,
}

/// An eventfd that a client may write to instead of the region.
#[derive(Clone, Debug)]
pub struct Ioeventfd {
    /// The eventfd.
    pub fd: Arc<OwnedFd>,
    /// The offset in the region, in bytes.
    pub offset: u64,
    /// The length of the write in bytes; 0 for any.
    pub bytes: u64,
    /// The only value that is signalled.
    pub datamatch: Option<u64>,
}

/// A region of a device.
#[derive(Clone, Default, Debug)]
pub struct LayoutRegion {
    /// The length in bytes; 0 for an unused index.
    pub bytes: u64,
    /// Whether it can be read.
    pub readable: bool,
    /// Whether it can be written.
    pub writable: bool,
    /// The mappable memory.
    pub mmap: Option<Sparse>,
    /// Eventfds for writes to it.
    pub ioeventfds: Vec<Ioeventfd>,
}

impl LayoutRegion {
    /// A region of `bytes`, readable and writable.
    #[must_use]
    pub fn read_write(bytes: u64) -> Self {
        Self { bytes, readable: true, writable: true, ..Self::default() }
    }

    /// A region of `bytes`, read-only.
    #[must_use]
    pub fn read_only(bytes: u64) -> Self {
        Self { bytes, readable: true, ..Self::default() }
    }

    /// Adds mappable memory.
    #[must_use]
    pub fn with_mmap(mut self, mmap: Sparse) -> Self {
        self.mmap = Some(mmap);
        self
    }

    /// Adds an eventfd.
    #[must_use]
    pub fn with_ioeventfd(mut self, ioeventfd: Ioeventfd) -> Self {
        self.ioeventfds.push(ioeventfd);
        self
    }
}

/// Regions and interrupts of a device.
#[derive(Clone, Default, Debug)]
pub struct Layout {
    /// Regions by index.
    pub regions: Vec<LayoutRegion>,
    /// The number of interrupts of each kind, by [`IrqKind::index`].
    pub irqs: [u32; 5],
    /// Whether DEVICE_RESET is supported.
    pub resets: bool,
}

impl Layout {
    /// BAR 0; the others follow.
    pub const BAR0: u32 = 0;
    /// The expansion ROM.
    pub const ROM: u32 = 6;
    /// Configuration space.
    pub const CONFIG: u32 = 7;
    /// Regions of a PCI device: six BARs, ROM, configuration space, VGA.
    pub(crate) const PCI_REGIONS: u32 = 9;

    /// A PCI device with reset, nine empty regions and no interrupts.
    #[must_use]
    pub fn pci() -> Self {
        let regions = (0..Self::PCI_REGIONS).map(|_| LayoutRegion::default()).collect();
        Self { regions, irqs: [0; 5], resets: true }
    }

    /// Sets region `index`, adding empty regions before it as needed.
    #[must_use]
    pub fn with_region(mut self, index: u32, region: LayoutRegion) -> Self {
        let index = index as usize;
        if self.regions.len() <= index {
            self.regions.resize_with(index + 1, LayoutRegion::default);
        }
        self.regions[index] = region;
        self
    }

    /// Sets the number of interrupts of a kind; at most one for INTx, ERR and REQ.
    #[must_use]
    pub fn with_irqs(mut self, kind: IrqKind, count: u32) -> Self {
        self.irqs[kind.index()] = count;
        self
    }
}

/// A device of one client.
pub trait Device: Send + Sync + 'static {
    /// The layout; called once, before anything else.
    fn layout(&self) -> Layout;

    /// Reads `into.len()` bytes, at least 1, which lie in the region.
    ///
    /// # Errors
    /// The errno of the reply.
    fn read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno>;

    /// Writes `from.len()` bytes, at least 1, which lie in the region.
    ///
    /// # Errors
    /// The errno of the reply.
    fn write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno>;

    /// Resets the device; returns when no I/O is under way.
    ///
    /// # Errors
    /// The errno of the reply.
    fn reset(&self) -> Result<(), Errno>;

    /// `bytes` at `iova` (up to 2^64 - `iova`; 0 bytes at 0 for everything) are about to be unmapped. The device drops
    /// long-lived guards now; the client's reply waits for the last one.
    fn dma_unmapping(&self, _iova: Iova, _bytes: u64) {}

    /// The client is about to see how to map this region, and may have mapped it from here on.
    fn region_offered(&self, _region: u32) {}

    /// The client is gone: stop, and drop every guard. Transfers fail from here on. Called once.
    fn client_gone(&self);

    /// Counters for metrics and status, by name.
    fn metrics(&self) -> Vec<(String, u64)> {
        Vec::new()
    }
}

/// Creates the devices of a socket.
pub trait DeviceFactory: Send + Sync + 'static {
    /// The name in status and metrics.
    fn name(&self) -> &str;

    /// Creates the device of a client after its VERSION.
    ///
    /// # Errors
    /// The errno of the reply to VERSION: EBUSY if only one client is served at a time.
    fn attach(&self, bus: DeviceContext) -> Result<Arc<dyn Device>, Errno>;
}

/// A device's access to its client.
#[derive(Clone)]
pub struct DeviceContext {
    /// The client's memory.
    pub dma: Dma,
    /// The client's interrupts.
    pub interrupts: Interrupts,
    /// The client's number, unique per server.
    pub client: u64,
    /// The client as the source of the device's own events.
    pub source: Arc<EventSource>,
    /// The negotiated capabilities.
    pub negotiated: Negotiated,
}

impl fmt::Debug for DeviceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceContext").field("client", &self.client).finish_non_exhaustive()
    }
}
