//! DMA_MAP, DMA_UNMAP, and the server's own DMA_READ and DMA_WRITE.

use prereg::{Access, Iova};

use super::bytes::{Fields, Put};
use crate::refusal::Refusal;

/// `bytes` at `iova`, at least one; a sum of exactly 2^64 is fine.
fn range(iova: u64, bytes: u64) -> Result<(), Refusal> {
    match bytes.checked_sub(1).and_then(|more| iova.checked_add(more)) {
        Some(_) => Ok(()),
        None => Err(Refusal::Range { start: iova, bytes }),
    }
}

/// The body of DMA_MAP. Its reply has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapMemory {
    /// What the device may do there.
    pub access: Access,
    /// Where the memory starts in the descriptor that comes along; nothing where none comes.
    pub offset: u64,
    /// Where the device finds it.
    pub iova: Iova,
    /// How much, at least 1; `iova + bytes` is at most 2^64.
    pub bytes: u64,
}

impl MapMemory {
    /// Bytes of the body.
    pub const BYTES: u32 = 32;

    /// Flags that say how a descriptor is to be used: by a mapping, or by reads and writes. Either needs one, and the server
    /// chooses the way by itself.
    const BY_DESCRIPTOR: u32 = 0b11 << 2;

    /// # Errors
    /// [`Refusal::Size`], [`Refusal::ArgSize`], [`Refusal::Flags`] (unknown ones, or neither read nor write),
    /// [`Refusal::Range`].
    pub fn read(body: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        let flags = fields.u32()?;
        let bits = u64::from(flags & !Self::BY_DESCRIPTOR);
        let access = Access::from_bits(bits).filter(|access| access.bits() == bits);
        let access = access.ok_or(Refusal::Flags { flags })?;
        let (offset, iova, bytes) = (fields.u64()?, fields.u64()?, fields.u64()?);
        range(iova, bytes)?;
        Ok(Self { access, offset, iova: Iova::new(iova), bytes })
    }

    /// The flags of a body that says that a descriptor comes along; `None` of one that leaves it open.
    #[must_use]
    pub fn needs_descriptor(body: &[u8]) -> Option<u32> {
        let flags = u32::from_ne_bytes(*body.get(4..)?.first_chunk()?);
        (flags & Self::BY_DESCRIPTOR != 0).then_some(flags)
    }

    /// Writes the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        let flags = u32::try_from(self.access.bits()).unwrap_or(0);
        out.u32(Self::BYTES).u32(flags).u64(self.offset).u64(self.iova.raw()).u64(self.bytes);
    }
}

/// The body of DMA_UNMAP, and of its reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnmapMemory {
    /// Every mapping that lies in a range, none included.
    Range {
        /// The first byte.
        iova: Iova,
        /// How many, at least 1; `iova + bytes` is at most 2^64.
        bytes: u64,
    },
    /// Every mapping there is.
    All,
}

impl UnmapMemory {
    /// Bytes of the body, without a bitmap.
    pub const BYTES: u32 = 24;

    const DIRTY_BITMAP: u32 = 1;
    const ALL: u32 = 2;

    /// # Errors
    /// [`Refusal::Size`], [`Refusal::ArgSize`], [`Refusal::Flags`], [`Refusal::DirtyBitmap`], [`Refusal::Range`],
    /// [`Refusal::NotZero`] where "all" comes with a range.
    pub fn read(body: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        let flags = fields.u32()?;
        if flags & !(Self::DIRTY_BITMAP | Self::ALL) != 0 {
            return Err(Refusal::Flags { flags });
        }
        if flags & Self::DIRTY_BITMAP != 0 {
            return Err(Refusal::DirtyBitmap);
        }
        if flags & Self::ALL != 0 {
            fields.zero64("address")?;
            fields.zero64("size")?;
            return Ok(Self::All);
        }
        let (iova, bytes) = (fields.u64()?, fields.u64()?);
        range(iova, bytes)?;
        Ok(Self::Range { iova: Iova::new(iova), bytes })
    }

    /// Writes the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (flags, iova, bytes) = match self {
            Self::Range { iova, bytes } => (0, iova.raw(), *bytes),
            Self::All => (Self::ALL, 0, 0),
        };
        out.u32(Self::BYTES).u32(flags).u64(iova).u64(bytes);
    }
}

/// The body of DMA_READ and DMA_WRITE; data follows in a write's command and in a read's reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaAccess<'a> {
    /// Where.
    pub iova: Iova,
    /// How many bytes.
    pub bytes: u64,
    /// Those bytes, or nothing.
    pub data: &'a [u8],
}

impl<'a> DmaAccess<'a> {
    /// Bytes of the body before the data.
    pub const BYTES: u32 = 16;

    /// # Errors
    /// [`Refusal::Size`].
    pub fn read(body: &'a [u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::new(body);
        Ok(Self { iova: Iova::new(fields.u64()?), bytes: fields.u64()?, data: fields.rest() })
    }

    /// Writes the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u64(self.iova.raw()).u64(self.bytes).extend_from_slice(self.data);
    }
}

/// The body of the reply to DMA_WRITE.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DmaDone {
    /// Where.
    pub iova: Iova,
    /// How many bytes were written.
    pub bytes: u64,
}

impl DmaDone {
    /// The specification has a count of 4 bytes here and of 8 everywhere else; clients send 8. Both are read.
    ///
    /// # Errors
    /// [`Refusal::Size`].
    pub fn read(body: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::new(body);
        let iova = Iova::new(fields.u64()?);
        let bytes = if body.len() == 12 { u64::from(fields.u32()?) } else { fields.u64()? };
        fields.end()?;
        Ok(Self { iova, bytes })
    }

    /// Writes the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u64(self.iova.raw()).u64(self.bytes);
    }
}
