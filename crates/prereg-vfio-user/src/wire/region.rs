//! Regions: DEVICE_GET_REGION_INFO, DEVICE_GET_REGION_IO_FDS, REGION_READ, REGION_WRITE, REGION_WRITE_MULTI.

use super::bytes::{Fields, Put, length};
use crate::request_error::RequestError;

/// A mappable area of a region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SparseArea {
    /// The offset in the region, in bytes.
    pub offset: u64,
    /// The length in bytes.
    pub bytes: u64,
}

/// The body of DEVICE_GET_REGION_INFO's reply.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionInfo {
    /// Bytes of the complete reply body with its areas, even if the client had no room for them.
    pub argsz: u32,
    /// `VFIO_REGION_INFO_FLAG_*`: bit 0 read, 1 write, 2 mmap (with a descriptor), 3 capabilities.
    pub flags: u32,
    /// The region.
    pub index: u32,
    /// The length in bytes.
    pub bytes: u64,
    /// The offset of the region in the descriptor.
    pub offset: u64,
    /// The areas that may be mapped; none means all of it.
    pub areas: Vec<SparseArea>,
}

impl RegionInfo {
    /// Bytes of the command's body, and of the reply's without areas.
    pub const BYTES: u32 = 32;
    /// Readable.
    pub const READ: u32 = 1;
    /// Writable.
    pub const WRITE: u32 = 1 << 1;
    /// Mappable.
    pub const MMAP: u32 = 1 << 2;
    /// Capabilities follow.
    pub const CAPABILITIES: u32 = 1 << 3;

    const SPARSE_MMAP: u16 = 1;

    /// Bytes of the reply's body with `areas` areas; `None` above 32 bits.
    #[must_use]
    pub fn bytes_with(areas: usize) -> Option<u32> {
        match areas {
            0 => Some(Self::BYTES),
            _ => u32::try_from(areas).ok()?.checked_mul(16)?.checked_add(Self::BYTES + 16),
        }
    }

    /// Reads the command's body: the index and the room for the reply. Other fields are the reply's and ignored; clients send
    /// the whole buffer for it.
    ///
    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`].
    pub fn read_command(body: &[u8]) -> Result<(u32, u32), RequestError> {
        let mut fields = Fields::new(body);
        let argsz = fields.argsz(Self::BYTES)?;
        let (_flags, index, _capabilities) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (_bytes, _offset) = (fields.u64()?, fields.u64()?);
        Ok((index, argsz))
    }

    /// Writes the command's body.
    pub fn write_command(index: u32, argsz: u32, out: &mut Vec<u8>) {
        out.u32(argsz).u32(0).u32(index).u32(0).u64(0).u64(0);
    }

    /// Reads the reply's body, and the areas of its capabilities.
    ///
    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`], [`RequestError::Count`].
    pub fn read(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        let argsz = fields.argsz(Self::BYTES)?;
        let (flags, index, first) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (bytes, offset) = (fields.u64()?, fields.u64()?);
        let mut areas = Vec::new();
        let mut next = if flags & Self::CAPABILITIES != 0 { first } else { 0 };
        let mut before = 0;
        while next > before {
            let chain = body.get(next as usize..);
            let mut fields = Fields::new(chain.ok_or(RequestError::Count { count: u64::from(next) })?);
            let (id, _version) = (fields.u16()?, fields.u16()?);
            before = next;
            next = fields.u32()?;
            if id == Self::SPARSE_MMAP {
                let count = fields.u32()?;
                fields.u32()?;
                for _ in 0..count {
                    areas.push(SparseArea { offset: fields.u64()?, bytes: fields.u64()? });
                }
            }
        }
        Ok(Self { argsz, flags, index, bytes, offset, areas })
    }

    /// Writes the reply's body, with its areas if the flags have capabilities.
    pub fn write(&self, out: &mut Vec<u8>) {
        let follow = self.flags & Self::CAPABILITIES != 0;
        let first = if follow { Self::BYTES } else { 0 };
        out.u32(self.argsz).u32(self.flags).u32(self.index).u32(first).u64(self.bytes).u64(self.offset);
        if follow {
            out.u16(Self::SPARSE_MMAP).u16(1).u32(0).u32(length(self.areas.len())).u32(0);
            for area in &self.areas {
                out.u64(area.offset).u64(area.bytes);
            }
        }
    }
}

/// The kind of descriptor of an [`IoSubregion`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IoRegionKind {
    /// An eventfd, signalled at each write.
    Eventfd {
        /// `KVM_IOEVENTFD_FLAG_*`.
        flags: u32,
        /// The only value that is signalled, depending on the flags.
        datamatch: u64,
    },
    /// An ioregionfd: accesses are messages on it.
    Ioregion {
        /// `KVM_IOREGION_*`.
        flags: u32,
        /// Repeated in each message.
        user_data: u64,
    },
}

/// A part of a region whose accesses go to a descriptor.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IoSubregion {
    /// The offset in the region, in bytes.
    pub offset: u64,
    /// The length of an access in bytes; 0 for any.
    pub bytes: u64,
    /// The index of the descriptor.
    pub descriptor: u32,
    /// The kind of descriptor.
    pub kind: IoRegionKind,
}

/// The bodies of DEVICE_GET_REGION_IO_FDS.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoRegionsInfo {
    /// Bytes of the complete reply body.
    pub argsz: u32,
    /// The region.
    pub index: u32,
    /// The subregions; empty if the client had no room for them.
    pub subregions: Vec<IoSubregion>,
}

impl IoRegionsInfo {
    /// Bytes of the command's body, and of the reply's without subregions.
    pub const BYTES: u32 = 16;
    /// Bytes of a subregion.
    pub(crate) const SUBREGION: u32 = 40;

    /// Reads the command's body: the index and the room for the reply.
    ///
    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`], [`RequestError::NotZero`].
    pub fn read_command(body: &[u8]) -> Result<(u32, u32), RequestError> {
        let mut fields = Fields::new(body);
        let argsz = fields.argsz(Self::BYTES)?;
        fields.zero32("flags")?;
        let index = fields.u32()?;
        fields.zero32("count")?;
        Ok((index, argsz))
    }

    /// Writes the command's body.
    pub fn write_command(index: u32, argsz: u32, out: &mut Vec<u8>) {
        out.u32(argsz).u32(0).u32(index).u32(0);
    }

    /// Reads the reply's body.
    ///
    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`], [`RequestError::NotZero`], [`RequestError::Flags`] for an unknown kind.
    pub fn read(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        let argsz = fields.argsz(Self::BYTES)?;
        fields.zero32("flags")?;
        let (index, count) = (fields.u32()?, fields.u32()?);
        let mut subregions = Vec::new();
        for _ in 0..count {
            let (offset, bytes, descriptor) = (fields.u64()?, fields.u64()?, fields.u32()?);
            let (number, flags) = (fields.u32()?, fields.u32()?);
            fields.u32()?;
            let value = fields.u64()?;
            let kind = match number {
                0 => IoRegionKind::Eventfd { flags, datamatch: value },
                1 => IoRegionKind::Ioregion { flags, user_data: value },
                _ => return Err(RequestError::Flags { flags: number }),
            };
            subregions.push(IoSubregion { offset, bytes, descriptor, kind });
        }
        fields.end()?;
        Ok(Self { argsz, index, subregions })
    }

    /// Writes the reply's body.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u32(self.argsz).u32(0).u32(self.index).u32(length(self.subregions.len()));
        for part in &self.subregions {
            let (number, flags, value) = match part.kind {
                IoRegionKind::Eventfd { flags, datamatch } => (0, flags, datamatch),
                IoRegionKind::Ioregion { flags, user_data } => (1, flags, user_data),
            };
            out.u64(part.offset)
                .u64(part.bytes)
                .u32(part.descriptor)
                .u32(number)
                .u32(flags)
                .u32(0)
                .u64(value);
        }
    }
}

/// The body of REGION_READ and REGION_WRITE, and of their replies; data follows in a write and in the reply to a read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionAccess<'a> {
    /// The offset in the region, in bytes.
    pub offset: u64,
    /// The region.
    pub region: u32,
    /// The number of bytes; `offset + count` does not wrap.
    pub count: u32,
    /// The data, or nothing.
    pub data: &'a [u8],
}

impl<'a> RegionAccess<'a> {
    /// Bytes of the body before the data.
    pub const BYTES: u32 = 16;

    /// # Errors
    /// [`RequestError::Size`], [`RequestError::Range`] (no bytes, or beyond 2^64).
    pub fn read(body: &'a [u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
        span(offset, count)?;
        Ok(Self { offset, region, count, data: fields.rest() })
    }

    /// Writes the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u64(self.offset).u32(self.region).u32(self.count).extend_from_slice(self.data);
    }
}

fn span(offset: u64, count: u32) -> Result<(), RequestError> {
    let bytes = u64::from(count);
    match offset.checked_add(bytes) {
        Some(_) if bytes > 0 => Ok(()),
        _ => Err(RequestError::Range { start: offset, bytes }),
    }
}

/// One write of a REGION_WRITE_MULTI: 1 to 8 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RegionWrite {
    offset: u64,
    region: u32,
    count: u32,
    data: [u8; 8],
}

impl RegionWrite {
    /// A write of `data` to `offset` of `region`; `None` unless it has 1 to 8 bytes below 2^64.
    #[must_use]
    pub fn new(region: u32, offset: u64, data: &[u8]) -> Option<Self> {
        let mut padded = [0; 8];
        padded.get_mut(..data.len())?.copy_from_slice(data);
        let count = length(data.len());
        span(offset, count).ok()?;
        Some(Self { offset, region, count, data: padded })
    }

    /// The offset in the region, in bytes.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The region.
    #[must_use]
    pub fn region(&self) -> u32 {
        self.region
    }

    /// The bytes.
    #[must_use]
    pub fn data(&self) -> &[u8] {
        self.data.get(..self.count as usize).unwrap_or(&self.data)
    }
}

/// The body of REGION_WRITE_MULTI.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RegionWrites(Vec<RegionWrite>);

impl RegionWrites {
    /// The length of the shortest body: a count.
    pub const LEAST: u32 = 8;

    /// These writes, in this order.
    #[must_use]
    pub fn new(writes: Vec<RegionWrite>) -> Self {
        Self(writes)
    }

    /// The writes.
    #[must_use]
    pub fn into_inner(self) -> Vec<RegionWrite> {
        self.0
    }

    /// # Errors
    /// [`RequestError::Count`] (no writes, a wrong count, or a write of 0 or more than 8 bytes), [`RequestError::Range`],
    /// [`RequestError::Size`].
    pub fn read(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        let count = fields.u64()?;
        let there = (body.len() as u64 - u64::from(Self::LEAST)) / 24;
        if count == 0 || count != there {
            return Err(RequestError::Count { count });
        }
        let mut writes = Vec::with_capacity(there as usize);
        for _ in 0..count {
            let (offset, region, count) = (fields.u64()?, fields.u32()?, fields.u32()?);
            if !(1..=8).contains(&count) {
                return Err(RequestError::Count { count: u64::from(count) });
            }
            span(offset, count)?;
            writes.push(RegionWrite { offset, region, count, data: fields.eight()? });
        }
        fields.end()?;
        Ok(Self(writes))
    }

    /// Writes the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u64(self.0.len() as u64);
        for write in &self.0 {
            out.u64(write.offset).u32(write.region).u32(write.count).extend_from_slice(&write.data);
        }
    }

    /// Reads the reply's body: the number of writes performed.
    ///
    /// # Errors
    /// [`RequestError::Size`].
    pub fn read_reply(body: &[u8]) -> Result<u64, RequestError> {
        let mut fields = Fields::new(body);
        let done = fields.u64()?;
        fields.end()?;
        Ok(done)
    }

    /// Writes the reply's body.
    pub fn write_reply(done: u64, out: &mut Vec<u8>) {
        out.u64(done);
    }
}
