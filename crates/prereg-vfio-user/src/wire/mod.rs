//! Every message as bytes: numbers and layouts.
//!
//! Numbers are in native byte order, as the specification has it ("Protocol Specification"). A struct reads itself from a body,
//! checking its fields, and appends itself to a buffer. Unknown numbers are kept ([`Command`]) or refused.

mod bytes;
mod command;
mod device;
mod dma;
mod header;
mod irq;
mod region;

pub use command::Command;
pub use device::{DeviceInfo, Version};
pub use dma::{DmaAccess, DmaDone, MapMemory, UnmapMemory};
pub use header::{Header, MessageType};
pub use irq::{IrqAction, IrqInfo, IrqSelection, SetIrqs};
pub use region::{
    IoRegionKind, IoRegionsInfo, IoSubregion, RegionAccess, RegionInfo, RegionWrite, RegionWrites, SparseArea,
};
