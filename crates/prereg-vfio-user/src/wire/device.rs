//! VERSION and DEVICE_GET_INFO.

use super::bytes::{Fields, Put};
use crate::refusal::Refusal;

/// The body of VERSION, both ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version<'a> {
    /// Must be equal on both sides.
    pub major: u16,
    /// What the reply says is at most what the command said.
    pub minor: u16,
    /// JSON that ends with a NUL; may be nothing at all in a command.
    pub data: &'a [u8],
}

impl<'a> Version<'a> {
    /// The least body.
    pub const LEAST: u32 = 4;

    /// # Errors
    /// [`Refusal::Size`].
    pub fn read(body: &'a [u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::new(body);
        Ok(Self { major: fields.u16()?, minor: fields.u16()?, data: fields.rest() })
    }

    /// Writes the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u16(self.major).u16(self.minor).extend_from_slice(self.data);
    }
}

/// What a device is, in the reply to DEVICE_GET_INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Whether DEVICE_RESET does something.
    pub resets: bool,
    /// How many region indexes there are; nine for a plain PCI device.
    pub regions: u32,
    /// How many kinds of interrupt there are; five for a PCI device.
    pub irqs: u32,
}

impl DeviceInfo {
    /// Bytes of the command's and the reply's body.
    pub const BYTES: u32 = 16;

    const RESET: u32 = 1;
    const PCI: u32 = 2;

    /// Reads the command's body: all it says is how much room there is. The other fields are the reply's, and clients
    /// leave in them what they like.
    ///
    /// # Errors
    /// [`Refusal::Size`], [`Refusal::ArgSize`].
    pub fn read_command(body: &[u8]) -> Result<(), Refusal> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        for _ in 0..3 {
            fields.u32()?;
        }
        Ok(())
    }

    /// Writes the command's body.
    pub fn write_command(out: &mut Vec<u8>) {
        out.u32(Self::BYTES).u32(0).u32(0).u32(0);
    }

    /// Reads the reply's body.
    ///
    /// # Errors
    /// [`Refusal::Size`]; [`Refusal::Flags`] for a device that is not PCI.
    pub fn read(body: &[u8]) -> Result<Self, Refusal> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        let flags = fields.u32()?;
        if flags & Self::PCI == 0 {
            return Err(Refusal::Flags { flags });
        }
        Ok(Self { resets: flags & Self::RESET != 0, regions: fields.u32()?, irqs: fields.u32()? })
    }

    /// Writes the reply's body. The protocol knows PCI devices only.
    pub fn write(&self, out: &mut Vec<u8>) {
        let reset = if self.resets { Self::RESET } else { 0 };
        out.u32(Self::BYTES).u32(Self::PCI | reset).u32(self.regions).u32(self.irqs);
    }
}
