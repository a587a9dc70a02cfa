//! The device that a client sees: configuration space, BAR 0, reset.
//!
//! BAR 0 has four pages: registers, doorbells, the MSI-X table, the pending bit array.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use prereg::{Errno, Iova};
use prereg_vfio_user::pci::{Bar, ConfigBuilder, ConfigSpace, Identity, MsixLocation, MsixTable};
use prereg_vfio_user::server::{Device, IrqKind, Layout, LayoutRegion};

use super::admin_channel::{AdminMsg, Message, ResetAck};
use super::doorbells::PAGE;
use super::irq::IrqMode;
use super::settings::NvmeSettings;
use super::shared::ControllerShared;
use super::stats::NvmeState;
use super::subsystem::Lease;
use crate::engine::async_event::AsyncEvent;
use crate::engine::queue_table::BadDoorbell;
use crate::engine::registers::Effect;
use crate::spec::register::DOORBELLS;

/// Bytes of BAR 0.
const BAR_BYTES: u64 = 0x4000;
const TABLE: u64 = DOORBELLS + PAGE;
const PENDING: u64 = TABLE + 0x1000;
/// Mass storage, NVM, NVM Express.
const CLASS: u32 = 0x01_08_02;

/// The controller of one client.
#[derive(Debug)]
pub(super) struct Controller {
    shared: Arc<ControllerShared>,
    layout: Layout,
    config: Mutex<ConfigSpace>,
    table: Mutex<MsixTable>,
    /// A register was written since the last reset.
    touched: AtomicBool,
    running: Mutex<Option<Running>>,
}

/// Threads and state that end with the client.
#[derive(Debug)]
struct Running {
    admin_thread: JoinHandle<()>,
    lease: Lease,
}

impl Controller {
    /// A controller whose threads run already.
    ///
    /// # Errors
    /// EINVAL for an impossible configuration, which the settings' check excludes.
    pub(super) fn new(
        shared: Arc<ControllerShared>,
        settings: &NvmeSettings,
        admin_thread: JoinHandle<()>,
        lease: Lease,
        config: ConfigSpace,
    ) -> Self {
        let mut bar = LayoutRegion::read_write(BAR_BYTES);
        if let Some(sparse) = &shared.mapped {
            bar = bar.with_mmap(sparse.clone());
        }
        let layout = Layout::pci()
            .with_region(Layout::BAR0, bar)
            .with_region(Layout::CONFIG, LayoutRegion::read_write(config.bytes()))
            .with_irqs(IrqKind::Intx, u32::from(settings.interrupts.intx))
            .with_irqs(IrqKind::Msi, u32::from(settings.msi_vectors()))
            .with_irqs(IrqKind::Msix, u32::from(settings.msix_vectors()))
            .with_irqs(IrqKind::Err, 1)
            .with_irqs(IrqKind::Req, 1);
        Self {
            shared,
            layout,
            config: Mutex::new(config),
            table: Mutex::new(MsixTable::new(u32::from(settings.msix_vectors()))),
            touched: AtomicBool::new(true),
            running: Mutex::new(Some(Running { admin_thread, lease })),
        }
    }

    /// The configuration space of a controller.
    ///
    /// # Errors
    /// EINVAL for an impossible configuration.
    pub(super) fn config_space(settings: &NvmeSettings) -> Result<ConfigSpace, Errno> {
        let (vendor, device) = settings.pci;
        let identity = Identity { vendor, device, revision: 1, class: CLASS, ..Identity::default() };
        let mut builder = ConfigBuilder::new(identity)
            .with_bar(0, Bar::memory64(BAR_BYTES))
            .with_power_management()
            .with_express();
        if settings.interrupts.intx {
            builder = builder.with_intx();
        }
        if settings.interrupts.msi {
            builder = builder.with_msi(u32::from(settings.msi_vectors()));
        }
        if settings.interrupts.msix {
            let place = MsixLocation { table: (0, TABLE as u32), pending: (0, PENDING as u32) };
            builder = builder.with_msix(u32::from(settings.msix_vectors()), place);
        }
        builder.build().map_err(|_| Errno::EINVAL)
    }

    fn config(&self) -> MutexGuard<'_, ConfigSpace> {
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn table(&self) -> MutexGuard<'_, MsixTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Applies the configuration space and the MSI-X table: bus mastering, the interrupt mode, and interrupt masks.
    fn apply_config(&self) {
        let (config, table) = (self.config(), self.table());
        let says = config.is_message_setup_known();
        let (is_msix, msi) = (config.is_msix_enabled(), config.msi());
        let is_msi = msi.is_some_and(|msi| msi.enabled);
        self.shared.irq.set_mode(match says {
            false => IrqMode::FromClient,
            true if is_msix => IrqMode::Msix,
            true if is_msi => IrqMode::Msi,
            true => IrqMode::Pin,
        });
        // A message is a DMA write.
        let mute = !config.may_bus_master();
        let masks = msi.map_or(0, |msi| msi.masks);
        let function = mute || says && (!is_msix || config.is_msix_masked());
        let interrupts = self.shared.irq.interrupts();
        self.shared.set_master(config.may_bus_master());
        // INTx first: when a guest enables messages, INTx must not stay asserted.
        let pin = config.is_intx_disabled();
        let table: Vec<bool> = (0..table.vectors()).map(|vector| table.is_masked(vector)).collect();
        drop(config);
        interrupts.set_device_masks(IrqKind::Intx, |_| pin);
        interrupts
            .set_device_masks(IrqKind::Msi, |vector| mute || says && !is_msi || masks >> vector & 1 != 0);
        interrupts.set_device_masks(IrqKind::Msix, |vector| {
            function || table.get(vector as usize).copied().unwrap_or(false)
        });
    }

    fn read_config(&self, offset: u64, into: &mut [u8]) {
        let interrupts = self.shared.irq.interrupts();
        let pending = (0..32).filter(|vector| interrupts.is_pending(IrqKind::Msi, *vector));
        let pending = pending.fold(0, |pending, vector| pending | 1 << vector);
        let mut config = self.config();
        config.set_intx_status(self.shared.irq.is_asserted());
        config.set_msi_pending(pending);
        config.read(offset, into);
    }

    fn read_pending(&self, offset: u64, into: &mut [u8]) {
        let mut table = self.table();
        for vector in 0..table.vectors() {
            table.set_pending(vector, self.shared.irq.interrupts().is_pending(IrqKind::Msix, vector));
        }
        table.read_pending(offset, into);
    }

    /// Resets everything but the configuration space to its state at power-on, unless nothing was written since.
    fn reset_function(&self) {
        // Relaxed: only the client's thread resets and writes.
        if !self.touched.swap(false, Ordering::Relaxed) {
            return;
        }
        let ack = Arc::new(ResetAck::default());
        self.shared.admin_channel.send(AdminMsg::Reset(Arc::clone(&ack)));
        ack.wait();
        self.table().reset();
        self.apply_config();
    }

    fn write_registers(&self, offset: u64, from: &[u8]) {
        let mut effects = Vec::new();
        let mut registers = self.shared.registers();
        registers.write(offset, from, &mut effects);
        let cc = registers.configuration();
        self.shared.irq.set_mask(registers.mask());
        drop(registers);
        for effect in effects {
            match effect {
                Effect::Enable(queues) => self.shared.admin_channel.send(AdminMsg::Enable(queues, cc)),
                Effect::Disable => self.shared.admin_channel.send(AdminMsg::Disable),
                Effect::Shutdown => self.shared.admin_channel.send(AdminMsg::Shutdown),
                Effect::Unmasked(vectors) => self.shared.irq.mask_changed(vectors),
                Effect::Masked(_) => self.shared.irq.mask_changed(0),
            }
        }
    }

    fn write_doorbells(&self, offset: u64, from: &[u8]) {
        // A 16-bit write at the start of a doorbell counts; other partial writes are errors.
        if let (&[low, high], 0) = (from, offset % 4) {
            self.shared.ring((offset / 4) as usize, u32::from(u16::from_le_bytes([low, high])));
            return;
        }
        if offset % 4 != 0 || from.len() % 4 != 0 {
            self.shared
                .admin_channel
                .send_message(Message::AsyncEvent(AsyncEvent::from(BadDoorbell::Register)));
            return;
        }
        for (at, value) in (offset / 4..).zip(from.chunks_exact(4)) {
            self.shared.ring(at as usize, u32::from_le_bytes([value[0], value[1], value[2], value[3]]));
        }
    }

    /// Stops the threads, at the first call; returns when they have released everything.
    fn stop(&self) {
        let running = self.running.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Running { admin_thread, lease }) = running else { return };
        let was_safe = self.shared.registers().is_safe_to_leave();
        self.shared.admin_channel.send(AdminMsg::Stop);
        // An admin thread that panicked has dropped its holds too.
        let _ = admin_thread.join();
        lease.end(&self.shared, was_safe);
    }
}

/// A page of BAR 0.
enum Page {
    Registers,
    Doorbells,
    Table,
    Pending,
}

impl Page {
    fn of(offset: u64) -> Self {
        match offset >> 12 {
            0 => Self::Registers,
            1 => Self::Doorbells,
            2 => Self::Table,
            _ => Self::Pending,
        }
    }
}

/// The bytes of an access that lie in its first page.
fn in_page(offset: u64, bytes: usize) -> usize {
    let left = 0x1000 - (offset & 0xfff);
    bytes.min(usize::try_from(left).unwrap_or(bytes))
}

impl Device for Controller {
    fn layout(&self) -> Layout {
        self.layout.clone()
    }

    fn read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        self.shared.unmap_watch.unmap_done();
        match region {
            Layout::CONFIG => {
                self.read_config(offset, into);
            }
            // Memory space is disabled: the device does not respond.
            Layout::BAR0 if !self.config().should_decode_memory() => into.fill(0xff),
            Layout::BAR0 => {
                let (mut at, mut left) = (offset, into);
                while !left.is_empty() {
                    let (piece, rest) = left.split_at_mut(in_page(at, left.len()));
                    match Page::of(at) {
                        Page::Registers => self.shared.registers().read(at, piece),
                        // Reads of doorbells are undefined.
                        Page::Doorbells => piece.fill(0),
                        Page::Table => self.table().read_table(at - TABLE, piece),
                        Page::Pending => self.read_pending(at - PENDING, piece),
                    }
                    at += piece.len() as u64;
                    left = rest;
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        self.shared.unmap_watch.unmap_done();
        match region {
            Layout::CONFIG => {
                let written = self.config().write(offset, from);
                if written.reset {
                    self.reset_function();
                }
                self.apply_config();
            }
            Layout::BAR0 if !self.config().should_decode_memory() => {}
            Layout::BAR0 => {
                self.touched.store(true, Ordering::Relaxed);
                let (mut at, mut left) = (offset, from);
                while !left.is_empty() {
                    let (piece, rest) = left.split_at(in_page(at, left.len()));
                    match Page::of(at) {
                        Page::Registers => self.write_registers(at, piece),
                        Page::Doorbells => self.write_doorbells(at - DOORBELLS, piece),
                        Page::Table => {
                            // `apply_config` sends what is now unmasked.
                            drop(self.table().write_table(at - TABLE, piece));
                            self.apply_config();
                        }
                        Page::Pending => {}
                    }
                    at += piece.len() as u64;
                    left = rest;
                }
            }
            _ => return Err(Errno::EINVAL),
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), Errno> {
        self.shared.unmap_watch.unmap_done();
        self.config().reset();
        self.reset_function();
        self.apply_config();
        Ok(())
    }

    fn region_offered(&self, region: u32) {
        if region == Layout::BAR0 && self.shared.mapped.is_some() {
            self.shared.offer_doorbells();
        }
    }

    fn dma_unmapping(&self, iova: Iova, bytes: u64) {
        self.shared.unmapping(iova, bytes);
    }

    fn client_gone(&self) {
        self.stop();
    }

    fn metrics(&self) -> Vec<(String, u64)> {
        NvmeState::of(&self.shared).metrics()
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        self.stop();
    }
}

#[cfg(test)]
mod tests {
    use super::{Controller, NvmeSettings};
    use crate::controller::InterruptKinds;

    #[test]
    fn every_choice_of_interrupts_is_a_configuration_space() {
        for choice in 0..8 {
            let mut settings = NvmeSettings::new("S");
            settings.interrupts =
                InterruptKinds { intx: choice & 1 != 0, msi: choice & 2 != 0, msix: choice & 4 != 0 };
            for io_queues in [1, 2, 31, 64, 511] {
                settings.io_queues = io_queues;
                let config = Controller::config_space(&settings).unwrap();
                assert_eq!(config.bytes(), 4096);
            }
        }
    }
}
