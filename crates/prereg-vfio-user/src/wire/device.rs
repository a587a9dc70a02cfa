//! VERSION and DEVICE_GET_INFO.

use super::bytes::{Fields, Put};
use crate::request_error::RequestError;

/// The body of VERSION, both ways.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Version<'a> {
    /// Must be equal on both sides.
    pub major: u16,
    /// The reply's is at most the command's.
    pub minor: u16,
    /// JSON that ends with a NUL; may be empty in a command.
    pub data: &'a [u8],
}

impl<'a> Version<'a> {
    /// The length of the shortest body.
    pub const LEAST: u32 = 4;

    /// # Errors
    /// [`RequestError::Size`].
    pub fn read(body: &'a [u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        Ok(Self { major: fields.u16()?, minor: fields.u16()?, data: fields.rest() })
    }

    /// Writes the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u16(self.major).u16(self.minor).extend_from_slice(self.data);
    }
}

/// The reply to DEVICE_GET_INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DeviceInfo {
    /// Whether DEVICE_RESET is supported.
    pub resets: bool,
    /// The number of regions; nine for a plain PCI device.
    pub regions: u32,
    /// The number of kinds of interrupt; five for a PCI device.
    pub irqs: u32,
}

impl DeviceInfo {
    /// Bytes of the command's and the reply's body.
    pub const BYTES: u32 = 16;

    const RESET: u32 = 1;
    const PCI: u32 = 2;

    /// Reads the command's body, which has only the room for the reply. The other fields are the reply's and ignored.
    ///
    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`].
    pub fn read_command(body: &[u8]) -> Result<(), RequestError> {
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
    /// [`RequestError::Size`]; [`RequestError::Flags`] for a device that is not PCI.
    pub fn read(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        let flags = fields.u32()?;
        if flags & Self::PCI == 0 {
            return Err(RequestError::Flags { flags });
        }
        Ok(Self { resets: flags & Self::RESET != 0, regions: fields.u32()?, irqs: fields.u32()? })
    }

    /// Writes the reply's body, always of a PCI device.
    pub fn write(&self, out: &mut Vec<u8>) {
        let reset = if self.resets { Self::RESET } else { 0 };
        out.u32(Self::BYTES).u32(Self::PCI | reset).u32(self.regions).u32(self.irqs);
    }
}
