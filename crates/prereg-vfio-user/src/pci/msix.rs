//! The MSI-X table and its pending bits.
//!
//! VMMs often keep the table themselves and never forward it to the device; then all vectors stay masked here, and only their
//! eventfds say which are in use.

use super::config::copy;

/// The message of a vector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixMessage {
    /// The address.
    pub address: u64,
    /// The data.
    pub data: u32,
    /// Masked.
    pub masked: bool,
}

/// Table and pending bits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MsixTable {
    /// 16 bytes a vector.
    table: Vec<u8>,
    /// A bit a vector, in words of 8 bytes.
    pending: Vec<u8>,
    /// The table was written since the last reset.
    shown: bool,
}

impl MsixTable {
    const ENTRY: usize = 16;

    /// A table of `vectors` masked vectors, at most 2048.
    #[must_use]
    pub fn new(vectors: u32) -> Self {
        let vectors = vectors.min(2048) as usize;
        let mut table = vec![0; vectors * Self::ENTRY];
        table.iter_mut().skip(12).step_by(Self::ENTRY).for_each(|control| *control = 1);
        Self { table, pending: vec![0; vectors.div_ceil(64) * 8], shown: false }
    }

    /// The number of vectors.
    #[must_use]
    pub fn vectors(&self) -> u32 {
        // At most 2048.
        (self.table.len() / Self::ENTRY) as u32
    }

    /// Reads the table; zeros beyond its end.
    pub fn read_table(&self, offset: u64, into: &mut [u8]) {
        copy(&self.table, offset, into);
    }

    /// Reads the pending bits; zeros beyond their end.
    pub fn read_pending(&self, offset: u64, into: &mut [u8]) {
        copy(&self.pending, offset, into);
    }

    /// Writes the table; returns the vectors that were pending and are unmasked now, whose pending bits are cleared.
    pub fn write_table(&mut self, offset: u64, from: &[u8]) -> Vec<u32> {
        let Ok(start) = usize::try_from(offset) else { return Vec::new() };
        self.shown |= start < self.table.len();
        for (at, value) in (start..self.table.len()).zip(from) {
            let value = match at % Self::ENTRY {
                // The low address bits, and all control bits but the mask, are read-only.
                0 => value & !0b11,
                12 => value & 1,
                13.. => 0,
                _ => *value,
            };
            if let Some(byte) = self.table.get_mut(at) {
                *byte = value;
            }
        }
        let last = start.saturating_add(from.len().saturating_sub(1)) / Self::ENTRY;
        let touched = (start / Self::ENTRY..=last).take_while(|vector| *vector < self.vectors() as usize);
        let ready: Vec<u32> =
            touched.map(|vector| vector as u32).filter(|vector| self.is_due(*vector)).collect();
        ready.iter().for_each(|vector| self.set_pending(*vector, false));
        ready
    }

    /// Whether a vector is masked; false if the table was never written.
    #[must_use]
    pub fn is_masked(&self, vector: u32) -> bool {
        self.shown && self.message(vector).is_some_and(|message| message.masked)
    }

    fn is_due(&self, vector: u32) -> bool {
        self.is_pending(vector) && self.message(vector).is_some_and(|message| !message.masked)
    }

    /// The message of a vector; `None` if there is no such vector.
    #[must_use]
    pub fn message(&self, vector: u32) -> Option<MsixMessage> {
        let entry = self.table.get(vector as usize * Self::ENTRY..)?.first_chunk::<16>()?;
        let [a, b, c, d, e, f, g, h, i, j, k, l, control, ..] = *entry;
        Some(MsixMessage {
            address: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
            data: u32::from_le_bytes([i, j, k, l]),
            masked: control & 1 != 0,
        })
    }

    /// Whether a vector was triggered while it was masked.
    #[must_use]
    pub fn is_pending(&self, vector: u32) -> bool {
        self.pending.get(vector as usize / 8).is_some_and(|byte| byte & 1 << (vector % 8) != 0)
    }

    /// Sets the pending bit of a vector.
    pub fn set_pending(&mut self, vector: u32, pending: bool) {
        if vector >= self.vectors() {
            return;
        }
        if let Some(byte) = self.pending.get_mut(vector as usize / 8) {
            let bit = 1 << (vector % 8);
            *byte = if pending { *byte | bit } else { *byte & !bit };
        }
    }

    /// Masks every vector and clears the pending bits, as a reset does.
    pub fn reset(&mut self) {
        *self = Self::new(self.vectors());
    }
}
