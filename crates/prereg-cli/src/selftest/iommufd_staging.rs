//! iommufd with a staging IOAS: memory is pinned there without being reachable, and mapped for the device by range, without a pin.

use std::sync::Arc;

use prereg::{Access, AddressSpace, Errno, Iova};
use prereg_linux::{GuestMemory, Iommufd, KernelCount, Placement};

use super::edu::{BUFFER_BYTES, Edu, IDENTITY};
use super::report::{NotPassed, StepResult, failed};

/// The I/O address for the device, far from that in the staging IOAS.
const AT: u64 = 0x80_0000;

/// Registers, maps and unmaps, and checks after each step whether the device reaches the memory.
pub(super) fn run(device: &str) -> StepResult {
    let failure = |error: &dyn std::fmt::Display| NotPassed::Failed(error.to_string());
    let iommufd = Arc::new(Iommufd::open(device, Placement::StagingIoas).map_err(|error| failure(&error))?);
    let space = AddressSpace::builder(Arc::clone(&iommufd)).build().map_err(|error| failure(&error))?;
    let Some(table) = iommufd.table() else { return failed("there is no table") };
    let opened = iommufd.device(device).map_err(|error| failure(&error))?;
    let edu = match opened.identity() {
        Ok(IDENTITY) => Some(Edu::open(&opened).map_err(NotPassed::Failed)?),
        _ => None,
    };
    let memory = GuestMemory::memfd("staging", 1 << 20).map_err(|error| failure(&error))?;
    let registration = space.register(&memory).map_err(|error| failure(&error))?;
    let pinned = KernelCount::now();
    let mut translator = space.translator();
    let bytes = BUFFER_BYTES.max(space.granule().bytes());

    let reached = || -> Result<Option<bool>, NotPassed> {
        let Some(edu) = &edu else { return Ok(None) };
        memory.write(0, &[0x5a]).map_err(|error| failure(&error))?;
        edu.write_memory(AT, BUFFER_BYTES).map_err(NotPassed::Failed)?;
        let mut first = [0x5a];
        memory.read(0, &mut first).map_err(|error| failure(&error))?;
        Ok(Some(first != [0x5a]))
    };
    if reached()? == Some(true) {
        return failed("the device reaches memory that is only registered");
    }
    table
        .map(&mut translator, Iova::new(AT), registration.ua(), bytes, Access::ReadWrite)
        .map_err(|error| failure(&error))?;
    if reached()? == Some(false) {
        return failed("the device does not reach mapped memory");
    }
    if KernelCount::now() != pinned {
        return failed("mapping registered memory pinned something");
    }
    let Err(busy) = registration.unregister() else { return failed("mapped memory was unregistered") };
    if busy.errno() != Errno::EBUSY {
        return failed(busy);
    }
    table.unmap(&mut translator, Iova::new(AT), bytes).map_err(|error| failure(&error))?;
    if reached()? == Some(true) {
        return failed("the device reaches unmapped memory");
    }
    busy.into_inner().unregister().map_err(|refused| failure(&refused))?;
    let dma = if edu.is_some() { ", checked by DMA" } else { "" };
    Ok(format!("registered, mapped at {AT:#x} without a pin, busy while mapped, unmapped{dma}"))
}
