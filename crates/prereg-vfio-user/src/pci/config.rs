//! A configuration space: its bytes, which of their bits can be written, and what a write means.

use super::bar::Bar;

/// Bytes with a mask of the bits that can be written, and of those that are cleared by writing 1.
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

/// Copies what lies at `offset`; zeros beyond the end.
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

/// What a write changed. Several things may be true of one.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[non_exhaustive]
pub struct Written {
    /// The function is to be reset; its configuration space has been already.
    pub reset: bool,
    /// The command register: bus mastering, memory, ports.
    pub command: bool,
    /// Which interrupts are in use, or masked: INTx disable, MSI, MSI-X.
    pub interrupts: bool,
    /// Where BARs lie.
    pub bars: bool,
    /// The power state.
    pub power: bool,
}

/// MSI as the driver set it up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Msi {
    /// In use.
    pub enabled: bool,
    /// How many vectors the driver gave it.
    pub vectors: u32,
    /// Where messages go.
    pub address: u64,
    /// What they say, for vector 0.
    pub data: u16,
    /// A bit for each vector that is masked.
    pub masks: u32,
}

/// Where the capabilities are; 0 for one that is not there.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Places {
    power: usize,
    msi: usize,
    msix: usize,
    express: usize,
}

/// A device's configuration space.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConfigSpace {
    registers: Registers,
    /// As it was built.
    initial: Vec<u8>,
    bars: [Option<Bar>; 6],
    places: Places,
    said: Said,
}

/// What was written since the last reset. Some clients keep registers to themselves, so what was never written says nothing.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Said {
    /// The command register.
    command: bool,
    /// Memory space was on.
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

    /// Its length in bytes: 256, or 4096 of a device on PCI Express.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.registers.bytes.len() as u64
    }

    /// Reads what lies at `offset`; zeros beyond the end.
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        copy(&self.registers.bytes, offset, into);
    }

    /// Writes what can be written, and says what that changed.
    pub fn write(&mut self, offset: u64, from: &[u8]) -> Written {
        let Ok(start) = usize::try_from(offset) else { return Written::default() };
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
        Written {
            reset,
            command: before.0 != self.command(),
            interrupts: before.1 != self.interrupts(),
            bars: before.2 != self.bar_bytes(),
            power: before.3 != self.power_state(),
        }
    }

    /// Puts everything back to how it was built, as a reset of the function does.
    pub fn reset(&mut self) {
        self.registers.bytes.copy_from_slice(&self.initial);
        self.said = Said::default();
    }

    fn command(&self) -> u16 {
        self.registers.get16(4)
    }

    /// All that says which interrupts are in use.
    fn interrupts(&self) -> (u16, Option<Msi>, u16) {
        let msix = if self.places.msix == 0 { 0 } else { self.registers.get16(self.places.msix + 2) };
        (self.command() & Self::INTX_DISABLE, self.msi(), msix)
    }

    fn bar_bytes(&self) -> [u32; 6] {
        std::array::from_fn(|index| self.registers.get32(0x10 + 4 * index))
    }

    /// Whether the device may reach memory.
    #[must_use]
    pub fn is_bus_master(&self) -> bool {
        self.command() & Self::BUS_MASTER != 0
    }

    /// Whether the device is to reach memory: the driver said so, or has not said anything.
    #[must_use]
    pub fn may_master(&self) -> bool {
        !self.said.command || self.is_bus_master()
    }

    /// Whether accesses to memory BARs are to be answered: the driver turned memory space on, or has not said anything. One
    /// that turns on bus mastering without ever turning on memory space leaves that to its client, which decides by itself
    /// which accesses it sends.
    #[must_use]
    pub fn answers_memory(&self) -> bool {
        !self.said.command || self.is_memory_enabled() || !self.said.memory && self.is_bus_master()
    }

    /// Whether the driver said which messages are in use. Where it has not, its client knows.
    #[must_use]
    pub fn says_messages(&self) -> bool {
        self.said.messages
    }

    /// Says which vectors of MSI are pending.
    pub fn set_msi_pending(&mut self, pending: u32) {
        if self.places.msi != 0 {
            self.registers.set32(self.places.msi + 20, pending);
        }
    }

    /// Whether its memory BARs are answered.
    #[must_use]
    pub fn is_memory_enabled(&self) -> bool {
        self.command() & Self::MEMORY != 0
    }

    /// Whether its ports are answered.
    #[must_use]
    pub fn is_io_enabled(&self) -> bool {
        self.command() & Self::IO != 0
    }

    /// Whether INTx is not to be asserted: because the driver said so, or because messages are in use.
    #[must_use]
    pub fn is_intx_disabled(&self) -> bool {
        let messages = self.msi().is_some_and(|msi| msi.enabled) || self.is_msix_enabled();
        self.command() & Self::INTX_DISABLE != 0 || messages
    }

    /// Says in the status register whether the device wants attention by INTx, disabled or not.
    pub fn set_intx_status(&mut self, asserted: bool) {
        let status = self.registers.get(6) & !Self::INTX_STATUS;
        self.registers.set8(6, if asserted { status | Self::INTX_STATUS } else { status });
    }

    /// The power state, 0 (D0) or 3 (D3hot).
    #[must_use]
    pub fn power_state(&self) -> u8 {
        if self.places.power == 0 { 0 } else { self.registers.get(self.places.power + 4) & 0b11 }
    }

    /// MSI; `None` for a device without.
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

    /// Whether MSI-X is in use.
    #[must_use]
    pub fn is_msix_enabled(&self) -> bool {
        self.places.msix != 0 && self.registers.get16(self.places.msix + 2) & 1 << 15 != 0
    }

    /// Whether all vectors of MSI-X are masked.
    #[must_use]
    pub fn is_msix_masked(&self) -> bool {
        self.places.msix != 0 && self.registers.get16(self.places.msix + 2) & 1 << 14 != 0
    }

    /// Where a BAR lies; `None` for one that the device does not have.
    #[must_use]
    pub fn bar(&self, index: usize) -> Option<u64> {
        let bar = self.bars.get(index).copied().flatten()?;
        let at = 0x10 + 4 * index;
        let low = u64::from(self.registers.get32(at));
        let high = if bar.is_wide() { u64::from(self.registers.get32(at + 4)) } else { 0 };
        Some((high << 32 | low) & bar.mask())
    }
}
