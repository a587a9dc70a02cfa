//! DEVICE_GET_IRQ_INFO and DEVICE_SET_IRQS.

use super::bytes::{Fields, Put, length};
use crate::request_error::RequestError;

/// The body of DEVICE_GET_IRQ_INFO's reply.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IrqInfo {
    /// The kind of interrupt: 0 INTx, 1 MSI, 2 MSI-X, 3 error, 4 request, for a PCI device.
    pub index: u32,
    /// `VFIO_IRQ_INFO_*`: bit 0 eventfd, 1 maskable, 2 automasked, 3 noresize.
    pub flags: u32,
    /// The number of interrupts.
    pub count: u32,
}

impl IrqInfo {
    /// Bytes of both bodies.
    pub const BYTES: u32 = 16;

    /// Reads the command's body: the index.
    ///
    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`].
    pub fn read_command(body: &[u8]) -> Result<u32, RequestError> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        let (_flags, index, _count) = (fields.u32()?, fields.u32()?, fields.u32()?);
        Ok(index)
    }

    /// Writes the command's body.
    pub fn write_command(index: u32, out: &mut Vec<u8>) {
        out.u32(Self::BYTES).u32(0).u32(index).u32(0);
    }

    /// Reads the reply's body.
    ///
    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`].
    pub fn read(body: &[u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        let flags = fields.u32()?;
        Ok(Self { flags, index: fields.u32()?, count: fields.u32()? })
    }

    /// Writes the reply's body.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.u32(Self::BYTES).u32(self.flags).u32(self.index).u32(self.count);
    }
}

/// The action of a DEVICE_SET_IRQS.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrqAction {
    /// Mask.
    Mask,
    /// Unmask.
    Unmask,
    /// Trigger.
    Trigger,
}

/// The interrupts of a range that the action applies to, as in the body.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IrqSelection<'a> {
    /// All of them, now.
    All,
    /// Those with a byte that is not zero, now.
    Each(&'a [u8]),
    /// Those with an eventfd in the message, one for each, when it is signalled or to be signalled; without eventfds the
    /// existing ones are removed.
    Eventfds,
}

/// The body of DEVICE_SET_IRQS. Its reply has none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SetIrqs<'a> {
    /// The kind of interrupt.
    pub index: u32,
    /// The first of the range.
    pub start: u32,
    /// The number of interrupts; 0 (with [`IrqSelection::All`], [`IrqAction::Trigger`] and a start of 0) disables the whole
    /// kind.
    pub count: u32,
    /// The action.
    pub action: IrqAction,
    /// The interrupts it applies to.
    pub selection: IrqSelection<'a>,
}

impl<'a> SetIrqs<'a> {
    /// Bytes of the body before the booleans.
    pub const BYTES: u32 = 20;

    const DATA: u32 = 0b111;
    const NONE: u32 = 1;
    const BOOL: u32 = 1 << 1;
    const EVENTFD: u32 = 1 << 2;
    const ACTION: u32 = 0b111 << 3;
    const MASK: u32 = 1 << 3;
    const UNMASK: u32 = 1 << 4;
    const TRIGGER: u32 = 1 << 5;

    /// # Errors
    /// [`RequestError::Size`], [`RequestError::ArgSize`], [`RequestError::Flags`] (not exactly one kind of data and one
    /// action), [`RequestError::Range`], [`RequestError::Count`] for an invalid count of 0.
    pub fn read(body: &'a [u8]) -> Result<Self, RequestError> {
        let mut fields = Fields::new(body);
        fields.argsz(Self::BYTES)?;
        let flags = fields.u32()?;
        let (index, start, count) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let refused = RequestError::Flags { flags };
        if flags & !(Self::DATA | Self::ACTION) != 0 {
            return Err(refused);
        }
        let action = match flags & Self::ACTION {
            Self::MASK => IrqAction::Mask,
            Self::UNMASK => IrqAction::Unmask,
            Self::TRIGGER => IrqAction::Trigger,
            _ => return Err(refused),
        };
        if start.checked_add(count).is_none() {
            return Err(RequestError::Range { start: u64::from(start), bytes: u64::from(count) });
        }
        let selection = match flags & Self::DATA {
            Self::NONE => IrqSelection::All,
            Self::BOOL => {
                let each = fields.rest();
                if length(each.len()) != count {
                    return Err(RequestError::Count { count: u64::from(count) });
                }
                IrqSelection::Each(each)
            }
            Self::EVENTFD => IrqSelection::Eventfds,
            _ => return Err(refused),
        };
        let turns_off = selection == IrqSelection::All && action == IrqAction::Trigger && start == 0;
        if count == 0 && !turns_off {
            return Err(RequestError::Count { count: 0 });
        }
        Ok(Self { index, start, count, action, selection })
    }

    /// Writes the body.
    pub fn write(&self, out: &mut Vec<u8>) {
        let (data, each): (u32, &[u8]) = match self.selection {
            IrqSelection::All => (Self::NONE, &[]),
            IrqSelection::Each(each) => (Self::BOOL, each),
            IrqSelection::Eventfds => (Self::EVENTFD, &[]),
        };
        let action = match self.action {
            IrqAction::Mask => Self::MASK,
            IrqAction::Unmask => Self::UNMASK,
            IrqAction::Trigger => Self::TRIGGER,
        };
        out.u32(Self::BYTES + length(each.len())).u32(data | action).u32(self.index).u32(self.start);
        out.u32(self.count).extend_from_slice(each);
    }
}
