//! A configuration space: its bytes, their writable bits, and the meaning of a write.

use super::bar::Bar;

/// Bytes with masks of the writable bits and of those that are cleared by writing 1.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Registers {
    bytes: Vec<u8>,
    writable: Vec<u8>,
    cleared: Vec<u8>,
}

impl Registers {
    pub(super) fn new(bytes: usize) -> Self {
        Self { bytes: vec![0; bytes], writable: vec![0; bytes], cleared: vec![0; bytes] }
    }

    pub(super) fn get(&self, at: usize) -> u8 {
        self.bytes.get(at).copied().unwrap_or(0)
    }

    fn get16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.get(at), self.get(at + 1)])
    }

    fn get32(&self, at: usize) -> u32 {
        u32::from(self.get16(at)) | u32::from(self.get16(at + 2)) << 16
    }

    pub(super) fn set8(&mut self, at: usize, value: u8) {
        put(&mut self.bytes, at, &[value]);
    }

    pub(super) fn set16(&mut self, at: usize, value: u16) {
        put(&mut self.bytes, at, &value.to_le_bytes());
    }

    pub(super) fn set32(&mut self, at: usize, value: u32) {
        put(&mut self.bytes, at, &value.to_le_bytes());
    }

    pub(super) fn writable8(&mut self, at: usize, mask: u8) {
        put(&mut self.writable, at, &[mask]);
    }

    pub(super) fn writable16(&mut self, at: usize, mask: u16) {
        put(&mut self.writable, at, &mask.to_le_bytes());
    }

    pub(super) fn writable32(&mut self, at: usize, mask: u32) {
        put(&mut self.writable, at, &mask.to_le_bytes());
    }

    pub(super) fn cleared16(&mut self, at: usize, mask: u16) {
        put(&mut self.cleared, at, &mask.to_le_bytes());
    }

    fn write(&mut self, at: usize, value: u8) {
        let writable = self.writable.get(at).copied().unwrap_or(0);
        let cleared = self.cleared.get(at).copied().unwrap_or(0);
        if let Some(byte) = self.bytes.get_mut(at) {
            *byte = (*byte & !writable | value & writable) & !(value & cleared);
        }
    }
}

/// Copies the bytes at `offset`; zeros beyond the end.
pub(super) fn copy(bytes: &[u8], offset: u64, into: &mut [u8]) {
    let there = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..)).unwrap_or_default();
    let (found, beyond) = into.split_at_mut(there.len().min(into.len()));
    found.copy_from_slice(there.get(..found.len()).unwrap_or_default());
    beyond.fill(0);
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + value.len()) {
        place.copy_from_slice(value);
    }
}

/// The parts that a write changed; there may be several.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct ConfigChange {
    /// The function must be reset; its configuration space is already.
    pub reset: bool,
    /// The command register: bus mastering, memory, I/O.
    pub command: bool,
    /// The interrupts in use or their masks: INTx disable, MSI, MSI-X.
    pub interrupts: bool,
    /// The addresses of BARs.
    pub bars: bool,
    /// The power state.
    pub power: bool,
}

/// The driver's MSI setup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Msi {
    /// Enabled.
    pub enabled: bool,
    /// Vectors enabled by the driver.
    pub vectors: u32,
    /// The address of messages.
    pub address: u64,
    /// The data of vector 0.
    pub data: u16,
    /// A mask bit for each vector.
    pub masks: u32,
}

/// Offsets of capabilities; 0 if absent.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Places {
    power: usize,
    msi: usize,
    msix: usize,
    express: usize,
}

/// The configuration space of a device.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigSpace {
    registers: Registers,
    /// The state after the build, for a reset.
    initial: Vec<u8>,
    bars: [Option<Bar>; 6],
    places: Places,
    said: Said,
}

/// Registers written since the last reset. Some clients do not forward writes, so a register that was never written says
/// nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Said {
    /// The command register.
    command: bool,
    /// Memory space was enabled.
    memory: bool,
    /// The control word of MSI or of MSI-X.
    messages: bool,
}

impl ConfigSpace {
    const IO: u16 = 1;
    const MEMORY: u16 = 1 << 1;
    const BUS_MASTER: u16 = 1 << 2;
    const INTX_DISABLE: u16 = 1 << 10;
    const INTX_STATUS: u8 = 1 << 3;
    const FUNCTION_RESET: u8 = 1 << 7;

    pub(super) fn new(registers: Registers, bars: [Option<Bar>; 6]) -> Self {
        Self { registers, initial: Vec::new(), bars, places: Places::default(), said: Said::default() }
    }

    pub(super) fn registers(&mut self) -> &mut Registers {
        &mut self.registers
    }

    pub(super) fn place(&mut self, id: u8, at: usize) {
        match id {
            1 => self.places.power = at,
            5 => self.places.msi = at,
            0x10 => self.places.express = at,
            _ => self.places.msix = at,
        }
    }

    pub(super) fn seal(&mut self) {
        self.initial = self.registers.bytes.clone();
    }

    /// The length in bytes: 256, or 4096 with PCI Express.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.registers.bytes.len() as u64
    }

    /// Reads the bytes at `offset`; zeros beyond the end.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        copy(&self.registers.bytes, offset, into);
    }

    /// Writes the writable bits; returns the parts that changed.
    pub fn write(&mut self, offset: u64, from: &[u8]) -> ConfigChange {
        let Ok(start) = usize::try_from(offset) else { return ConfigChange::default() };
        let before = (self.command(), self.interrupts(), self.bar_bytes(), self.power_state());
        let mut reset = false;
        let express = self.places.express;
        for (at, value) in (start..self.registers.bytes.len()).zip(from) {
            self.registers.write(at, *value);
            reset |= express != 0 && at == express + 9 && value & Self::FUNCTION_RESET != 0;
        }
        let touches = |at: usize| start < at + 2 && at < start.saturating_add(from.len());
        let control = |at: usize| at != 0 && touches(at + 2);
        self.said.command |= touches(4);
        self.said.memory |= self.is_memory_enabled();
        self.said.messages |= control(self.places.msi) || control(self.places.msix);
        if reset {
            self.reset();
        }
        ConfigChange {
            reset,
            command: before.0 != self.command(),
            interrupts: before.1 != self.interrupts(),
            bars: before.2 != self.bar_bytes(),
            power: before.3 != self.power_state(),
        }
    }

    /// Restores the state after the build, as a function reset does.
    pub fn reset(&mut self) {
        self.registers.bytes.copy_from_slice(&self.initial);
        self.said = Said::default();
    }

    fn command(&self) -> u16 {
        self.registers.get16(4)
    }

    /// All registers that determine the interrupts in use.
    fn interrupts(&self) -> (u16, Option<Msi>, u16) {
        let msix = if self.places.msix == 0 { 0 } else { self.registers.get16(self.places.msix + 2) };
        (self.command() & Self::INTX_DISABLE, self.msi(), msix)
    }

    fn bar_bytes(&self) -> [u32; 6] {
        std::array::from_fn(|index| self.registers.get32(0x10 + 4 * index))
    }

    /// Whether bus mastering is enabled.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.command() & Self::BUS_MASTER != 0
    }

    /// Whether the device may access memory: bus mastering is enabled, or the register was never written.
    #[must_use]
    pub fn may_bus_master(&self) -> bool {
        !self.said.command || self.is_bus_master()
    }

    /// Whether accesses to memory BARs must be answered: memory space is enabled, or was never written. A driver that enables
    /// bus mastering without ever enabling memory space leaves this to its client, which forwards the accesses it chooses.
    #[must_use]
    pub fn should_decode_memory(&self) -> bool {
        !self.said.command || self.is_memory_enabled() || !self.said.memory && self.is_bus_master()
    }

    /// Whether the driver has written the registers of MSI or MSI-X. If not, only its client knows which messages are in use.
    #[must_use]
    pub fn is_message_setup_known(&self) -> bool {
        self.said.messages
    }

    /// Sets the pending bits of MSI.
    pub fn set_msi_pending(&mut self, pending: u32) {
        if self.places.msi != 0 {
            self.registers.set32(self.places.msi + 20, pending);
        }
    }

    /// Whether memory space is enabled.
    #[must_use]
    pub fn is_memory_enabled(&self) -> bool {
        self.command() & Self::MEMORY != 0
    }

    /// Whether I/O space is enabled.
    #[must_use]
    pub fn is_io_enabled(&self) -> bool {
        self.command() & Self::IO != 0
    }

    /// Whether INTx must not be asserted: it is disabled, or messages are in use.
    #[must_use]
    pub fn is_intx_disabled(&self) -> bool {
        let messages = self.msi().is_some_and(|msi| msi.enabled) || self.is_msix_enabled();
        self.command() & Self::INTX_DISABLE != 0 || messages
    }

    /// Sets the interrupt bit of the status register, which does not depend on INTx disable.
    pub fn set_intx_status(&mut self, asserted: bool) {
        let status = self.registers.get(6) & !Self::INTX_STATUS;
        self.registers.set8(6, if asserted { status | Self::INTX_STATUS } else { status });
    }

    /// The power state, 0 (D0) or 3 (D3hot).
    #[must_use]
    pub fn power_state(&self) -> u8 {
        if self.places.power == 0 { 0 } else { self.registers.get(self.places.power + 4) & 0b11 }
    }

    /// The MSI setup; `None` for a device without MSI.
    #[must_use]
    pub fn msi(&self) -> Option<Msi> {
        let at = self.places.msi;
        if at == 0 {
            return None;
        }
        let control = self.registers.get16(at + 2);
        let (capable, given) = (control >> 1 & 0b111, control >> 4 & 0b111);
        Some(Msi {
            enabled: control & 1 != 0,
            vectors: 1 << given.min(capable),
            address: u64::from(self.registers.get32(at + 4)) | u64::from(self.registers.get32(at + 8)) << 32,
            data: self.registers.get16(at + 12),
            masks: self.registers.get32(at + 16),
        })
    }

    /// Whether MSI-X is enabled.
    #[must_use]
    pub fn is_msix_enabled(&self) -> bool {
        self.places.msix != 0 && self.registers.get16(self.places.msix + 2) & 1 << 15 != 0
    }

    /// Whether the function mask of MSI-X is set.
    #[must_use]
    pub fn is_msix_masked(&self) -> bool {
        self.places.msix != 0 && self.registers.get16(self.places.msix + 2) & 1 << 14 != 0
    }

    /// The address of a BAR; `None` if the device does not have it.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<u64> {
        let bar = self.bars.get(index).copied().flatten()?;
        let at = 0x10 + 4 * index;
        let low = u64::from(self.registers.get32(at));
        let high = if bar.is_wide() { u64::from(self.registers.get32(at + 4)) } else { 0 };
        Some((high << 32 | low) & bar.mask())
    }
}
