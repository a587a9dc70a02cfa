//! Handlers of requests, one for each command. Each replies, except for an unmap that has to wait.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use prereg::{Errno, Holder, HolderKind, Iova, PageShift};
use prereg_iommu::iova::IovaLimits;

use super::client_thread::{Attached, ClientThread, RECONNECT_TIMEOUT, UnansweredUnmap};
use super::descriptor::Descriptor;
use super::device::{Device, DeviceContext, Layout, LayoutRegion};
use super::dma::DmaSpace;
use super::event::Event;
use super::interrupts::Interrupts;
use crate::action::{Action, IrqTargets};
use crate::capabilities::Negotiated;
use crate::reply::{IoRegion, Kind, Mmap, Region, Token};
use crate::wire::{Command, DeviceInfo, IoRegionKind, IoSubregion, MapMemory, RegionWrite, UnmapMemory};

/// `KVM_IOEVENTFD_FLAG_DATAMATCH`.
const DATAMATCH: u32 = 1;
/// Kinds of interrupt.
const IRQS: u32 = 5;

impl ClientThread {
    /// Performs one request of the client.
    pub(crate) fn perform(&mut self, action: Action<Descriptor>) {
        match action {
            Action::Negotiated { negotiated, token } => {
                self.shared.counts.performed(Command::VERSION);
                match self.attach(&negotiated) {
                    Ok(()) => {
                        self.shared.served();
                        self.shared.session.reply(token, Ok(()));
                    }
                    Err(errno) => {
                        self.shared.counts.failed(Command::VERSION, errno);
                        self.shared.session.reject(token, errno);
                    }
                }
            }
            Action::MapMemory { map, memory, token } => {
                let result = self.map(map, memory);
                self.reply(Command::DMA_MAP, token, result);
            }
            Action::UnmapMemory { unmap, token } => match self.unmap(unmap) {
                Ok(unmapping) if !unmapping.is_done() => {
                    let waiting = UnansweredUnmap { unmapping, token, since: Instant::now() };
                    self.shared.waiting().push(waiting);
                    // It may have completed before it was listed.
                    self.drained();
                }
                result => self.reply(Command::DMA_UNMAP, token, result.map(|_| ())),
            },
            Action::DescribeDevice { token } => {
                let info = |attached: &Attached| DeviceInfo {
                    resets: attached.layout.resets,
                    regions: u32::try_from(attached.layout.regions.len()).unwrap_or(u32::MAX),
                    irqs: IRQS,
                };
                let result = self.attached().map(info);
                self.reply(Command::DEVICE_GET_INFO, token, result);
            }
            Action::DescribeRegion { index, token } => {
                let result = self.region(index).map(describe);
                if let (Ok(Region { mmap: Some(_), .. }), Ok(attached)) = (&result, self.attached()) {
                    attached.device.region_offered(index);
                    self.shared.offered();
                }
                self.reply(Command::DEVICE_GET_REGION_INFO, token, result);
            }
            Action::DescribeIoDescriptors { index, token } => {
                let result = self.region(index).map(io_descriptors);
                self.reply(Command::DEVICE_GET_REGION_IO_FDS, token, result);
            }
            Action::DescribeIrqs { index, token } => {
                let result = self.attached().and_then(|attached| attached.interrupts.describe(index));
                self.reply(Command::DEVICE_GET_IRQ_INFO, token, result);
            }
            Action::SetIrqs { index, start, count, action, targets, token } => {
                let result = own(targets).and_then(|targets| {
                    self.attached()?.interrupts.set(index, start, count, action, targets)
                });
                self.reply(Command::DEVICE_SET_IRQS, token, result);
            }
            Action::ReadRegion { region, offset, count, token } => {
                let mut data = std::mem::take(&mut self.data);
                data.clear();
                data.resize(count as usize, 0);
                let result = self.read(region, offset, &mut data);
                self.reply(Command::REGION_READ, token, result.map(|()| &data[..]));
                self.data = data;
            }
            Action::WriteRegion { region, offset, data, token } => {
                let result = self.write(region, offset, &data);
                self.reply(Command::REGION_WRITE, token, result);
            }
            Action::WriteRegions { writes, token } => {
                let result = self.write_many(&writes);
                self.reply(Command::REGION_WRITE_MULTI, token, result);
            }
            Action::Reset { token } => {
                let result = self.attached().and_then(|attached| attached.device.reset());
                self.shared.events.report(&Event::Reset);
                self.reply(Command::DEVICE_RESET, token, result);
            }
            // Handled by the session.
            Action::TransferEnded { .. } | Action::Refused { .. } => {}
        }
    }

    /// Replies to the unmaps whose last access was dropped.
    pub(crate) fn drained(&mut self) {
        let done: Vec<_> = {
            let mut waiting = self.shared.waiting();
            let (done, rest) =
                std::mem::take(&mut *waiting).into_iter().partition(|waiting| waiting.unmapping.is_done());
            *waiting = rest;
            done
        };
        for UnansweredUnmap { token, .. } in done {
            self.reply(Command::DMA_UNMAP, token, Ok(()));
        }
    }

    fn reply<K: Kind<Descriptor>>(
        &self,
        command: Command,
        token: Token<K>,
        result: Result<K::Answer<'_>, Errno>,
    ) {
        self.shared.counts.performed(command);
        if let Err(errno) = &result {
            self.shared.counts.failed(command, *errno);
            // Those of memory are reported with the reason by `DmaSpace`.
            if ![Command::DMA_MAP, Command::DMA_UNMAP].contains(&command) {
                let command = command.name().unwrap_or("unknown");
                self.shared.events.report(&Event::RequestFailed { command, errno: *errno });
            }
        }
        self.shared.session.reply(token, result);
    }

    /// The state after VERSION.
    fn attached(&self) -> Result<&Attached, Errno> {
        self.attached.as_ref().ok_or(Errno::ENODEV)
    }

    fn attach(&mut self, negotiated: &Negotiated) -> Result<(), Errno> {
        if let Some(errno) = self.reject_with {
            return Err(errno);
        }
        let page = PageShift::new(negotiated.smallest_page().trailing_zeros()).ok_or(Errno::EINVAL)?;
        let limits = IovaLimits { page, mappings: negotiated.max_dma_maps, ..IovaLimits::default() };
        let holder = Holder { container: self.shared.number, kind: HolderKind::InFlight };
        let session = &self.shared.session;
        let space = DmaSpace::with_reporter(
            &self.store,
            session.clone(),
            session.clone(),
            limits,
            holder,
            self.shared.events.of_memory(),
        );
        let space = Arc::new(space.map_err(|_| Errno::ENOMEM)?);
        let interrupts = Interrupts::new([0; 5]);
        let (dma, source) = (space.dma(), self.shared.events.source().clone());
        let device = self.attach_device(DeviceContext {
            dma,
            interrupts: interrupts.clone(),
            client: self.shared.number,
            source,
            negotiated: *negotiated,
        })?;
        session.interrupts(interrupts.clone());
        self.shared.attached(&space, &device);
        // From here on the device is notified of the client's end, even if the next steps fail.
        let attached = Attached { device, layout: Layout::default(), interrupts, space };
        let Attached { device, layout, interrupts, .. } = self.attached.insert(attached);
        *layout = device.layout();
        interrupts.set_counts(layout.irqs);
        Ok(())
    }

    /// Attaches the device. If another session has it whose client has hung up, waits for the end of that session: a client that
    /// reconnects at once comes before it.
    fn attach_device(&self, bus: DeviceContext) -> Result<Arc<dyn Device>, Errno> {
        let deadline = Instant::now() + RECONNECT_TIMEOUT;
        loop {
            let seen = self
                .departures_of_others
                .as_ref()
                .map_or(0, |departures_of_others| departures_of_others.departures());
            let result = self.model.attach(bus.clone());
            let waited = || {
                self.departures_of_others.as_ref().is_some_and(|departures_of_others| {
                    departures_of_others.await_departure(self.shared.number, seen, deadline)
                })
            };
            match result {
                Err(Errno::EBUSY) if waited() => {}
                result => return result,
            }
        }
    }

    fn map(&self, map: MapMemory, memory: Option<Descriptor>) -> Result<(), Errno> {
        let MapMemory { access, offset, iova, bytes } = map;
        let memory = memory.and_then(Descriptor::into_own).map(|memory| (memory, offset));
        self.attached()?.space.map(iova, bytes, access, memory).map_err(|error| error.errno())
    }

    fn unmap(&self, unmap: UnmapMemory) -> Result<prereg_iommu::iova::Unmapping, Errno> {
        let Attached { device, space, .. } = self.attached()?;
        match unmap {
            UnmapMemory::Range { iova, bytes } => {
                device.dma_unmapping(iova, bytes);
                space.unmap(iova, bytes).map_err(|error| error.errno())
            }
            UnmapMemory::All => {
                device.dma_unmapping(Iova::new(0), 0);
                Ok(space.unmap_all())
            }
        }
    }

    fn region(&self, index: u32) -> Result<&LayoutRegion, Errno> {
        self.attached()?.layout.regions.get(index as usize).ok_or(Errno::EINVAL)
    }

    /// The region, if it contains `[offset, offset + bytes)`.
    fn within(&self, region: u32, offset: u64, bytes: usize) -> Result<&LayoutRegion, Errno> {
        let region = self.region(region)?;
        let end = offset.checked_add(bytes as u64).ok_or(Errno::EINVAL)?;
        if end > region.bytes { Err(Errno::EINVAL) } else { Ok(region) }
    }

    fn read(&self, region: u32, offset: u64, into: &mut [u8]) -> Result<(), Errno> {
        if !self.within(region, offset, into.len())?.readable {
            return Err(Errno::EINVAL);
        }
        self.attached()?.device.read(region, offset, into)
    }

    fn write(&self, region: u32, offset: u64, from: &[u8]) -> Result<(), Errno> {
        if !self.within(region, offset, from.len())?.writable {
            return Err(Errno::EINVAL);
        }
        self.attached()?.device.write(region, offset, from)
    }

    /// The number of writes performed; an error only if the first one failed.
    fn write_many(&self, writes: &[RegionWrite]) -> Result<u64, Errno> {
        let mut done = 0;
        for write in writes {
            // One message has up to tens of thousands of writes, and each may be a reset.
            if self.shared.has_left() {
                break;
            }
            match self.write(write.region(), write.offset(), write.data()) {
                Ok(()) => done += 1,
                Err(errno) if done == 0 => return Err(errno),
                Err(errno) => {
                    self.shared.counts.failed(Command::REGION_WRITE_MULTI, errno);
                    break;
                }
            }
        }
        Ok(done)
    }
}

fn describe(region: &LayoutRegion) -> Region<Descriptor> {
    let mmap = region.mmap.as_ref().map(|mmap| Mmap {
        descriptor: Descriptor::Shared(mmap.fd.clone()),
        offset: mmap.offset,
        areas: mmap.areas.clone(),
    });
    Region { bytes: region.bytes, readable: region.readable, writable: region.writable, mmap }
}

/// Each eventfd is sent once, however many subregions use it.
fn io_descriptors(region: &LayoutRegion) -> IoRegion<Descriptor> {
    let mut sent: Vec<Arc<OwnedFd>> = Vec::new();
    let mut subregions = Vec::new();
    for ioeventfd in &region.ioeventfds {
        let place = sent.iter().position(|fd| Arc::ptr_eq(fd, &ioeventfd.fd)).unwrap_or_else(|| {
            sent.push(ioeventfd.fd.clone());
            sent.len() - 1
        });
        let kind = IoRegionKind::Eventfd {
            flags: if ioeventfd.datamatch.is_some() { DATAMATCH } else { 0 },
            datamatch: ioeventfd.datamatch.unwrap_or(0),
        };
        subregions.push(IoSubregion {
            offset: ioeventfd.offset,
            bytes: ioeventfd.bytes,
            descriptor: u32::try_from(place).unwrap_or(u32::MAX),
            kind,
        });
    }
    IoRegion { subregions, descriptors: sent.into_iter().map(Descriptor::Shared).collect() }
}

/// The targets with received descriptors.
fn own(targets: IrqTargets<Descriptor>) -> Result<IrqTargets<OwnedFd>, Errno> {
    Ok(match targets {
        IrqTargets::All => IrqTargets::All,
        IrqTargets::Each(each) => IrqTargets::Each(each),
        IrqTargets::NoEventfds => IrqTargets::NoEventfds,
        IrqTargets::Eventfds(eventfds) => {
            let eventfds: Option<Vec<_>> = eventfds.into_iter().map(Descriptor::into_own).collect();
            IrqTargets::Eventfds(eventfds.ok_or(Errno::EBADF)?)
        }
    })
}
