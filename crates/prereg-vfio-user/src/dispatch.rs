//! The table of commands: number, shortest body, handler.

use crate::action::{Action, IrqTargets};
use crate::capabilities::Negotiated;
use crate::reply::{
    DeviceInfoReply, EmptyReply, IrqInfoReply, ReadReply, RegionInfoReply, RegionIoFdsReply, RequestMeta,
    Token, UnmapReply, WriteMultiReply, WriteReply,
};
use crate::request_error::RequestError;
use crate::wire::{
    Command, DeviceInfo, IoRegionsInfo, IrqInfo, IrqSelection, MapMemory, RegionAccess, RegionInfo,
    RegionWrites, SetIrqs, UnmapMemory, Version,
};

/// A command that clients may send.
pub(crate) struct CommandSpec<F> {
    command: Command,
    /// The length of the shortest body.
    least: u32,
    /// Whether the command uses descriptors.
    descriptors: bool,
    pub(crate) handler: Handler<F>,
}

/// The handler of a command.
pub(crate) enum Handler<F> {
    /// Handled by the session.
    Version,
    /// Creates an action.
    Action(fn(Request<'_, F>) -> Result<Action<F>, RequestError>),
}

/// A command of valid length, after VERSION.
pub(crate) struct Request<'a, F> {
    pub(crate) negotiated: &'a Negotiated,
    /// `held` may be increased by the size of the reply.
    pub(crate) meta: &'a mut RequestMeta,
    pub(crate) body: &'a [u8],
    /// Empty if the command does not use descriptors.
    pub(crate) descriptors: Vec<F>,
}

impl<F> CommandSpec<F> {
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

    /// The specification of `command`.
    ///
    /// # Errors
    /// [`RequestError::Command`].
    pub(crate) fn find(command: Command) -> Result<&'static Self, RequestError>
    where
        F: 'static,
    {
        let specs: &'static [Self; 12] = const { &Self::TABLE };
        let spec = specs.iter().find(|spec| spec.command == command);
        spec.ok_or(RequestError::Command { command: command.number() })
    }

    /// Whether the command uses descriptors.
    pub(crate) fn takes_descriptors(&self) -> bool {
        self.descriptors
    }

    /// Checks that a body of `found` bytes has the command's fixed part. Some clients send more: room for the reply, or fields
    /// of later versions.
    ///
    /// # Errors
    /// [`RequestError::Size`].
    pub(crate) fn check_length(&self, found: usize) -> Result<(), RequestError> {
        let found = u32::try_from(found).unwrap_or(u32::MAX);
        if found < self.least {
            return Err(RequestError::Size { found, least: self.least, most: u32::MAX });
        }
        Ok(())
    }
}

impl<F> Request<'_, F> {
    fn token<K>(&self, kind: K) -> Token<K> {
        Token { meta: *self.meta, kind }
    }

    fn aligned(&self, values: &[u64]) -> Result<(), RequestError> {
        let page = self.negotiated.smallest_page();
        // A power of two: `negotiate` refuses 0.
        match values.iter().find(|value| **value & page.wrapping_sub(1) != 0) {
            None => Ok(()),
            Some(value) => Err(RequestError::Unaligned { value: *value, page }),
        }
    }

    fn transferable(&self, count: u32) -> Result<(), RequestError> {
        let most = self.negotiated.server_max_data_xfer_size;
        if count > most { Err(RequestError::TooMuchData { count, most }) } else { Ok(()) }
    }
}

fn map<F>(mut request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    let map = MapMemory::read(request.body)?;
    request.aligned(&[map.iova.raw(), map.bytes])?;
    // The first is the memory; others are ignored.
    request.descriptors.truncate(1);
    let memory = request.descriptors.pop();
    if let (None, Some(flags)) = (&memory, MapMemory::needs_descriptor(request.body)) {
        return Err(RequestError::Flags { flags });
    }
    if memory.is_some() {
        request.aligned(&[map.offset])?;
        if map.offset.checked_add(map.bytes).is_none() {
            return Err(RequestError::Range { start: map.offset, bytes: map.bytes });
        }
    }
    let token = request.token(EmptyReply);
    Ok(Action::MapMemory { map, memory, token })
}

fn unmap<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    let unmap = UnmapMemory::read(request.body)?;
    if let UnmapMemory::Range { iova, bytes } = unmap {
        request.aligned(&[iova.raw(), bytes])?;
    }
    Ok(Action::UnmapMemory { unmap, token: request.token(UnmapReply(unmap)) })
}

fn device<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    DeviceInfo::read_command(request.body)?;
    Ok(Action::DescribeDevice { token: request.token(DeviceInfoReply) })
}

fn region<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    let (index, argsz) = RegionInfo::read_command(request.body)?;
    Ok(Action::DescribeRegion { index, token: request.token(RegionInfoReply { index, argsz }) })
}

fn io_descriptors<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    let (index, argsz) = IoRegionsInfo::read_command(request.body)?;
    Ok(Action::DescribeIoDescriptors { index, token: request.token(RegionIoFdsReply { index, argsz }) })
}

fn irqs<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    let index = IrqInfo::read_command(request.body)?;
    Ok(Action::DescribeIrqs { index, token: request.token(IrqInfoReply { index }) })
}

fn set_irqs<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    let SetIrqs { index, start, count, action, selection } = SetIrqs::read(request.body)?;
    let token = request.token(EmptyReply);
    let found = request.descriptors.len();
    let targets = match selection {
        IrqSelection::Eventfds if found == 0 => IrqTargets::NoEventfds,
        IrqSelection::Eventfds if found == count as usize => IrqTargets::Eventfds(request.descriptors),
        IrqSelection::Eventfds => {
            let found = u32::try_from(found).unwrap_or(u32::MAX);
            return Err(RequestError::Descriptors { found, expected: count });
        }
        IrqSelection::All => IrqTargets::All,
        IrqSelection::Each(each) => IrqTargets::Each(each.iter().map(|byte| *byte != 0).collect()),
    };
    Ok(Action::SetIrqs { index, start, count, action, targets, token })
}

fn read<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    let RegionAccess { offset, region, count, .. } = RegionAccess::read(request.body)?;
    request.transferable(count)?;
    request.meta.held += count as usize;
    Ok(Action::ReadRegion {
        region,
        offset,
        count,
        token: request.token(ReadReply { region, offset, count }),
    })
}

fn write<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    let RegionAccess { offset, region, count, data } = RegionAccess::read(request.body)?;
    request.transferable(count)?;
    if data.len() != count as usize {
        return Err(RequestError::Count { count: u64::from(count) });
    }
    let token = request.token(WriteReply { region, offset, count });
    Ok(Action::WriteRegion { region, offset, data: data.to_vec(), token })
}

fn write_many<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    if !request.negotiated.write_multiple {
        return Err(RequestError::Command { command: Command::REGION_WRITE_MULTI.number() });
    }
    let writes = RegionWrites::read(request.body)?.into_inner();
    let count = writes.len() as u64;
    Ok(Action::WriteRegions { writes, token: request.token(WriteMultiReply { count }) })
}

fn reset<F>(request: Request<'_, F>) -> Result<Action<F>, RequestError> {
    Ok(Action::Reset { token: request.token(EmptyReply) })
}
