//! What a session asks its server to do.

use crate::answer::{
    Acknowledged, AskedDevice, AskedIoDescriptors, AskedIrq, AskedRegion, Introduced, ReadData, Token,
    Unmapped, Written, WrittenMany,
};
use crate::capabilities::Terms;
use crate::refusal::Refusal;
use crate::transfer::{TransferError, TransferId};
use crate::wire::{Command, IrqAction, MapMemory, RegionWrite, UnmapMemory};

/// What the server has to do next, in the order the client asked. What has a token wants an answer, at any time and in any
/// order; a client may count on the order in which the requests were performed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Action<F> {
    /// The client introduced itself, and may ask for the rest from here on.
    Negotiated {
        /// What both sides agree on.
        terms: Terms,
        /// Answer with `()`, before anything else is answered or asked; a failure turns the client away and ends the session.
        token: Token<Introduced>,
    },
    /// DMA_MAP: let the device reach memory. Sizes and page alignment are checked, what is mapped already is not, nor is
    /// what the descriptor can give.
    MapMemory {
        /// What and where.
        map: MapMemory,
        /// The memory; without one it is reached by [`Session::dma_read`](crate::Session::dma_read) and
        /// [`Session::dma_write`](crate::Session::dma_write).
        memory: Option<F>,
        /// Answer with `()`.
        token: Token<Acknowledged>,
    },
    /// DMA_UNMAP: let the device reach memory no longer. Answer when no access is under way any more.
    UnmapMemory {
        /// Which.
        unmap: UnmapMemory,
        /// Answer with `()`.
        token: Token<Unmapped>,
    },
    /// DEVICE_GET_INFO.
    DescribeDevice {
        /// Answer with a [`DeviceInfo`](crate::wire::DeviceInfo).
        token: Token<AskedDevice>,
    },
    /// DEVICE_GET_REGION_INFO.
    DescribeRegion {
        /// The region, any number.
        index: u32,
        /// Answer with a [`Region`](crate::Region); EINVAL for an index that no region has.
        token: Token<AskedRegion>,
    },
    /// DEVICE_GET_REGION_IO_FDS.
    DescribeIoDescriptors {
        /// The region, any number.
        index: u32,
        /// Answer with an [`IoRegion`](crate::IoRegion).
        token: Token<AskedIoDescriptors>,
    },
    /// DEVICE_GET_IRQ_INFO.
    DescribeIrqs {
        /// The kind of interrupt, any number.
        index: u32,
        /// Answer with [`Irqs`](crate::Irqs); EINVAL for an index that no interrupt has.
        token: Token<AskedIrq>,
    },
    /// DEVICE_SET_IRQS. That the kind exists and has so many is not checked.
    SetIrqs {
        /// The kind of interrupt.
        index: u32,
        /// The first.
        start: u32,
        /// How many; 0 (with [`IrqTargets::All`] and [`IrqAction::Trigger`]) turns the whole kind off.
        count: u32,
        /// What happens to them, or is to be told of.
        action: IrqAction,
        /// To which of them.
        targets: IrqTargets<F>,
        /// Answer with `()`.
        token: Token<Acknowledged>,
    },
    /// REGION_READ. That the region exists and is so long is not checked.
    ReadRegion {
        /// The region.
        region: u32,
        /// Where, in bytes.
        offset: u64,
        /// How many bytes, at least 1 and at most the server's `max_data_xfer_size`.
        count: u32,
        /// Answer with the bytes.
        token: Token<ReadData>,
    },
    /// REGION_WRITE. That the region exists and is so long is not checked.
    WriteRegion {
        /// The region.
        region: u32,
        /// Where, in bytes.
        offset: u64,
        /// The bytes, at least 1.
        data: Vec<u8>,
        /// Answer with `()`.
        token: Token<Written>,
    },
    /// REGION_WRITE_MULTI: writes in their order.
    WriteRegions {
        /// At least 1.
        writes: Vec<RegionWrite>,
        /// Answer with how many were performed.
        token: Token<WrittenMany>,
    },
    /// DEVICE_RESET.
    Reset {
        /// Answer with `()`.
        token: Token<Acknowledged>,
    },
    /// A transfer that the server asked for is over. Nothing to answer.
    TransferEnded {
        /// Which.
        transfer: TransferId,
        /// What was read, or nothing for a write.
        result: Result<Vec<u8>, TransferError>,
    },
    /// The engine refused a message and has answered it, if an answer was wanted. For logs and counts; nothing to do.
    Refused {
        /// The message's id.
        id: u16,
        /// What it asked for.
        command: Command,
        /// Why not.
        refusal: Refusal,
    },
}

/// Which interrupts of a range a DEVICE_SET_IRQS is for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum IrqTargets<F> {
    /// All of them, now.
    All,
    /// Those that are `true`, now; as many as the range has.
    Each(Vec<bool>),
    /// None now: these are told when it happens, as many as the range has.
    Eventfds(Vec<F>),
    /// None now: those that were told are told no longer.
    NoEventfds,
}
