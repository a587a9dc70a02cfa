//! DMA_MAP, DMA_UNMAP, and the server's own DMA_READ and DMA_WRITE.

use prereg::{Access, Iova};

use super::bytes::{Fields, Put};
use crate::request_error::RequestError;

/// Checks that `bytes` is not 0 and `iova + bytes` at most 2^64.
fn range(iova: u64, bytes: u64) -> Result<(), RequestError> {
    match bytes.checked_sub(1).and_then(|more| iova.checked_add(more)) {
        Some(_) => Ok(()),
        None => Err(RequestError::Range { start: iova, bytes }),
    }
}

/// The body of DMA_MAP. Its reply has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MapMemory {
    /// The access of the device.
    pub access: Access,
    /// The start of the memory in the descriptor, if there is one.
    pub offset: u64,
    /// The address for the device.
    pub iova: Iova,
    /// The length, at least 1; `iova + bytes` is at most 2^64.
    pub bytes: u64,
}

impl MapMemory {
    /// Bytes of the body.
    pub const BYTES: u32 = 32;

    /// Flags for how to use a descriptor: by a mapping, or by reads and writes. Either needs a descriptor; the server chooses
    /// the way itself.
    const BY_DESCRIPTOR: u32 = 0b11 << 2;

    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`], [`RequestError::Flags`] (unknown ones, or neither read nor write),
    /// [`RequestError::Range`].
    pub fn read(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        let flags = fields.u32()?;
        let bits = u64::from(flags & !Self::BY_DESCRIPTOR);
        let access = Access::from_bits(bits).filter(|access| access.bits() == bits);
        let access = access.ok_or(RequestError::Flags { flags })?;
        let (offset, iova, bytes) = (fields.u64()?, fields.u64()?, fields.u64()?);
        range(iova, bytes)?;
        Ok(Self { access, offset, iova: Iova::new(iova), bytes })
    }

    /// The flags of a body that needs a descriptor; `None` if it does not.
    pub(crate) fn needs_descriptor(body: &[u8]) -> Option<u32> {
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
    /// Every mapping in a range, or none.
    Range {
        /// The first byte.
        iova: Iova,
        /// The length, at least 1; `iova + bytes` is at most 2^64.
        bytes: u64,
    },
    /// Every mapping.
    All,
}

impl UnmapMemory {
    /// Bytes of the body, without a bitmap.
    pub const BYTES: u32 = 24;

    const DIRTY_BITMAP: u32 = 1;
    const ALL: u32 = 2;

    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`], [`RequestError::Flags`], [`RequestError::DirtyBitmap`],
    /// [`RequestError::Range`], [`RequestError::NotZero`] for "all" with a range.
    pub fn read(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        let flags = fields.u32()?;
        if flags & !(Self::DIRTY_BITMAP | Self::ALL) != 0 {
            return Err(RequestError::Flags { flags });
        }
        if flags & Self::DIRTY_BITMAP != 0 {
            return Err(RequestError::DirtyBitmap);
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
    /// The start.
    pub iova: Iova,
    /// The length.
    pub bytes: u64,
    /// The data, or nothing.
    pub data: &'a [u8],
}

impl<'a> DmaAccess<'a> {
    /// Bytes of the body before the data.
    pub const BYTES: u32 = 16;

    /// # Errors
    /// [`RequestError::Size`].
    pub fn read(body: &'a [u8]) -> Result<Self, RequestError> {
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
    /// The start.
    pub iova: Iova,
    /// Bytes written.
    pub bytes: u64,
}

impl DmaDone {
    /// Reads a count of 4 bytes, as in the specification here, or of 8, as everywhere else and sent by clients.
    ///
    /// # Errors
    /// [`RequestError::Size`].
    pub fn read(body: &[u8]) -> Result<Self, RequestError> {
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
