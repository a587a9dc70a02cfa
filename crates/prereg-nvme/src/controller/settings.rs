//! Settings of a controller.

use prereg::Errno;

/// Which kinds of interrupt the device offers. Each works alone; a device without any can be polled.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct InterruptKinds {
    /// INTx.
    pub intx: bool,
    /// MSI, up to 32 vectors.
    pub msi: bool,
    /// MSI-X.
    pub msix: bool,
}

impl InterruptKinds {
    /// Whether there are message interrupts.
    pub(super) fn has_messages(self) -> bool {
        self.msi || self.msix
    }
}

impl Default for InterruptKinds {
    fn default() -> Self {
        Self { intx: true, msi: true, msix: true }
    }
}

/// How doorbell writes arrive.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum DoorbellMode {
    /// Trapped for a client that puts several writes into a message, as QEMU does; mapped for any other, because some require
    /// it.
    #[default]
    Auto,
    /// As messages of the client: nothing is polled.
    Trapped,
    /// In memory that the guest writes: no message per doorbell, but the memory has to be polled. I/O threads poll while they
    /// are busy. While they sleep the admin thread polls for all of them, at intervals of 1/16 of the time since the last
    /// doorbell, at most 25 ms, 50 ms after 20 s. Nothing is polled for a client that never asked for the region with the
    /// doorbells.
    Mapped,
}

/// Settings of a controller.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct NvmeSettings {
    /// Serial number, 1 to 20 printable ASCII characters. No two controllers of one guest may have the same: the subsystem's
    /// NQN and the namespaces' UUIDs are derived from it.
    pub serial: String,
    /// DeviceFactory name, up to 40 printable ASCII characters.
    pub model: String,
    /// PCI vendor and device. The default is not assigned; with some identifiers guests apply quirks of another device.
    pub pci: (u16, u16),
    /// I/O threads, 1 to 64.
    pub workers: u16,
    /// Pairs of I/O queues, 1 to 511.
    pub io_queues: u16,
    /// The most entries of a queue: 2 to 65,536.
    pub entries: u32,
    /// The largest transfer as a power of two of 4 KiB: 0 to 10.
    pub transfer_shift: u8,
    /// The kinds of interrupt.
    pub interrupts: InterruptKinds,
    /// How doorbell writes arrive.
    pub doorbells: DoorbellMode,
    /// Whether Doorbell Buffer Config is supported.
    pub shadow_doorbells: bool,
    /// Whether several clients may use the disks at a time although they can write: only for guests that coordinate their
    /// writes.
    pub shared: bool,
}

impl NvmeSettings {
    /// The defaults: two I/O threads, 16 pairs of queues of 1024 entries, transfers up to 1 MiB, all kinds of interrupt,
    /// doorbells as the client prefers and shadow doorbells, one client at a time.
    #[must_use]
    pub fn new(serial: &str) -> Self {
        Self {
            serial: serial.to_owned(),
            model: "prereg NVMe".to_owned(),
            pci: (0x5052, 1),
            workers: 2,
            io_queues: 16,
            entries: 1024,
            transfer_shift: 8,
            interrupts: InterruptKinds::default(),
            doorbells: DoorbellMode::Auto,
            shadow_doorbells: true,
            shared: false,
        }
    }

    /// Checks all settings.
    ///
    /// # Errors
    /// [`NvmeError`] for the first invalid one.
    pub(super) fn check(&self) -> Result<(), NvmeError> {
        let is_text = |text: &str, most: usize| {
            text.len() <= most && text.chars().all(|one| one.is_ascii_graphic() || one == ' ')
        };
        let checks = [
            (
                "serial",
                !self.serial.trim().is_empty() && is_text(&self.serial, 20),
                "1 to 20 printable ASCII characters",
            ),
            ("model", is_text(&self.model, 40), "up to 40 printable ASCII characters"),
            ("workers", (1..=64).contains(&self.workers), "1 to 64"),
            ("io_queues", (1..=511).contains(&self.io_queues), "1 to 511"),
            ("entries", (2..=65_536).contains(&self.entries), "2 to 65536"),
            ("transfer_shift", self.transfer_shift <= 10, "0 to 10"),
        ];
        match checks.iter().find(|(_, is_good, _)| !is_good) {
            Some((setting, _, allowed)) => Err(NvmeError::Setting { setting, allowed }),
            None => Ok(()),
        }
    }

    /// MSI-X vectors: one for each completion queue, limited by the table's page.
    pub(super) fn msix_vectors(&self) -> u16 {
        if self.interrupts.msix { (self.io_queues + 1).min(256) } else { 0 }
    }

    /// Vectors of completion queues: those of MSI-X if it is offered, as the specification prefers.
    pub(super) fn vectors(&self) -> u16 {
        if self.interrupts.msix { self.msix_vectors() } else { self.msi_vectors().max(1) }
    }

    /// MSI vectors: a power of two.
    pub(super) fn msi_vectors(&self) -> u16 {
        if self.interrupts.msi { (self.io_queues + 1).next_power_of_two().min(32) } else { 0 }
    }
}

/// An error of [`NvmeModel::new`](super::NvmeModel::new).
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NvmeError {
    /// An invalid setting. EINVAL.
    #[error("the setting `{setting}` must be {allowed}")]
    Setting {
        /// Its name.
        setting: &'static str,
        /// Allowed values.
        allowed: &'static str,
    },
    /// Too few or too many disks. EINVAL.
    #[error("a controller has 1 to {most} disks, not {asked}")]
    Disks {
        /// Disks that were given.
        asked: usize,
        /// The most disks.
        most: usize,
    },
    /// A disk's block size is not possible for a namespace. EINVAL.
    #[error("disk {nsid} has blocks of 2^{shift} bytes; a namespace has 512 or 4096")]
    Block {
        /// The namespace.
        nsid: usize,
        /// The block size as a shift.
        shift: u8,
    },
}

prereg::debug_as_display!(NvmeError);

impl NvmeError {
    /// The error number, as documented at each variant.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        Errno::EINVAL
    }
}

#[cfg(test)]
mod tests {
    use super::NvmeSettings;

    #[test]
    fn a_completion_queue_may_name_the_vectors_that_exist() {
        let mut settings = NvmeSettings::new("S");
        assert_eq!(
            (settings.vectors(), settings.msi_vectors()),
            (17, 32),
            "MSI-X decides where there is both"
        );
        settings.interrupts.msix = false;
        assert_eq!(settings.vectors(), 32);
        settings.interrupts.msi = false;
        assert_eq!(settings.vectors(), 1, "the pin");
        settings.interrupts.msix = true;
        settings.io_queues = 511;
        assert_eq!(settings.vectors(), 256);
    }
}
