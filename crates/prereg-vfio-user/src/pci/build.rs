//! The builder of configuration spaces.

use super::bar::Bar;
use super::config::{ConfigSpace, Registers};
use super::error::PciError;

/// The identity of a device.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Subsystem vendor; 0 stands for the vendor.
    pub subsystem_vendor: u16,
    /// Subsystem; 0 stands for the device.
    pub subsystem: u16,
    /// Revision.
    pub revision: u8,
    /// Class, subclass and programming interface: `0x010802` is an NVMe controller.
    pub class: u32,
}

/// The location of the MSI-X table and the pending bits: BAR and offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixLocation {
    /// The table, 16 bytes a vector.
    pub table: (u8, u32),
    /// The pending bits, 8 bytes for every 64 vectors.
    pub pending: (u8, u32),
}

/// Builds a configuration space. Capabilities are listed in the order they are added.
#[derive(Clone, Debug)]
pub struct ConfigBuilder {
    identity: Identity,
    bars: [Option<Bar>; 6],
    intx: bool,
    capabilities: Vec<Capability>,
    error: Option<PciError>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Capability {
    Power,
    Msi { vectors: u32 },
    Msix { vectors: u32, place: MsixLocation },
    Express,
}

const POWER: u8 = 1;
const MSI: u8 = 5;
const EXPRESS: u8 = 0x10;
const MSIX: u8 = 0x11;

impl Capability {
    const fn id(self) -> u8 {
        match self {
            Self::Power => POWER,
            Self::Msi { .. } => MSI,
            Self::Express => EXPRESS,
            Self::Msix { .. } => MSIX,
        }
    }

    const fn bytes(self) -> usize {
        match self {
            Self::Power => 8,
            Self::Msi { .. } => 24,
            Self::Msix { .. } => 12,
            Self::Express => 60,
        }
    }
}

impl ConfigBuilder {
    /// A device without BARs, interrupts and capabilities.
    #[must_use]
    pub fn new(identity: Identity) -> Self {
        Self { identity, bars: [None; 6], intx: false, capabilities: Vec::new(), error: None }
    }

    fn fail(&mut self, error: PciError) {
        self.error.get_or_insert(error);
    }

    /// Adds a BAR.
    #[must_use]
    pub fn with_bar(mut self, index: usize, bar: Bar) -> Self {
        match self.bars.get_mut(index) {
            Some(place) if place.is_none() && bar.is_possible() => *place = Some(bar),
            _ => self.fail(PciError::Bar { index, bytes: bar.bytes }),
        }
        self
    }

    /// Adds the interrupt pin INTA.
    #[must_use]
    pub fn with_intx(mut self) -> Self {
        self.intx = true;
        self
    }

    fn with(mut self, capability: Capability) -> Self {
        if self.capabilities.iter().any(|there| there.id() == capability.id()) {
            self.fail(PciError::Twice { id: capability.id() });
        }
        self.capabilities.push(capability);
        self
    }

    /// Adds power management: D0 and D3hot, without a reset on the way back.
    #[must_use]
    pub fn with_power_management(self) -> Self {
        self.with(Capability::Power)
    }

    /// Adds MSI with `vectors`, a power of two up to 32, 64-bit addresses and per-vector masks.
    #[must_use]
    pub fn with_msi(mut self, vectors: u32) -> Self {
        if !vectors.is_power_of_two() || vectors > 32 {
            self.fail(PciError::Vectors { count: vectors });
        }
        self.with(Capability::Msi { vectors })
    }

    /// Adds MSI-X with `vectors`, 1 to 2048.
    #[must_use]
    pub fn with_msix(mut self, vectors: u32, place: MsixLocation) -> Self {
        if !(1..=2048).contains(&vectors) {
            self.fail(PciError::Vectors { count: vectors });
        }
        self.with(Capability::Msix { vectors, place })
    }

    /// Adds PCI Express: an endpoint with function level reset, and a space of 4096 bytes.
    #[must_use]
    pub fn with_express(self) -> Self {
        self.with(Capability::Express)
    }

    /// Builds the space.
    ///
    /// # Errors
    /// The first [`PciError`] of the calls.
    pub fn build(self) -> Result<ConfigSpace, PciError> {
        if let Some(error) = self.error {
            return Err(error);
        }
        let express = self.capabilities.contains(&Capability::Express);
        let mut registers = Registers::new(if express { 4096 } else { 256 });
        self.header(&mut registers);
        self.bars(&mut registers)?;
        let mut config = ConfigSpace::new(registers, self.bars);
        let (mut link, mut next) = (0x34, 0x40);
        for capability in &self.capabilities {
            let registers = config.registers();
            registers.set8(link, next as u8);
            registers.set8(next, capability.id());
            match *capability {
                Capability::Power => power(registers, next),
                Capability::Msi { vectors } => msi(registers, next, vectors),
                Capability::Express => express_endpoint(registers, next),
                Capability::Msix { vectors, place } => {
                    self.check_place(vectors, place)?;
                    msix(registers, next, vectors, place);
                }
            }
            config.place(capability.id(), next);
            link = next + 1;
            next += capability.bytes();
        }
        config.seal();
        Ok(config)
    }

    fn header(&self, registers: &mut Registers) {
        let Identity { vendor, device, subsystem_vendor, subsystem, revision, class } = self.identity;
        let or = |value: u16, otherwise: u16| if value == 0 { otherwise } else { value };
        registers.set16(0, vendor);
        registers.set16(2, device);
        let io = self.bars.iter().flatten().any(Bar::is_io);
        let memory = self.bars.iter().flatten().any(|bar| !bar.is_io());
        // Bus master, parity and system errors; INTx disable if there is a pin.
        let command =
            u16::from(io) | u16::from(memory) << 1 | 1 << 2 | 1 << 6 | 1 << 8 | u16::from(self.intx) << 10;
        registers.writable16(4, command);
        registers.set16(6, if self.capabilities.is_empty() { 0 } else { 1 << 4 });
        registers.cleared16(6, 0xf900);
        registers.set8(8, revision);
        registers.set8(9, class as u8);
        registers.set8(10, (class >> 8) as u8);
        registers.set8(11, (class >> 16) as u8);
        registers.writable8(12, 0xff);
        registers.set16(0x2c, or(subsystem_vendor, vendor));
        registers.set16(0x2e, or(subsystem, device));
        registers.writable8(0x3c, 0xff);
        registers.set8(0x3d, u8::from(self.intx));
    }

    fn bars(&self, registers: &mut Registers) -> Result<(), PciError> {
        for (index, bar) in self.bars.iter().enumerate() {
            let Some(bar) = bar else { continue };
            let at = 0x10 + 4 * index;
            registers.set32(at, bar.kind);
            registers.writable32(at, bar.mask() as u32);
            if bar.is_wide() {
                if self.bars.get(index + 1) != Some(&None) {
                    return Err(PciError::Bar { index, bytes: bar.bytes });
                }
                registers.writable32(at + 4, (bar.mask() >> 32) as u32);
            }
        }
        Ok(())
    }

    fn check_place(&self, vectors: u32, place: MsixLocation) -> Result<(), PciError> {
        let parts = [(place.table, vectors * 16), (place.pending, vectors.div_ceil(64) * 8)];
        for ((bar, offset), bytes) in parts {
            let there = self.bars.get(usize::from(bar)).copied().flatten().filter(|bar| !bar.is_io());
            let fits = there.is_some_and(|there| u64::from(offset) + u64::from(bytes) <= there.bytes);
            if !fits || offset % 8 != 0 {
                return Err(PciError::Place { bar, offset, bytes });
            }
        }
        let [((bar, table), table_bytes), ((other, pending), pending_bytes)] = parts;
        let (table, pending) = (u64::from(table), u64::from(pending));
        let apart = table + u64::from(table_bytes) <= pending || pending + u64::from(pending_bytes) <= table;
        if bar == other && !apart {
            return Err(PciError::Place { bar, offset: place.pending.1, bytes: pending_bytes });
        }
        Ok(())
    }
}

fn power(registers: &mut Registers, at: usize) {
    // Version 3; no soft reset from D3hot.
    registers.set16(at + 2, 3);
    registers.set16(at + 4, 1 << 3);
    registers.writable16(at + 4, 0b11);
}

fn msi(registers: &mut Registers, at: usize, vectors: u32) {
    // Per-vector masks, 64-bit addresses, and the number of vectors as a power of two.
    registers.set16(at + 2, 1 << 8 | 1 << 7 | (vectors.trailing_zeros() as u16) << 1);
    registers.writable16(at + 2, 0x71);
    registers.writable32(at + 4, !0b11);
    registers.writable32(at + 8, !0);
    registers.writable16(at + 12, !0);
    registers.writable32(at + 16, u32::MAX >> (32 - vectors));
}

fn msix(registers: &mut Registers, at: usize, vectors: u32, place: MsixLocation) {
    registers.set16(at + 2, (vectors - 1) as u16);
    registers.writable16(at + 2, 0xc000);
    registers.set32(at + 4, place.table.1 | u32::from(place.table.0));
    registers.set32(at + 8, place.pending.1 | u32::from(place.pending.0));
}

fn express_endpoint(registers: &mut Registers, at: usize) {
    // Version 2, an endpoint.
    registers.set16(at + 2, 2);
    // Role-based errors, function level reset.
    registers.set32(at + 4, 1 << 15 | 1 << 28);
    registers.set16(at + 8, 0x2810);
    registers.writable16(at + 8, 0x7fff);
    registers.cleared16(at + 10, 0xf);
    // One lane of 2.5 GT/s.
    registers.set32(at + 12, 0x11);
    registers.writable16(at + 16, 0x01fb);
    registers.set16(at + 18, 0x11);
    // Completion timeouts can be disabled.
    registers.set32(at + 36, 1 << 4);
    registers.writable16(at + 40, 1 << 4);
    registers.set16(at + 48, 1);
}
