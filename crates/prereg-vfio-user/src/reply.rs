//! Tokens, and the replies to each kind of request.
//!
//! A token has everything that the reply repeats of the request, so the session keeps no list of requests and replies may be
//! sent in any order.

use prereg::Errno;

use private::Write;

use crate::wire::{
    Command, DeviceInfo, IoRegionsInfo, IoSubregion, IrqInfo, RegionAccess, RegionInfo, RegionWrites,
    SparseArea, UnmapMemory, Version,
};

/// The right to reply to one request, once. If dropped, no reply is sent and the client waits for ever.
#[must_use = "the client waits for the reply"]
#[derive(Debug)]
pub struct Token<K> {
    pub(crate) meta: RequestMeta,
    pub(crate) kind: K,
}

impl<K> Token<K> {
    /// The client's id of the request; for logs.
    #[must_use]
    pub fn id(&self) -> u16 {
        self.meta.id
    }
}

/// The session's data of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestMeta {
    pub(crate) id: u16,
    pub(crate) command: Command,
    pub(crate) wants_reply: bool,
    /// Bytes counted for it until it is answered.
    pub(crate) held: usize,
}

/// A kind of request, which determines its reply. The kinds are those of this module.
pub trait Kind<F>: Write<F> {}

impl<F, K: Write<F>> Kind<F> for K {}

pub(crate) mod private {
    use prereg::Errno;

    /// Writes the body of a reply. Sealed: every request has its own kind of reply.
    pub trait Write<F> {
        /// The result of a request that succeeded.
        type Answer<'a>;

        /// Appends the body to `out` and its descriptors, at most `room`, to `descriptors`.
        ///
        /// # Errors
        /// The errno to reply with if the result cannot be sent.
        fn write(
            self,
            answer: Self::Answer<'_>,
            room: usize,
            out: &mut Vec<u8>,
            descriptors: &mut Vec<F>,
        ) -> Result<(), Errno>;
    }
}

/// DMA_MAP, DEVICE_SET_IRQS, DEVICE_RESET: the reply has no body. Answer with `()`.
#[derive(Debug)]
pub struct EmptyReply;

impl<F> Write<F> for EmptyReply {
    type Answer<'a> = ();

    fn write(self, (): (), _: usize, _: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        Ok(())
    }
}

/// VERSION: the reply has the negotiated capabilities. Answer with `()`.
#[derive(Debug)]
pub struct VersionReply {
    pub(crate) minor: u16,
    /// The version data of the reply, with its NUL.
    pub(crate) data: Vec<u8>,
}

impl<F> Write<F> for VersionReply {
    type Answer<'a> = ();

    fn write(self, (): (), _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        Version { major: 0, minor: self.minor, data: &self.data }.write(out);
        Ok(())
    }
}

/// DMA_UNMAP: the reply repeats the request. Answer with `()`.
#[derive(Debug)]
pub struct UnmapReply(pub(crate) UnmapMemory);

impl<F> Write<F> for UnmapReply {
    type Answer<'a> = ();

    fn write(self, (): (), _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        self.0.write(out);
        Ok(())
    }
}

/// DEVICE_GET_INFO. Answer with a [`DeviceInfo`].
#[derive(Debug)]
pub struct DeviceInfoReply;

impl<F> Write<F> for DeviceInfoReply {
    type Answer<'a> = DeviceInfo;

    fn write(self, answer: DeviceInfo, _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        answer.write(out);
        Ok(())
    }
}

/// A region, as the server describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region<F> {
    /// The length in bytes; 0 for an unused index.
    pub bytes: u64,
    /// REGION_READ is supported.
    pub readable: bool,
    /// REGION_WRITE is supported.
    pub writable: bool,
    /// The memory to map, if it can be mapped.
    pub mmap: Option<Mmap<F>>,
}

/// The memory of a region that a client may map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mmap<F> {
    /// The memory.
    pub descriptor: F,
    /// The offset of the region in it, in bytes.
    pub offset: u64,
    /// The areas that may be mapped; none means all of it.
    pub areas: Vec<SparseArea>,
}

/// DEVICE_GET_REGION_INFO. Answer with a [`Region`].
#[derive(Debug)]
pub struct RegionInfoReply {
    pub(crate) index: u32,
    pub(crate) argsz: u32,
}

impl<F> Write<F> for RegionInfoReply {
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
            // A client with a too small `argsz` asks again. Until then the region is not described as mappable: QEMU treats a
            // capabilities flag without capabilities as an error, and without the areas the client would map all of the region.
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

/// The subregions of a region whose accesses go to descriptors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IoRegion<F> {
    /// Each names its descriptor by index in `descriptors`.
    pub subregions: Vec<IoSubregion>,
    /// At most the client's `max_msg_fds`.
    pub descriptors: Vec<F>,
}

/// DEVICE_GET_REGION_IO_FDS. Answer with an [`IoRegion`].
#[derive(Debug)]
pub struct RegionIoFdsReply {
    pub(crate) index: u32,
    pub(crate) argsz: u32,
}

impl<F> Write<F> for RegionIoFdsReply {
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

/// A kind of interrupt, as the server describes it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IrqDescription {
    /// `VFIO_IRQ_INFO_*`: bit 0 eventfd, 1 maskable, 2 automasked, 3 noresize.
    pub flags: u32,
    /// The number of interrupts.
    pub count: u32,
}

/// DEVICE_GET_IRQ_INFO. Answer with an [`IrqDescription`].
#[derive(Debug)]
pub struct IrqInfoReply {
    pub(crate) index: u32,
}

impl<F> Write<F> for IrqInfoReply {
    type Answer<'a> = IrqDescription;

    fn write(self, answer: IrqDescription, _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        IrqInfo { index: self.index, flags: answer.flags, count: answer.count }.write(out);
        Ok(())
    }
}

/// REGION_READ. Answer with the bytes, at most the requested count; more is sent as EIO.
#[derive(Debug)]
pub struct ReadReply {
    pub(crate) region: u32,
    pub(crate) offset: u64,
    pub(crate) count: u32,
}

impl<F> Write<F> for ReadReply {
    type Answer<'a> = &'a [u8];

    fn write(self, data: &[u8], _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        let count = u32::try_from(data.len()).ok().filter(|count| *count <= self.count).ok_or(Errno::EIO)?;
        RegionAccess { offset: self.offset, region: self.region, count, data }.write(out);
        Ok(())
    }
}

/// REGION_WRITE. Answer with `()`: all of it was written.
#[derive(Debug)]
pub struct WriteReply {
    pub(crate) region: u32,
    pub(crate) offset: u64,
    pub(crate) count: u32,
}

impl<F> Write<F> for WriteReply {
    type Answer<'a> = ();

    fn write(self, (): (), _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        RegionAccess { offset: self.offset, region: self.region, count: self.count, data: &[] }.write(out);
        Ok(())
    }
}

/// REGION_WRITE_MULTI. Answer with the number of writes performed, counted from the first; more than requested is sent as EIO.
#[derive(Debug)]
pub struct WriteMultiReply {
    pub(crate) count: u64,
}

impl<F> Write<F> for WriteMultiReply {
    type Answer<'a> = u64;

    fn write(self, done: u64, _: usize, out: &mut Vec<u8>, _: &mut Vec<F>) -> Result<(), Errno> {
        if done > self.count {
            return Err(Errno::EIO);
        }
        RegionWrites::write_reply(done, out);
        Ok(())
    }
}
