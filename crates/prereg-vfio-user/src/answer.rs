//! Tokens, and what each kind of request is answered with.
//!
//! A token remembers of its request whatever the reply repeats, so the session keeps no list of requests and replies may
//! go out in any order.

use prereg::Errno;

use private::Write;

use crate::wire::{
    Command, DeviceInfo, IoRegionsInfo, IoSubregion, IrqInfo, RegionAccess, RegionInfo, RegionWrites,
    SparseArea, UnmapMemory, Version,
};

/// The right to answer one request, once. Dropped, it leaves the client waiting for ever.
#[must_use = "the client waits for the reply"]
#[derive(Debug)]
pub struct Token<K> {
    pub(crate) ticket: Ticket,
    pub(crate) kind: K,
}

impl<K> Token<K> {
    /// The id that the client gave its request; for logs.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.ticket.id
    }
}

/// What the session knows of every request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticket {
    pub(crate) id: u16,
    pub(crate) command: Command,
    pub(crate) wants_reply: bool,
    /// Bytes that it is reckoned to hold until it is answered.
    pub(crate) held: usize,
}

/// How a kind of request is answered. The kinds are those of this module.
pub trait Kind<F>: Write<F> {}

impl<F, K: Write<F>> Kind<F> for K {}

pub(crate) mod private {
    use prereg::Errno;

    /// Writes an answer's body. Sealed: the reply must be the one that the request is due.
    pub trait Write<F> {
        /// What the server says when the request succeeded.
        type Answer<'a>;

        /// Appends the reply's body to `out` and its descriptors, at most `room`, to `descriptors`.
        ///
        /// # Errors
        /// What the client is answered instead when the answer cannot be said.
        fn write(
            self,
            answer: Self::Answer<'_>,
            room: usize,
            out: &mut Vec<u8>,
            descriptors: &mut Vec<F>,
        ) -> Result<(), Errno>;
    }
}

/// DMA_MAP, DEVICE_SET_IRQS, DEVICE_RESET: the reply says that it is done. Answered with `()`.
#[derive(Debug)]
pub struct Acknowledged;

impl<F> Write<F> for Acknowledged {
    type Answer<'a> = ();

    fn write(self, (): (), _: usize, _: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        Ok(())
    }
}

/// VERSION: the reply has what was agreed on. Answered with `()`.
#[derive(Debug)]
pub struct Introduced {
    pub(crate) minor: u16,
    /// The reply's version data with its NUL.
    pub(crate) data: Vec<u8>,
}

impl<F> Write<F> for Introduced {
    type Answer<'a> = ();

    fn write(self, (): (), _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        Version { major: 0, minor: self.minor, data: &self.data }.write(out);
        Ok(())
    }
}

/// DMA_UNMAP: the reply repeats the request. Answered with `()`.
#[derive(Debug)]
pub struct Unmapped(pub(crate) UnmapMemory);

impl<F> Write<F> for Unmapped {
    type Answer<'a> = ();

    fn write(self, (): (), _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        self.0.write(out);
        Ok(())
    }
}

/// DEVICE_GET_INFO. Answered with a [`DeviceInfo`].
#[derive(Debug)]
pub struct AskedDevice;

impl<F> Write<F> for AskedDevice {
    type Answer<'a> = DeviceInfo;

    fn write(self, answer: DeviceInfo, _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        answer.write(out);
        Ok(())
    }
}

/// A region, as a server describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region<F> {
    /// Its length in bytes; 0 for an index that the device does not use.
    pub bytes: u64,
    /// REGION_READ is answered.
    pub readable: bool,
    /// REGION_WRITE is answered.
    pub writable: bool,
    /// How to map it, if it can be.
    pub mmap: Option<Mmap<F>>,
}

/// How a client maps a region.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mmap<F> {
    /// The memory.
    pub descriptor: F,
    /// Where the region starts in it, in bytes.
    pub offset: u64,
    /// The parts that may be mapped; all of it where there are none.
    pub areas: Vec<SparseArea>,
}

/// DEVICE_GET_REGION_INFO. Answered with a [`Region`].
#[derive(Debug)]
pub struct AskedRegion {
    pub(crate) index: u32,
    pub(crate) argsz: u32,
}

impl<F> Write<F> for AskedRegion {
    type Answer<'a> = Region<F>;

    fn write(
        self,
        answer: Region<F>,
        room: usize,
        out: &mut Vec<u8>,
        descriptors: &mut Vec<F>,
    ) -> Result<(), Errno> {
        let read = if answer.readable { RegionInfo::READ } else { 0 };
        let write = if answer.writable { RegionInfo::WRITE } else { 0 };
        let mut info = RegionInfo {
            argsz: RegionInfo::BYTES,
            flags: read | write,
            index: self.index,
            bytes: answer.bytes,
            offset: 0,
            areas: Vec::new(),
        };
        if let Some(mmap) = answer.mmap.filter(|_| room > 0) {
            info.argsz = RegionInfo::bytes_with(mmap.areas.len()).ok_or(Errno::EOVERFLOW)?;
            // A client without the room asks again with it. Until then nothing says that the region can be mapped: QEMU
            // takes a mark of capabilities that are not there for an error, and all of the region would be too much.
            if info.argsz <= self.argsz {
                info.flags |= RegionInfo::MMAP;
                if !mmap.areas.is_empty() {
                    info.flags |= RegionInfo::CAPABILITIES;
                }
                info.offset = mmap.offset;
                info.areas = mmap.areas;
                descriptors.push(mmap.descriptor);
            }
        }
        info.write(out);
        Ok(())
    }
}

/// The parts of a region whose accesses go to descriptors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoRegion<F> {
    /// Each names its descriptor by its place in `descriptors`.
    pub subregions: Vec<IoSubregion>,
    /// At most as many as the client takes with one message.
    pub descriptors: Vec<F>,
}

/// DEVICE_GET_REGION_IO_FDS. Answered with an [`IoRegion`].
#[derive(Debug)]
pub struct AskedIoDescriptors {
    pub(crate) index: u32,
    pub(crate) argsz: u32,
}

impl<F> Write<F> for AskedIoDescriptors {
    type Answer<'a> = IoRegion<F>;

    fn write(
        self,
        answer: IoRegion<F>,
        room: usize,
        out: &mut Vec<u8>,
        descriptors: &mut Vec<F>,
    ) -> Result<(), Errno> {
        let there = answer.descriptors.len();
        if there > room || answer.subregions.iter().any(|part| part.descriptor as usize >= there) {
            return Err(Errno::E2BIG);
        }
        let parts = u32::try_from(answer.subregions.len()).ok();
        let needed = parts.and_then(|parts| parts.checked_mul(IoRegionsInfo::SUBREGION));
        let argsz =
            needed.and_then(|bytes| bytes.checked_add(IoRegionsInfo::BYTES)).ok_or(Errno::EOVERFLOW)?;
        let mut info = IoRegionsInfo { argsz, index: self.index, subregions: Vec::new() };
        if argsz <= self.argsz {
            info.subregions = answer.subregions;
            descriptors.extend(answer.descriptors);
        }
        info.write(out);
        Ok(())
    }
}

/// What a server says of a kind of interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Irqs {
    /// `VFIO_IRQ_INFO_*`: bit 0 eventfd, 1 maskable, 2 masks itself, 3 cannot grow.
    pub flags: u32,
    /// How many there are.
    pub count: u32,
}

/// DEVICE_GET_IRQ_INFO. Answered with [`Irqs`].
#[derive(Debug)]
pub struct AskedIrq {
    pub(crate) index: u32,
}

impl<F> Write<F> for AskedIrq {
    type Answer<'a> = Irqs;

    fn write(self, answer: Irqs, _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        IrqInfo { index: self.index, flags: answer.flags, count: answer.count }.write(out);
        Ok(())
    }
}

/// REGION_READ. Answered with the bytes, at most as many as were asked for; EIO goes out for more.
#[derive(Debug)]
pub struct ReadData {
    pub(crate) region: u32,
    pub(crate) offset: u64,
    pub(crate) count: u32,
}

impl<F> Write<F> for ReadData {
    type Answer<'a> = &'a [u8];

    fn write(self, data: &[u8], _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        let count = u32::try_from(data.len()).ok().filter(|count| *count <= self.count).ok_or(Errno::EIO)?;
        RegionAccess { offset: self.offset, region: self.region, count, data }.write(out);
        Ok(())
    }
}

/// REGION_WRITE. Answered with `()`: all of it was written.
#[derive(Debug)]
pub struct Written {
    pub(crate) region: u32,
    pub(crate) offset: u64,
    pub(crate) count: u32,
}

impl<F> Write<F> for Written {
    type Answer<'a> = ();

    fn write(self, (): (), _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        RegionAccess { offset: self.offset, region: self.region, count: self.count, data: &[] }.write(out);
        Ok(())
    }
}

/// REGION_WRITE_MULTI. Answered with how many of the writes, from the first, were performed; EIO goes out for more than
/// there were.
#[derive(Debug)]
pub struct WrittenMany {
    pub(crate) count: u64,
}

impl<F> Write<F> for WrittenMany {
    type Answer<'a> = u64;

    fn write(self, done: u64, _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        if done > self.count {
            return Err(Errno::EIO);
        }
        RegionWrites::write_reply(done, out);
        Ok(())
    }
}
