//! Actions: requests of the client for the server to perform.

use crate::capabilities::Negotiated;
use crate::reply::{
    DeviceInfoReply, EmptyReply, IrqInfoReply, ReadReply, RegionInfoReply, RegionIoFdsReply, Token,
    UnmapReply, VersionReply, WriteMultiReply, WriteReply,
};
use crate::request_error::RequestError;
use crate::transfer::{TransferError, TransferId};
use crate::wire::{Command, IrqAction, MapMemory, RegionWrite, UnmapMemory};

/// An action of the server, in the client's order. One with a token needs a reply, at any time and in any order; a client may
/// rely on the order in which requests are performed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action<F> {
    /// VERSION: the client may send other requests from here on.
    Negotiated {
        /// The negotiated capabilities.
        negotiated: Negotiated,
        /// Answer with `()` before any other reply or request; a failure rejects the client and ends the session.
        token: Token<VersionReply>,
    },
    /// DMA_MAP: lets the device access memory. Sizes and page alignment are checked; overlaps and the size of the file are not.
    MapMemory {
        /// The mapping.
        map: MapMemory,
        /// The memory; without it, it is accessed by [`Session::dma_read`](crate::Session::dma_read) and
        /// [`Session::dma_write`](crate::Session::dma_write).
        memory: Option<F>,
        /// Answer with `()`.
        token: Token<EmptyReply>,
    },
    /// DMA_UNMAP: ends the device's access to memory. Answer when no access is under way any more.
    UnmapMemory {
        /// The range.
        unmap: UnmapMemory,
        /// Answer with `()`.
        token: Token<UnmapReply>,
    },
    /// DEVICE_GET_INFO.
    DescribeDevice {
        /// Answer with a [`DeviceInfo`](crate::wire::DeviceInfo).
        token: Token<DeviceInfoReply>,
    },
    /// DEVICE_GET_REGION_INFO.
    DescribeRegion {
        /// The region, not checked.
        index: u32,
        /// Answer with a [`Region`](crate::Region); EINVAL for an index without a region.
        token: Token<RegionInfoReply>,
    },
    /// DEVICE_GET_REGION_IO_FDS.
    DescribeIoDescriptors {
        /// The region, not checked.
        index: u32,
        /// Answer with an [`IoRegion`](crate::IoRegion).
        token: Token<RegionIoFdsReply>,
    },
    /// DEVICE_GET_IRQ_INFO.
    DescribeIrqs {
        /// The kind of interrupt, not checked.
        index: u32,
        /// Answer with an [`IrqDescription`](crate::IrqDescription); EINVAL for an unknown index.
        token: Token<IrqInfoReply>,
    },
    /// DEVICE_SET_IRQS. The kind and the range of interrupts are not checked.
    SetIrqs {
        /// The kind of interrupt.
        index: u32,
        /// The first interrupt.
        start: u32,
        /// The number of interrupts; 0 (with [`IrqTargets::All`] and [`IrqAction::Trigger`]) disables the whole kind.
        count: u32,
        /// The action, performed now or when an eventfd is signalled.
        action: IrqAction,
        /// The interrupts it applies to.
        targets: IrqTargets<F>,
        /// Answer with `()`.
        token: Token<EmptyReply>,
    },
    /// REGION_READ. The region and its length are not checked.
    ReadRegion {
        /// The region.
        region: u32,
        /// The offset in bytes.
        offset: u64,
        /// The number of bytes, from 1 to the server's `max_data_xfer_size`.
        count: u32,
        /// Answer with the bytes.
        token: Token<ReadReply>,
    },
    /// REGION_WRITE. The region and its length are not checked.
    WriteRegion {
        /// The region.
        region: u32,
        /// The offset in bytes.
        offset: u64,
        /// The bytes, at least 1.
        data: Vec<u8>,
        /// Answer with `()`.
        token: Token<WriteReply>,
    },
    /// REGION_WRITE_MULTI: writes in this order.
    WriteRegions {
        /// The writes, at least 1.
        writes: Vec<RegionWrite>,
        /// Answer with the number of writes performed.
        token: Token<WriteMultiReply>,
    },
    /// DEVICE_RESET.
    Reset {
        /// Answer with `()`.
        token: Token<EmptyReply>,
    },
    /// A transfer of the server has ended. Needs no reply.
    TransferEnded {
        /// The range.
        transfer: TransferId,
        /// The data that was read; empty for a write.
        result: Result<Vec<u8>, TransferError>,
    },
    /// The engine refused a message, and replied if a reply was wanted. For logs and counts; needs no action.
    Refused {
        /// The message's id.
        id: u16,
        /// The command.
        command: Command,
        /// The reason.
        error: RequestError,
    },
}

/// The interrupts of a range that a DEVICE_SET_IRQS applies to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IrqTargets<F> {
    /// All of them, now.
    All,
    /// Those that are `true`, now; as many as the range has.
    Each(Vec<bool>),
    /// Those with these eventfds, one for each of the range, when they are signalled or to be signalled.
    Eventfds(Vec<F>),
    /// Removes the eventfds of the range.
    NoEventfds,
}
