//! The driver of QEMU's educational device (1234:11e8), which copies by DMA between memory and its buffer.

use std::thread::sleep;
use std::time::{Duration, Instant};

use prereg_linux::{Bar, VfioDevice};

/// Vendor and device number.
pub(super) const IDENTITY: (u16, u16) = (0x1234, 0x11e8);
/// Size of the device's buffer: the most bytes of one transfer.
pub(super) const BUFFER_BYTES: u64 = 4096;
/// Bus addresses that the device reaches without `dma_mask=`.
pub(super) const REACH: u64 = 1 << 28;

/// Registers.
const ID: u64 = 0x00;
const SOURCE: u64 = 0x80;
const DESTINATION: u64 = 0x88;
const COUNT: u64 = 0x90;
const COMMAND: u64 = 0x98;
/// Address of the buffer on the device.
const BUFFER: u64 = 0x4_0000;
/// Bits of the command.
const START: u64 = 1;
const TO_MEMORY: u64 = 2;

/// The identification register: version 1.0 of "edu".
const MAGIC: u32 = 0x0100_00ed;

/// The device, ready for DMA.
#[derive(Debug)]
pub(super) struct Edu {
    registers: Bar,
    /// QEMU's registers have the byte order of the emulated machine: big-endian on POWER.
    swapped: bool,
}

impl Edu {
    /// Enables DMA and maps the registers.
    ///
    /// # Errors
    /// In failure.
    pub(super) fn open(device: &VfioDevice) -> Result<Self, String> {
        device.set_bus_master(true).map_err(|error| error.to_string())?;
        let registers = device.map_bar(0).map_err(|error| error.to_string())?;
        let swapped = match registers.read_u32(ID) {
            Some(MAGIC) => false,
            Some(id) if id.swap_bytes() == MAGIC => true,
            id => return Err(format!("register 0 holds {id:x?}, not {MAGIC:#x}: this is not an edu device")),
        };
        Ok(Self { registers, swapped })
    }

    /// The byte order of the registers, for reports.
    #[must_use]
    pub(super) const fn byte_order(&self) -> &'static str {
        if self.swapped { "swapped registers" } else { "registers in our byte order" }
    }

    /// The registers.
    #[must_use]
    pub(super) const fn registers(&self) -> &Bar {
        &self.registers
    }

    fn set(&self, register: u64, value: u64) -> Result<(), String> {
        let value = if self.swapped { value.swap_bytes() } else { value };
        self.registers.write_u64(register, value).ok_or_else(|| "the registers are too short".to_owned())
    }

    fn get(&self, register: u64) -> Result<u64, String> {
        let value = self.registers.read_u64(register).ok_or("the registers are too short")?;
        Ok(if self.swapped { value.swap_bytes() } else { value })
    }

    fn transfer(&self, source: u64, destination: u64, bytes: u64, direction: u64) -> Result<(), String> {
        // The device needs a tenth of a second; an emulated machine may be slow.
        const LONGEST: Duration = Duration::from_secs(10);
        if bytes == 0 || bytes > BUFFER_BYTES {
            return Err(format!("the device moves 1 to {BUFFER_BYTES} bytes, not {bytes}"));
        }
        self.set(SOURCE, source)?;
        self.set(DESTINATION, destination)?;
        self.set(COUNT, bytes)?;
        self.set(COMMAND, START | direction)?;
        let begin = Instant::now();
        while self.get(COMMAND)? & START != 0 {
            if begin.elapsed() > LONGEST {
                return Err(format!("the device did not finish in {} s", LONGEST.as_secs()));
            }
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Makes the device read `bytes` bytes from bus address `from` into its buffer.
    ///
    /// # Errors
    /// In failure.
    pub(super) fn read_memory(&self, from: u64, bytes: u64) -> Result<(), String> {
        self.transfer(from, BUFFER, bytes, 0)
    }

    /// Makes the device write `bytes` bytes of its buffer to bus address `to`.
    ///
    /// # Errors
    /// In failure.
    pub(super) fn write_memory(&self, to: u64, bytes: u64) -> Result<(), String> {
        self.transfer(BUFFER, to, bytes, TO_MEMORY)
    }
}
