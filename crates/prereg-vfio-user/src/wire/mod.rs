//! Every message as bytes: numbers and layouts alone, no behaviour.
//!
//! Numbers are in the byte order of the machine, as the specification has it ("Protocol Specification"). A struct reads
//! itself from a body whose fields it has proved, and writes itself to the end of a buffer. Numbers from outside that have
//! no name here are kept ([`Command`]) or refused, never folded into another one.

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
