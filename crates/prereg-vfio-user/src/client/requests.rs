//! The requests, one method each.

use std::os::fd::{BorrowedFd, OwnedFd};

use prereg::{Access, Iova};

use super::connection::{Client, Posted, Reply};
use super::error::ClientError;
use crate::capabilities::Capabilities;
use crate::request_error::RequestError;
use crate::wire::{
    Command, DeviceInfo, IoRegionsInfo, IrqAction, IrqInfo, IrqSelection, MapMemory, RegionAccess,
    RegionInfo, RegionWrite, RegionWrites, SetIrqs, UnmapMemory, Version,
};

/// The server's reply to VERSION.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct ServerVersion {
    /// The major version.
    pub major: u16,
    /// The minor version.
    pub minor: u16,
    /// The server's capabilities as JSON.
    pub json: String,
}

/// Maps a malformed reply to an error.
fn makes_no_sense(command: Command) -> impl FnOnce(RequestError) -> ClientError {
    move |why| ClientError::Malformed { command, why }
}

impl Client {
    /// VERSION 0.1 with the default capabilities of a server of this crate.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn negotiate(&mut self) -> Result<ServerVersion, ClientError> {
        let Capabilities { max_msg_fds, max_data_xfer_size, page_sizes, max_dma_maps, write_multiple } =
            Capabilities::default();
        self.version(
            0,
            1,
            &format!(
                r#"{{"capabilities":{{"max_msg_fds":{max_msg_fds},"max_data_xfer_size":{max_data_xfer_size},"pgsizes":{page_sizes},"max_dma_maps":{max_dma_maps},"write_multiple":{write_multiple}}}}}"#
            ),
        )
    }

    /// VERSION.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn version(&mut self, major: u16, minor: u16, json: &str) -> Result<ServerVersion, ClientError> {
        let mut data = json.as_bytes().to_vec();
        data.push(0);
        let reply =
            self.request(Command::VERSION, &[], |out| Version { major, minor, data: &data }.write(out))?;
        let Version { major, minor, data } =
            Version::read(&reply.body).map_err(makes_no_sense(Command::VERSION))?;
        let json = data.split(|byte| *byte == 0).next().unwrap_or_default();
        Ok(ServerVersion { major, minor, json: String::from_utf8_lossy(json).into_owned() })
    }

    /// DMA_MAP of memory at an offset of a descriptor, or of memory that is accessed by messages.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn dma_map(
        &mut self,
        iova: Iova,
        bytes: u64,
        access: Access,
        memory: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<(), ClientError> {
        let posted = self.post_dma_map(iova, bytes, access, memory)?;
        self.wait(posted).map(|_| ())
    }

    /// DMA_MAP without waiting.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub fn post_dma_map(
        &mut self,
        iova: Iova,
        bytes: u64,
        access: Access,
        memory: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<Posted, ClientError> {
        let (descriptors, offset) = match &memory {
            None => (&[][..], 0),
            Some((descriptor, offset)) => (std::slice::from_ref(descriptor), *offset),
        };
        self.post(Command::DMA_MAP, descriptors, |out| MapMemory { access, offset, iova, bytes }.write(out))
    }

    /// DMA_UNMAP of every mapping in a range.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn dma_unmap(&mut self, iova: Iova, bytes: u64) -> Result<(), ClientError> {
        let posted = self.post_dma_unmap(iova, bytes)?;
        self.wait(posted).map(|_| ())
    }

    /// DMA_UNMAP without waiting.
    ///
    /// # Errors
    /// As [`Client::post`].
    pub fn post_dma_unmap(&mut self, iova: Iova, bytes: u64) -> Result<Posted, ClientError> {
        self.post(Command::DMA_UNMAP, &[], |out| UnmapMemory::Range { iova, bytes }.write(out))
    }

    /// DMA_UNMAP of everything.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn dma_unmap_all(&mut self) -> Result<(), ClientError> {
        self.request(Command::DMA_UNMAP, &[], |out| UnmapMemory::All.write(out)).map(|_| ())
    }

    /// DEVICE_GET_INFO.
    ///
    /// # Errors
    /// As [`Client::request`]; [`ClientError::Malformed`].
    pub fn device_info(&mut self) -> Result<DeviceInfo, ClientError> {
        let command = Command::DEVICE_GET_INFO;
        let reply = self.request(command, &[], DeviceInfo::write_command)?;
        DeviceInfo::read(&reply.body).map_err(makes_no_sense(command))
    }

    /// DEVICE_GET_REGION_INFO, repeated with a larger `argsz` if needed.
    ///
    /// # Errors
    /// As [`Client::request`]; [`ClientError::Malformed`].
    pub fn region_info(&mut self, index: u32) -> Result<(RegionInfo, Option<OwnedFd>), ClientError> {
        let command = Command::DEVICE_GET_REGION_INFO;
        let mut room = RegionInfo::BYTES;
        loop {
            let reply = self.request(command, &[], |out| RegionInfo::write_command(index, room, out))?;
            let info = RegionInfo::read(&reply.body).map_err(makes_no_sense(command))?;
            if info.argsz <= room {
                return Ok((info, reply.descriptors.into_iter().next()));
            }
            room = info.argsz;
        }
    }

    /// DEVICE_GET_REGION_IO_FDS, repeated with a larger `argsz` if needed.
    ///
    /// # Errors
    /// As [`Client::request`]; [`ClientError::Malformed`].
    pub fn region_io_fds(&mut self, index: u32) -> Result<(IoRegionsInfo, Vec<OwnedFd>), ClientError> {
        let command = Command::DEVICE_GET_REGION_IO_FDS;
        let mut room = IoRegionsInfo::BYTES;
        loop {
            let reply = self.request(command, &[], |out| IoRegionsInfo::write_command(index, room, out))?;
            let info = IoRegionsInfo::read(&reply.body).map_err(makes_no_sense(command))?;
            if info.argsz <= room {
                return Ok((info, reply.descriptors));
            }
            room = info.argsz;
        }
    }

    /// DEVICE_GET_IRQ_INFO.
    ///
    /// # Errors
    /// As [`Client::request`]; [`ClientError::Malformed`].
    pub fn irq_info(&mut self, index: u32) -> Result<IrqInfo, ClientError> {
        let command = Command::DEVICE_GET_IRQ_INFO;
        let reply = self.request(command, &[], |out| IrqInfo::write_command(index, out))?;
        IrqInfo::read(&reply.body).map_err(makes_no_sense(command))
    }

    /// DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn set_irqs(&mut self, set: &SetIrqs<'_>, eventfds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.request(Command::DEVICE_SET_IRQS, eventfds, |out| set.write(out)).map(|_| ())
    }

    /// DEVICE_SET_IRQS: sets an eventfd for each interrupt from `start` on.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn set_eventfds(
        &mut self,
        index: u32,
        start: u32,
        eventfds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let count = u32::try_from(eventfds.len()).unwrap_or(u32::MAX);
        let (action, selection) = (IrqAction::Trigger, IrqSelection::Eventfds);
        self.set_irqs(&SetIrqs { index, start, count, action, selection }, eventfds)
    }

    /// DEVICE_SET_IRQS: removes the eventfds of a kind.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn clear_irqs(&mut self, index: u32) -> Result<(), ClientError> {
        let (action, selection) = (IrqAction::Trigger, IrqSelection::All);
        self.set_irqs(&SetIrqs { index, start: 0, count: 0, action, selection }, &[])
    }

    /// REGION_READ.
    ///
    /// # Errors
    /// As [`Client::request`]; [`ClientError::Malformed`] for a reply of another length.
    pub fn region_read(&mut self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), ClientError> {
        let command = Command::REGION_READ;
        let count = u32::try_from(into.len()).unwrap_or(u32::MAX);
        let access = RegionAccess { offset, region, count, data: &[] };
        let Reply { body, .. } = self.request(command, &[], |out| access.write(out))?;
        let access = RegionAccess::read(&body).map_err(makes_no_sense(command))?;
        if access.data.len() != into.len() {
            let why = RequestError::Count { count: access.data.len() as u64 };
            return Err(ClientError::Malformed { command, why });
        }
        into.copy_from_slice(access.data);
        Ok(())
    }

    /// REGION_WRITE.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let access = RegionAccess { offset, region, count, data };
        self.request(Command::REGION_WRITE, &[], |out| access.write(out)).map(|_| ())
    }

    /// REGION_WRITE without a reply, as VMMs post them.
    ///
    /// # Errors
    /// As [`Client::send_no_reply`].
    pub fn region_post(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let count = u32::try_from(data.len()).unwrap_or(u32::MAX);
        let access = RegionAccess { offset, region, count, data };
        self.send_no_reply(Command::REGION_WRITE, &[], |out| access.write(out))
    }

    /// REGION_WRITE_MULTI; returns the number of writes performed.
    ///
    /// # Errors
    /// As [`Client::request`]; [`ClientError::Malformed`].
    pub fn write_multi(&mut self, writes: Vec<RegionWrite>) -> Result<u64, ClientError> {
        let command = Command::REGION_WRITE_MULTI;
        let writes = RegionWrites::new(writes);
        let reply = self.request(command, &[], |out| writes.write(out))?;
        RegionWrites::read_reply(&reply.body).map_err(makes_no_sense(command))
    }

    /// DEVICE_RESET.
    ///
    /// # Errors
    /// As [`Client::request`].
    pub fn reset(&mut self) -> Result<(), ClientError> {
        self.request(Command::DEVICE_RESET, &[], |_| ()).map(|_| ())
    }
}
