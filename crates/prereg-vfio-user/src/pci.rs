//! PCI configuration space as data: header, capabilities, and the meaning of writes.
//!
//! A [`ConfigBuilder`] assembles a type 0 header and capabilities, a [`ConfigSpace`] is read and written by a client, and an
//! [`MsixTable`] is the table and the pending bits in a BAR. Nothing here does I/O or blocks; a device keeps these under its
//! own lock and acts on the result of [`ConfigSpace::write`].
//!
//! Errors: an invalid configuration is a [`PciError`] at build time. Afterwards nothing fails: read-only bits are not written,
//! and reads outside return zeros.
//!
//! Sources: PCI Local Bus Specification 3.0, 6.1 (header), 6.2.5.1 (BARs), 6.8 (MSI, MSI-X); PCI Express Base Specification
//! 2.0, 7.8; PCI Bus Power Management Interface Specification 1.2, 3.2. Numbers as in `linux/pci_regs.h`.
//!
//! ```
//! use prereg_vfio_user::pci::{Bar, ConfigBuilder, Identity, MsixLocation};
//!
//! let identity = Identity { vendor: 0x1b36, device: 0x10, class: 0x01_08_02, ..Identity::default() };
//! let mut config = ConfigBuilder::new(identity)
//!     .with_bar(0, Bar::memory64(16 << 10))
//!     .with_intx()
//!     .with_express()
//!     .with_msix(8, MsixLocation { table: (0, 0x2000), pending: (0, 0x3000) })
//!     .build()?;
//!
//! let mut class = [0; 3];
//! config.read(9, &mut class);
//! assert_eq!(class, [2, 8, 1]);
//! // A driver sizes a BAR.
//! config.write(0x10, &[0xff; 4]);
//! let mut bar = [0; 4];
//! config.read(0x10, &mut bar);
//! assert_eq!(u32::from_le_bytes(bar) & !0xf, !((16u32 << 10) - 1));
//! assert!(config.write(4, &[0b110, 0]).command && config.is_bus_master());
//! # Ok::<(), prereg_vfio_user::pci::PciError>(())
//! ```

mod bar;
mod build;
mod config;
mod error;
mod msix;
#[cfg(test)]
mod tests;

pub use bar::Bar;
pub use build::{ConfigBuilder, Identity, MsixLocation};
pub use config::{ConfigChange, ConfigSpace, Msi};
pub use error::PciError;
pub use msix::{MsixMessage, MsixTable};
