//! A scaffold for simple devices: a PCI function with registers in BAR 0, one interrupt and DMA.
//!
//! The author writes [`PciFunction`], the meaning of the registers; the rest is here: configuration space, resets, bus mastering,
//! and the choice between MSI-X and INTx. A device with queues, several BARs or threads of its own implements
//! [`Device`](crate::server::Device) instead.
//!
//! Ownership: the server owns the factory, each client's connection one function. All calls come from the client's thread, one at a
//! time, with the function's lock held; the lock of the configuration space is inside it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prereg::{Access, Errno, Iova};

use crate::pci::{Bar, ConfigBuilder, ConfigSpace, Identity, MsixLocation, PciError};
use crate::server::{
    Device, DeviceContext, DeviceFactory, DmaError, DmaGuard, IrqKind, Layout, LayoutRegion,
};

/// The registers of a PCI function, in BAR 0. Accesses have 1, 2, 4 or 8 bytes, are aligned and lie in the BAR; values are
/// little-endian in their lowest bytes.
pub trait PciFunction: Send + 'static {
    /// The value of a register.
    fn read(&mut self, offset: u64, bytes: u32) -> u64;

    /// A write to a register. DMA is done here, with the context that the function was created with.
    fn write(&mut self, offset: u64, value: u64, bytes: u32);

    /// The state after power-on. The interrupt is deasserted already.
    fn reset(&mut self);
}

/// A function's access to its client: its memory and its interrupt.
#[derive(Clone)]
pub struct PciContext {
    client: DeviceContext,
    config: Arc<Mutex<ConfigSpace>>,
}

impl PciContext {
    // Every change is one call of the configuration space, so a poisoned lock is consistent.
    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds memory of the client for one or more accesses; it stays mapped until the guard is dropped.
    ///
    /// # Errors
    /// [`DmaError::NotBusMaster`], or as [`Dma::hold`](crate::server::Dma::hold).
    pub fn hold(&self, iova: Iova, bytes: u64, access: Access) -> Result<DmaGuard, DmaError> {
        if !self.config().is_bus_master() {
            return Err(DmaError::NotBusMaster);
        }
        self.client.dma.hold(iova, bytes, access)
    }

    /// Reads memory of the client. Zero bytes are none.
    ///
    /// # Errors
    /// As [`hold`](Self::hold).
    pub fn read(&self, iova: Iova, into: &mut [u8]) -> Result<(), DmaError> {
        if into.is_empty() {
            return Ok(());
        }
        self.hold(iova, into.len() as u64, Access::Read)?.read(0, into)
    }

    /// Writes memory of the client. Zero bytes are none.
    ///
    /// # Errors
    /// As [`hold`](Self::hold).
    pub fn write(&self, iova: Iova, from: &[u8]) -> Result<(), DmaError> {
        if from.is_empty() {
            return Ok(());
        }
        self.hold(iova, from.len() as u64, Access::Write)?.write(0, from)
    }

    /// Interrupts the driver: by MSI-X, or by INTx, which stays asserted until [`deassert`](Self::deassert).
    pub fn interrupt(&self) {
        if !self.client.interrupts.trigger(IrqKind::Msix, 0) {
            self.set_level(true);
        }
    }

    /// Deasserts INTx: the driver has acknowledged the interrupt.
    pub fn deassert(&self) {
        self.set_level(false);
    }

    fn set_level(&self, asserted: bool) {
        self.config().set_intx_status(asserted);
        self.client.interrupts.set_level(asserted);
    }
}

impl fmt::Debug for PciContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciContext").field("client", &self.client.client).finish_non_exhaustive()
    }
}

/// Serves a [`PciFunction`] on a socket.
pub struct PciFunctionFactory<F> {
    name: String,
    identity: Identity,
    bytes: u64,
    create: F,
}

impl<F, T> PciFunctionFactory<F>
where
    F: Fn(PciContext) -> T + Send + Sync + 'static,
    T: PciFunction,
{
    /// A function with `bytes` of registers, and one interrupt: MSI-X, whose table and pending bits follow the registers in the
    /// BAR, and INTx. `create` makes one for each client.
    ///
    /// # Errors
    /// [`PciError::Bar`] unless `bytes` is a power of two from 16 to 1 GiB.
    pub fn new(name: &str, identity: Identity, bytes: u64, create: F) -> Result<Self, PciError> {
        let factory = Self { name: name.into(), identity, bytes, create };
        factory.config()?;
        Ok(factory)
    }

    fn config(&self) -> Result<ConfigSpace, PciError> {
        if !self.bytes.is_power_of_two() || !(16..=1 << 30).contains(&self.bytes) {
            return Err(PciError::Bar { index: 0, bytes: self.bytes });
        }
        let table = msix_offset(self.bytes);
        let place = |offset| u32::try_from(offset).unwrap_or(u32::MAX);
        let location = MsixLocation { table: (0, place(table)), pending: (0, place(table + MSIX_BYTES / 2)) };
        ConfigBuilder::new(self.identity)
            .with_bar(0, Bar::memory32(bar_bytes(self.bytes)))
            .with_intx()
            .with_express()
            .with_msix(1, location)
            .build()
    }
}

/// The MSI-X table and the pending bits have a page of their own, which clients do not share with registers.
const MSIX_BYTES: u64 = 4096;

/// The offset of the MSI-X table in the BAR.
fn msix_offset(registers: u64) -> u64 {
    registers.max(MSIX_BYTES)
}

fn bar_bytes(registers: u64) -> u64 {
    2 * msix_offset(registers)
}

impl<F> fmt::Debug for PciFunctionFactory<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PciFunctionFactory").field("name", &self.name).finish_non_exhaustive()
    }
}

impl<F, T> DeviceFactory for PciFunctionFactory<F>
where
    F: Fn(PciContext) -> T + Send + Sync + 'static,
    T: PciFunction,
{
    fn name(&self) -> &str {
        &self.name
    }

    fn attach(&self, client: DeviceContext) -> Result<Arc<dyn Device>, Errno> {
        let config = self.config().map_err(|error| error.errno())?;
        let context = PciContext { client, config: Arc::new(Mutex::new(config)) };
        let function = Mutex::new((self.create)(context.clone()));
        Ok(Arc::new(Attached { context, function, bytes: self.bytes }))
    }
}

/// The function of one client.
struct Attached<T> {
    context: PciContext,
    function: Mutex<T>,
    bytes: u64,
}

impl<T> Attached<T> {
    // A function that panicked is the author's to repair, by a reset.
    fn function(&self) -> MutexGuard<'_, T> {
        self.function.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The length of an access to the registers; `None` for the rest of the BAR, which reads as zeros and ignores writes: clients
    /// emulate the MSI-X table.
    fn access(&self, offset: u64, bytes: usize) -> Result<Option<u32>, Errno> {
        match bytes {
            1 | 2 | 4 | 8 if offset % bytes as u64 == 0 => {
                Ok((offset + bytes as u64 <= self.bytes).then_some(bytes as u32))
            }
            _ if offset >= self.bytes => Ok(None),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl<T: PciFunction> Device for Attached<T> {
    fn layout(&self) -> Layout {
        Layout::pci()
            .with_region(Layout::BAR0, LayoutRegion::read_write(bar_bytes(self.bytes)))
            .with_region(Layout::CONFIG, LayoutRegion::read_write(self.context.config().bytes()))
            .with_irqs(IrqKind::Intx, 1)
            .with_irqs(IrqKind::Msix, 1)
    }

    fn read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        if region == Layout::CONFIG {
            self.context.config().read(offset, into);
            return Ok(());
        }
        let value = match self.access(offset, into.len())? {
            Some(bytes) => self.function().read(offset, bytes),
            None => 0,
        };
        for (byte, from) in into.iter_mut().zip(value.to_le_bytes().into_iter().chain(std::iter::repeat(0))) {
            *byte = from;
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if region == Layout::CONFIG {
            let change = self.context.config().write(offset, from);
            return if change.reset { self.reset() } else { Ok(()) };
        }
        if let Some(bytes) = self.access(offset, from.len())? {
            let value = from.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
            self.function().write(offset, value, bytes);
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), Errno> {
        self.context.config().reset();
        self.context.deassert();
        self.function().reset();
        Ok(())
    }

    fn client_gone(&self) {}
}
