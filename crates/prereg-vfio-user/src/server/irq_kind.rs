//! The kinds of interrupt.

/// The kinds of interrupt of a PCI device (`VFIO_PCI_*_IRQ_INDEX` of `linux/vfio.h`).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub enum IrqKind {
    /// The level-triggered pin.
    Intx = 0,
    /// MSI, up to 32.
    Msi = 1,
    /// MSI-X.
    Msix = 2,
    /// An unrecoverable error of the device.
    Err = 3,
    /// The server requests the device back.
    Req = 4,
}

impl IrqKind {
    /// All of them, by index.
    pub const ALL: [Self; 5] = [Self::Intx, Self::Msi, Self::Msix, Self::Err, Self::Req];

    /// The kind with this index.
    pub(crate) fn from_index(index: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(index).ok()?).copied()
    }

    /// Its index.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}
