//! The MSI-X table and its pending bits.
//!
//! Virtual machine monitors often keep the table themselves and never show it to the device; then all vectors stay masked
//! here, and whether a vector is wanted is known from its eventfd alone.

use super::config::copy;

/// What one vector sends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MsixMessage {
    /// Where to.
    pub address: u64,
    /// What.
    pub data: u32,
    /// Not now.
    pub masked: bool,
}

/// Table and pending bits.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MsixTable {
    /// 16 bytes a vector.
    table: Vec<u8>,
    /// A bit a vector, in words of 8 bytes.
    pending: Vec<u8>,
    /// Something of the table was written since the last reset.
    shown: bool,
}

impl MsixTable {
    const ENTRY: usize = 16;

    /// `vectors` vectors, at most 2048, all of them masked.
    #[must_use]
    pub fn new(vectors: u32) -> Self {
        let vectors = vectors.min(2048) as usize;
        let mut table = vec![0; vectors * Self::ENTRY];
        table.iter_mut().skip(12).step_by(Self::ENTRY).for_each(|control| *control = 1);
        Self { table, pending: vec![0; vectors.div_ceil(64) * 8], shown: false }
    }

    /// How many.
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

    /// Writes the table, and answers the vectors that are pending and not masked any more; they are pending no longer.
    pub fn write_table(&mut self, offset: u64, from: &[u8]) -> Vec<u32> {
        let Ok(start) = usize::try_from(offset) else { return Vec::new() };
        self.shown |= start < self.table.len();
        for (at, value) in (start..self.table.len()).zip(from) {
            let value = match at % Self::ENTRY {
                // The lowest bits of an address, and all of the control word but the mask, are not to be written.
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

    /// Whether a vector is masked, as far as the table was ever shown to the device.
    #[must_use]
    pub fn is_masked(&self, vector: u32) -> bool {
        self.shown && self.message(vector).is_some_and(|message| message.masked)
    }

    fn is_due(&self, vector: u32) -> bool {
        self.is_pending(vector) && self.message(vector).is_some_and(|message| !message.masked)
    }

    /// What a vector sends; `None` for one that there is not.
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

    /// Whether a vector was to be sent while it was masked.
    #[must_use]
    pub fn is_pending(&self, vector: u32) -> bool {
        self.pending.get(vector as usize / 8).is_some_and(|byte| byte & 1 << (vector % 8) != 0)
    }

    /// Notes whether a vector is to be sent when it is unmasked.
    pub fn set_pending(&mut self, vector: u32, pending: bool) {
        if vector >= self.vectors() {
            return;
        }
        if let Some(byte) = self.pending.get_mut(vector as usize / 8) {
            let bit = 1 << (vector % 8);
            *byte = if pending { *byte | bit } else { *byte & !bit };
        }
    }

    /// Masks every vector and forgets what is pending, as a reset does.
    pub fn reset(&mut self) {
        *self = Self::new(self.vectors());
    }
}
