//! A device that copies and sums memory.
//!
//! BAR 0, 4 KiB, has little-endian registers of 8 bytes: 0x00 source, 0x08 destination, 0x10 length, 0x18 command (1 copies, 2
//! sums; starts at once), 0x20 status (0 never ran, 1 done, 2 failed), 0x28 sum of the source's bytes. At the end of a command
//! the device sends MSI-X vector 0, or asserts INTx until the status is written.

use std::sync::{Arc, Mutex, PoisonError};

use prereg::{Access, Errno, Iova};
use prereg_vfio_user::pci::{Bar, ConfigBuilder, ConfigSpace, Identity, MsixLocation, PciError};
use prereg_vfio_user::server::{
    Device, DeviceContext, DeviceFactory, DmaError, IrqKind, Layout, LayoutRegion,
};

const BAR_BYTES: u64 = 4096;
const MSIX: MsixLocation = MsixLocation { table: (0, 0x800), pending: (0, 0xc00) };
const PIECE: usize = 64 << 10;

const DESTINATION: usize = 1;
const LENGTH: usize = 2;
const COMMAND: usize = 3;
const STATUS: usize = 4;
const SUM: usize = 5;

/// Creates a copier for each client.
pub(crate) struct Copiers;

impl DeviceFactory for Copiers {
    fn name(&self) -> &str {
        "copier"
    }

    fn attach(&self, bus: DeviceContext) -> Result<Arc<dyn Device>, Errno> {
        let config = config().map_err(|error| error.errno())?;
        let state = State { config, registers: [0; 6] };
        Ok(Arc::new(Copier { bus, state: Mutex::new(state) }))
    }
}

fn config() -> Result<ConfigSpace, PciError> {
    // QEMU's educational device has this vendor id; the device id is another one.
    let identity = Identity { vendor: 0x1234, device: 0x11e9, class: 0x0b_40_00, ..Identity::default() };
    ConfigBuilder::new(identity)
        .with_bar(0, Bar::memory32(BAR_BYTES))
        .with_intx()
        .with_express()
        .with_msix(1, MSIX)
        .build()
}

struct State {
    config: ConfigSpace,
    registers: [u64; 6],
}

struct Copier {
    bus: DeviceContext,
    state: Mutex<State>,
}

impl Copier {
    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies or sums; returns the sum.
    fn run(&self, registers: &[u64; 6]) -> Result<u64, DmaError> {
        let [source, destination, length, command, ..] = *registers;
        let from = self.bus.dma.hold(Iova::new(source), length, Access::Read)?;
        let to = match command {
            1 => Some(self.bus.dma.hold(Iova::new(destination), length, Access::Write)?),
            _ => None,
        };
        let (mut sum, mut at, mut piece) = (0u64, 0, vec![0; PIECE]);
        while at < length {
            let bytes = (length - at).min(PIECE as u64) as usize;
            let piece = &mut piece[..bytes];
            from.read(at, piece)?;
            sum = piece.iter().fold(sum, |sum, byte| sum.wrapping_add(u64::from(*byte)));
            if let Some(to) = &to {
                to.write(at, piece)?;
            }
            at += bytes as u64;
        }
        Ok(sum)
    }

    fn start(&self) {
        let registers = self.lock().registers;
        let result = if self.lock().config.is_bus_master() { self.run(&registers).ok() } else { None };
        let mut state = self.lock();
        state.registers[STATUS] = if result.is_some() { 1 } else { 2 };
        state.registers[SUM] = result.unwrap_or(0);
        drop(state);
        if !self.bus.interrupts.trigger(IrqKind::Msix, 0) {
            self.bus.interrupts.set_level(true);
        }
    }
}

impl Device for Copier {
    fn layout(&self) -> Layout {
        Layout::pci()
            .with_region(Layout::BAR0, LayoutRegion::read_write(BAR_BYTES))
            .with_region(Layout::CONFIG, LayoutRegion::read_write(self.lock().config.bytes()))
            .with_irqs(IrqKind::Intx, 1)
            .with_irqs(IrqKind::Msix, 1)
    }

    fn read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        let state = self.lock();
        if region == Layout::CONFIG {
            state.config.read(offset, into);
            return Ok(());
        }
        let bytes: Vec<u8> = state.registers.iter().flat_map(|register| register.to_le_bytes()).collect();
        for (at, byte) in (offset as usize..).zip(into) {
            *byte = bytes.get(at).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if region == Layout::CONFIG {
            if self.lock().config.write(offset, from).reset {
                self.reset()?;
            }
            return Ok(());
        }
        let value = from.try_into().map(u64::from_le_bytes).map_err(|_| Errno::EINVAL)?;
        match (offset / 8) as usize {
            register @ (0 | DESTINATION | LENGTH) => self.lock().registers[register] = value,
            COMMAND => {
                self.lock().registers[COMMAND] = value;
                self.start();
            }
            STATUS => self.bus.interrupts.set_level(false),
            _ => {}
        }
        Ok(())
    }

    fn reset(&self) -> Result<(), Errno> {
        let mut state = self.lock();
        state.registers = [0; 6];
        state.config.reset();
        self.bus.interrupts.set_level(false);
        Ok(())
    }

    fn client_gone(&self) {}
}
