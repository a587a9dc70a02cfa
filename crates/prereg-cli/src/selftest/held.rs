//! iommufd's other way: memory is held, no device reaches it, and a table shows it range by range, by copies that pin nothing.

use std::sync::Arc;

use prereg::{Access, AddressSpace, Errno, Iova};
use prereg_linux::{GuestMemory, Iommufd, KernelCount, Placement};

use super::edu::{BUFFER_BYTES, Edu, IDENTITY};
use super::report::{Bad, Said, failed};

/// Where the device finds what is shown: nowhere near where it is held.
const AT: u64 = 0x80_0000;

/// Holds, shows, hides, and looks each time whether the device gets there.
pub(super) fn run(device: &str) -> Said {
    let words = |error: &dyn std::fmt::Display| Bad::Failed(error.to_string());
    let iommufd = Arc::new(Iommufd::open(device, Placement::StagingIoas).map_err(|error| words(&error))?);
    let space = AddressSpace::builder(Arc::clone(&iommufd)).build().map_err(|error| words(&error))?;
    let Some(table) = iommufd.table() else { return failed("memory is held, but there is no table") };
    let opened = iommufd.device(device).map_err(|error| words(&error))?;
    let edu = match opened.identity() {
        Ok(IDENTITY) => Some(Edu::open(&opened).map_err(Bad::Failed)?),
        _ => None,
    };
    let memory = GuestMemory::memfd("held", 1 << 20).map_err(|error| words(&error))?;
    let registration = space.register(&memory).map_err(|error| words(&error))?;
    let pinned = KernelCount::now();
    let mut translator = space.translator();
    let bytes = BUFFER_BYTES.max(space.granule().bytes());

    let reached = || -> Result<Option<bool>, Bad> {
        let Some(edu) = &edu else { return Ok(None) };
        memory.write(0, &[0x5a]).map_err(|error| words(&error))?;
        edu.write_memory(AT, BUFFER_BYTES).map_err(Bad::Failed)?;
        let mut first = [0x5a];
        memory.read(0, &mut first).map_err(|error| words(&error))?;
        Ok(Some(first != [0x5a]))
    };
    if reached()? == Some(true) {
        return failed("the device reaches memory that is only held");
    }
    table
        .map(&mut translator, Iova::new(AT), registration.ua(), bytes, Access::ReadWrite)
        .map_err(|error| words(&error))?;
    if reached()? == Some(false) {
        return failed("the device does not reach what the table shows");
    }
    if KernelCount::now() != pinned {
        return failed("showing held memory pinned something");
    }
    let Err(busy) = registration.unregister() else { return failed("shown memory was unregistered") };
    if busy.errno() != Errno::EBUSY {
        return failed(busy);
    }
    table.unmap(&mut translator, Iova::new(AT), bytes).map_err(|error| words(&error))?;
    if reached()? == Some(true) {
        return failed("the device reaches memory that is shown no more");
    }
    busy.into_inner().unregister().map_err(|refused| words(&refused))?;
    let dma = if edu.is_some() { ", seen by DMA" } else { "" };
    Ok(format!("held, shown at {AT:#x} by a copy that pins nothing, busy meanwhile, hidden again{dma}"))
}
