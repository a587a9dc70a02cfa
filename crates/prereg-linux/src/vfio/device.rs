//! A device opened through VFIO: configuration space, registers, reset.

use std::fmt;
use std::sync::Arc;

use prereg::Errno;

use super::bar::Bar;
use super::error::VfioError;
use super::kernel::{
    Argument, DEVICE_GET_INFO, DEVICE_GET_REGION_INFO, DEVICE_RESET, Descriptor, ioctl_struct,
};
use super::uapi::{DEVICE_RESETS, DeviceInfo, REGION_MMAP, RegionInfo, UapiStruct};

/// `VFIO_PCI_CONFIG_REGION_INDEX`.
const CONFIG: u32 = 7;
/// The command register of a PCI device, and its bits.
const COMMAND: u64 = 4;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_MASTER: u16 = 1 << 2;

/// An open PCI device. Dropping it closes it, and the kernel resets it if it can.
pub struct VfioDevice {
    name: String,
    descriptor: Arc<dyn Descriptor>,
    info: DeviceInfo,
    config: RegionInfo,
}

impl VfioDevice {
    /// Reads the description of an open device.
    pub(crate) fn new(name: &str, descriptor: Arc<dyn Descriptor>) -> Result<Self, VfioError> {
        let mut info = DeviceInfo { argsz: DeviceInfo::BYTES as u32, ..DeviceInfo::default() };
        ioctl_struct(&*descriptor, DEVICE_GET_INFO, &mut info).map_err(|errno| VfioError::Os {
            during: DEVICE_GET_INFO.name,
            on: name.to_owned(),
            errno,
        })?;
        let config = RegionInfo::default();
        let mut device = Self { name: name.to_owned(), descriptor, info, config };
        device.config = device.region(CONFIG)?;
        Ok(device)
    }

    /// The PCI address.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the kernel can reset it.
    #[must_use]
    pub const fn can_reset(&self) -> bool {
        self.info.flags & DEVICE_RESETS != 0
    }

    pub(crate) fn descriptor(&self) -> &Arc<dyn Descriptor> {
        &self.descriptor
    }

    fn error(&self, during: &'static str) -> impl FnOnce(Errno) -> VfioError {
        let on = self.name.clone();
        move |errno| VfioError::Os { during, on, errno }
    }

    fn region(&self, index: u32) -> Result<RegionInfo, VfioError> {
        let mut region = RegionInfo { argsz: RegionInfo::BYTES as u32, index, ..RegionInfo::default() };
        ioctl_struct(&*self.descriptor, DEVICE_GET_REGION_INFO, &mut region)
            .map_err(self.error(DEVICE_GET_REGION_INFO.name))?;
        Ok(region)
    }

    /// The file offset of `bytes` bytes at `offset` of the configuration space.
    fn config_place(&self, offset: u64, bytes: u64) -> Result<u64, VfioError> {
        let inside = offset.checked_add(bytes).is_some_and(|end| end <= self.config.size);
        let place = self.config.offset.checked_add(offset).filter(|_| inside);
        place.ok_or_else(|| self.error("looking past the configuration space")(Errno::EINVAL))
    }

    /// Reads a word of the configuration space.
    ///
    /// # Errors
    /// [`VfioError::Os`]; EINVAL past the end.
    pub fn config_u16(&self, offset: u64) -> Result<u16, VfioError> {
        let mut bytes = [0; 2];
        let place = self.config_place(offset, 2)?;
        let read = self.descriptor.read_at(place, &mut bytes).map_err(self.error("pread"))?;
        if read != 2 {
            return Err(self.error("pread")(Errno::EIO));
        }
        Ok(u16::from_le_bytes(bytes))
    }

    /// Writes a word of the configuration space.
    ///
    /// # Errors
    /// [`VfioError::Os`]; EINVAL past the end.
    pub fn set_config_u16(&self, offset: u64, value: u16) -> Result<(), VfioError> {
        let place = self.config_place(offset, 2)?;
        let written = self.descriptor.write_at(place, &value.to_le_bytes()).map_err(self.error("pwrite"))?;
        if written == 2 { Ok(()) } else { Err(self.error("pwrite")(Errno::EIO)) }
    }

    /// Vendor and device ID.
    ///
    /// # Errors
    /// [`VfioError::Os`].
    pub fn identity(&self) -> Result<(u16, u16), VfioError> {
        Ok((self.config_u16(0)?, self.config_u16(2)?))
    }

    /// Enables the device's registers, and enables or disables its DMA.
    ///
    /// # Errors
    /// [`VfioError::Os`].
    pub fn set_bus_master(&self, on: bool) -> Result<(), VfioError> {
        let command = self.config_u16(COMMAND)? | COMMAND_MEMORY;
        let command = if on { command | COMMAND_MASTER } else { command & !COMMAND_MASTER };
        self.set_config_u16(COMMAND, command)
    }

    /// Maps base address register `index`, 0 to 5.
    ///
    /// # Errors
    /// [`VfioError::Os`]; EOPNOTSUPP when the region cannot be mapped.
    pub fn map_bar(&self, index: u32) -> Result<Bar, VfioError> {
        if index > 5 {
            return Err(self.error("mapping a base address register past 5")(Errno::EINVAL));
        }
        let region = self.region(index)?;
        if region.flags & REGION_MMAP == 0 || region.size == 0 {
            return Err(self.error("mapping registers that the kernel does not let be mapped")(
                Errno::EOPNOTSUPP,
            ));
        }
        self.descriptor.map(region.offset, region.size).map_err(self.error("mmap of registers"))
    }

    /// Resets the device.
    ///
    /// # Errors
    /// [`VfioError::Os`].
    pub fn reset(&self) -> Result<(), VfioError> {
        self.descriptor.ioctl(DEVICE_RESET, Argument::None).map(drop).map_err(self.error(DEVICE_RESET.name))
    }
}

impl fmt::Debug for VfioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioDevice").field("name", &self.name).finish_non_exhaustive()
    }
}
