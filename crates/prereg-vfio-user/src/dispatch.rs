//! The table of commands: for each its number, how long its body is at least, and what it becomes.

use crate::action::{Action, IrqTargets};
use crate::answer::{
    Acknowledged, AskedDevice, AskedIoDescriptors, AskedIrq, AskedRegion, ReadData, Ticket, Token, Unmapped,
    Written, WrittenMany,
};
use crate::capabilities::Terms;
use crate::refusal::Refusal;
use crate::wire::{
    Command, DeviceInfo, IoRegionsInfo, IrqInfo, IrqSelection, MapMemory, RegionAccess, RegionInfo,
    RegionWrites, SetIrqs, UnmapMemory, Version,
};

/// A command that a client may send.
pub(crate) struct Row<F> {
    command: Command,
    /// Bytes of the shortest body.
    least: u32,
    /// Whether descriptors that come along are used.
    descriptors: bool,
    pub(crate) handler: Handler<F>,
}

/// What a command becomes.
pub(crate) enum Handler<F> {
    /// The session's own affair.
    Version,
    /// An action.
    Action(fn(Request<'_, F>) -> Result<Action<F>, Refusal>),
}

/// A command whose length is right, from a client that introduced itself.
pub(crate) struct Request<'a, F> {
    pub(crate) terms: &'a Terms,
    /// Its `held` may grow by what the reply takes.
    pub(crate) ticket: &'a mut Ticket,
    pub(crate) body: &'a [u8],
    /// None, unless the row uses them.
    pub(crate) descriptors: Vec<F>,
}

impl<F> Row<F> {
    const TABLE: [Self; 12] = [
        Self::new(Command::VERSION, Version::LEAST, Handler::Version),
        Self::new(Command::DMA_MAP, MapMemory::BYTES, Handler::Action(map)).with_descriptors(),
        Self::new(Command::DMA_UNMAP, UnmapMemory::BYTES, Handler::Action(unmap)),
        Self::new(Command::DEVICE_GET_INFO, DeviceInfo::BYTES, Handler::Action(device)),
        Self::new(Command::DEVICE_GET_REGION_INFO, RegionInfo::BYTES, Handler::Action(region)),
        Self::new(Command::DEVICE_GET_REGION_IO_FDS, IoRegionsInfo::BYTES, Handler::Action(io_descriptors)),
        Self::new(Command::DEVICE_GET_IRQ_INFO, IrqInfo::BYTES, Handler::Action(irqs)),
        Self::new(Command::DEVICE_SET_IRQS, SetIrqs::BYTES, Handler::Action(set_irqs)).with_descriptors(),
        Self::new(Command::REGION_READ, RegionAccess::BYTES, Handler::Action(read)),
        Self::new(Command::REGION_WRITE, RegionAccess::BYTES + 1, Handler::Action(write)),
        Self::new(Command::REGION_WRITE_MULTI, RegionWrites::LEAST, Handler::Action(write_many)),
        Self::new(Command::DEVICE_RESET, 0, Handler::Action(reset)),
    ];

    const fn new(command: Command, least: u32, handler: Handler<F>) -> Self {
        Self { command, least, descriptors: false, handler }
    }

    const fn with_descriptors(mut self) -> Self {
        self.descriptors = true;
        self
    }

    /// The row of `command`.
    ///
    /// # Errors
    /// [`Refusal::Command`].
    pub(crate) fn find(command: Command) -> Result<&'static Self, Refusal>
    where
        F: 'static,
    {
        let rows: &'static [Self; 12] = const { &Self::TABLE };
        let row = rows.iter().find(|row| row.command == command);
        row.ok_or(Refusal::Command { command: command.number() })
    }

    /// Whether descriptors that come along are used.
    pub(crate) fn takes_descriptors(&self) -> bool {
        self.descriptors
    }

    /// Whether a body of `found` bytes has the command's fixed part. What follows it is the room for the reply in some
    /// clients' messages, and fields of later versions in others'.
    ///
    /// # Errors
    /// [`Refusal::Size`].
    pub(crate) fn admit(&self, found: usize) -> Result<(), Refusal> {
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        if found < self.least {
            return Err(Refusal::Size { found, least: self.least, most: u32::MAX });
        }
        Ok(())
    }
}

impl<F> Request<'_, F> {
    fn token<K>(&self, kind: K) -> Token<K> {
        Token { ticket: *self.ticket, kind }
    }

    fn aligned(&self, values: &[u64]) -> Result<(), Refusal> {
        let page = self.terms.smallest_page();
        // A power of two, and not 0: `negotiate` refuses that.
        match values.iter().find(|value| **value & page.wrapping_sub(1) != 0) {
            None => Ok(()),
            Some(value) => Err(Refusal::Unaligned { value: *value, page }),
        }
    }

    fn transferable(&self, count: u32) -> Result<(), Refusal> {
        let most = self.terms.server_max_data_xfer_size;
        if count > most { Err(Refusal::TooMuchData { count, most }) } else { Ok(()) }
    }
}

fn map<F>(mut request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    let map = MapMemory::read(request.body)?;
    request.aligned(&[map.iova.raw(), map.bytes])?;
    // The first is the memory, whatever else comes along.
    request.descriptors.truncate(1);
    let memory = request.descriptors.pop();
    if let (None, Some(flags)) = (&memory, MapMemory::needs_descriptor(request.body)) {
        return Err(Refusal::Flags { flags });
    }
    if memory.is_some() {
        request.aligned(&[map.offset])?;
        if map.offset.checked_add(map.bytes).is_none() {
            return Err(Refusal::Range { start: map.offset, bytes: map.bytes });
        }
    }
    let token = request.token(Acknowledged);
    Ok(Action::MapMemory { map, memory, token })
}

fn unmap<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    let unmap = UnmapMemory::read(request.body)?;
    if let UnmapMemory::Range { iova, bytes } = unmap {
        request.aligned(&[iova.raw(), bytes])?;
    }
    Ok(Action::UnmapMemory { unmap, token: request.token(Unmapped(unmap)) })
}

fn device<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    DeviceInfo::read_command(request.body)?;
    Ok(Action::DescribeDevice { token: request.token(AskedDevice) })
}

fn region<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    let (index, argsz) = RegionInfo::read_command(request.body)?;
    Ok(Action::DescribeRegion { index, token: request.token(AskedRegion { index, argsz }) })
}

fn io_descriptors<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    let (index, argsz) = IoRegionsInfo::read_command(request.body)?;
    Ok(Action::DescribeIoDescriptors { index, token: request.token(AskedIoDescriptors { index, argsz }) })
}

fn irqs<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    let index = IrqInfo::read_command(request.body)?;
    Ok(Action::DescribeIrqs { index, token: request.token(AskedIrq { index }) })
}

fn set_irqs<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    let SetIrqs { index, start, count, action, selection } = SetIrqs::read(request.body)?;
    let token = request.token(Acknowledged);
    let found = request.descriptors.len();
    let targets = match selection {
        IrqSelection::Eventfds if found == 0 => IrqTargets::NoEventfds,
        IrqSelection::Eventfds if found == count as usize => IrqTargets::Eventfds(request.descriptors),
        IrqSelection::Eventfds => {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            return Err(Refusal::Descriptors { found, expected: count });
        }
        IrqSelection::All => IrqTargets::All,
        IrqSelection::Each(each) => IrqTargets::Each(each.iter().map(|byte| *byte != 0).collect()),
    };
    Ok(Action::SetIrqs { index, start, count, action, targets, token })
}

fn read<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    let RegionAccess { offset, region, count, .. } = RegionAccess::read(request.body)?;
    request.transferable(count)?;
    request.ticket.held += count as usize;
    Ok(Action::ReadRegion { region, offset, count, token: request.token(ReadData { region, offset, count }) })
}

fn write<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    let RegionAccess { offset, region, count, data } = RegionAccess::read(request.body)?;
    request.transferable(count)?;
    if data.len() != count as usize {
        return Err(Refusal::Count { count: u64::from(count) });
    }
    let token = request.token(Written { region, offset, count });
    Ok(Action::WriteRegion { region, offset, data: data.to_vec(), token })
}

fn write_many<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    if !request.terms.write_multiple {
        return Err(Refusal::Command { command: Command::REGION_WRITE_MULTI.number() });
    }
    let writes = RegionWrites::read(request.body)?.into_inner();
    let count = writes.len() as u64;
    Ok(Action::WriteRegions { writes, token: request.token(WrittenMany { count }) })
}

fn reset<F>(request: Request<'_, F>) -> Result<Action<F>, Refusal> {
    Ok(Action::Reset { token: request.token(Acknowledged) })
}
