//! Options of an NVMe controller and its disks, and their conversion to the settings of `prereg-nvme`.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use prereg_linux::IoUring;
use prereg_nvme::controller::{DoorbellMode, InterruptKinds, NvmeSettings};
use prereg_nvme::disk::{Direct, DiskOptions};
use serde::Deserialize;

use super::from_text::from_text;

/// One NVMe controller.
#[derive(Clone, Debug, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub(crate) struct NvmeConfig {
    /// The socket that the VMM connects to
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,

    /// Mode of the socket, in octal digits
    #[arg(long, default_value_t)]
    #[serde(default, deserialize_with = "from_text")]
    pub mode: SocketMode,

    /// Serial number, at most 20 characters [default: derived from the socket's path]
    #[arg(long)]
    pub serial: Option<String>,

    /// Kinds of interrupt that are offered
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = InterruptKind::all())]
    #[serde(default = "InterruptKind::all")]
    pub interrupts: Vec<InterruptKind>,

    /// How the guest's doorbells arrive
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub doorbells: Doorbells,

    /// Threads for the I/O queues
    #[arg(long, default_value_t = Self::two_threads())]
    #[serde(default = "NvmeConfig::two_threads")]
    pub threads: usize,

    /// The disks, namespace 1 first
    #[arg(skip)]
    pub namespace: Vec<NamespaceConfig>,
}

/// One disk of a controller.
#[derive(Clone, Debug, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub(crate) struct NamespaceConfig {
    /// A file or block device
    #[arg(skip)]
    pub file: PathBuf,

    /// Refuse writes
    #[arg(long)]
    #[serde(default)]
    pub read_only: bool,

    /// Bytes of a logical block: 512 or 4096
    #[arg(long, value_name = "BYTES", default_value_t = Self::sector())]
    #[serde(default = "NamespaceConfig::sector")]
    pub block_size: u32,

    /// Whether files are opened with O_DIRECT, past the host's page cache
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub o_direct: DirectIo,

    /// Buffers of the host's I/O
    #[arg(long, value_enum, default_value_t)]
    #[serde(default)]
    pub buffers: Buffers,
}

impl NvmeConfig {
    const MAX_NAMESPACES: usize = 256;
    const MAX_THREADS: usize = 64;

    fn two_threads() -> usize {
        2
    }

    /// The settings of the controller.
    #[must_use]
    pub(crate) fn settings(&self) -> NvmeSettings {
        let serial = self.serial.clone().unwrap_or_else(|| serial_of(&self.socket));
        let mut settings = NvmeSettings::new(&serial);
        // At most MAX_THREADS.
        settings.workers = u16::try_from(self.threads).unwrap_or(u16::MAX);
        let has = |kind| self.interrupts.contains(&kind);
        settings.interrupts = InterruptKinds {
            intx: has(InterruptKind::Intx),
            msi: has(InterruptKind::Msi),
            msix: has(InterruptKind::Msix),
        };
        settings.doorbells = match self.doorbells {
            Doorbells::Auto => DoorbellMode::Auto,
            Doorbells::Socket => DoorbellMode::Trapped,
            Doorbells::Mmap => DoorbellMode::Mapped,
        };
        settings
    }

    /// Refuses values that no controller can have.
    ///
    /// # Errors
    /// The reason.
    pub(crate) fn check(&self) -> Result<(), String> {
        let name = self.socket.display();
        let (namespaces, threads) = (self.namespace.len(), self.threads);
        if namespaces == 0 || namespaces > Self::MAX_NAMESPACES {
            return Err(format!(
                "{name} has {namespaces} namespaces; it needs 1 to {}",
                Self::MAX_NAMESPACES
            ));
        }
        if self.interrupts.is_empty() {
            return Err(format!("{name} has no kind of interrupt; name msix, msi or intx"));
        }
        if threads == 0 || threads > Self::MAX_THREADS {
            return Err(format!("{name} asks for {threads} threads; it needs 1 to {}", Self::MAX_THREADS));
        }
        let printable = |serial: &&String| {
            (1..=20).contains(&serial.len()) && serial.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        };
        if let Some(serial) = self.serial.as_ref().filter(|serial| !printable(serial)) {
            return Err(format!(
                "the serial number of {name} must be 1 to 20 printable ASCII characters, not {serial:?}"
            ));
        }
        self.namespace.iter().try_for_each(NamespaceConfig::check)
    }
}

impl NamespaceConfig {
    fn sector() -> u32 {
        512
    }

    /// The options of the disk, whose fixed buffers are those of `pins`.
    #[must_use]
    pub(crate) fn options(&self, pins: &Arc<IoUring>) -> DiskOptions {
        DiskOptions {
            read_only: self.read_only,
            direct: match self.o_direct {
                DirectIo::Auto => Direct::Auto,
                DirectIo::On => Direct::On,
                DirectIo::Off => Direct::Off,
            },
            block_shift: Some(if self.block_size == 4096 { 12 } else { 9 }),
            buffers: (self.buffers == Buffers::Fixed).then(|| Arc::clone(pins)),
        }
    }

    fn check(&self) -> Result<(), String> {
        match self.block_size {
            512 | 4096 => Ok(()),
            other => {
                let file = self.file.display();
                Err(format!("the block size of {file} must be 512 or 4096 bytes, not {other}"))
            }
        }
    }
}

/// The mode of a socket.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct SocketMode(pub u32);

impl Default for SocketMode {
    fn default() -> Self {
        Self(0o600)
    }
}

impl FromStr for SocketMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 => Ok(Self(mode)),
            _ => Err(format!("a mode is three octal digits, like \"0660\"; `{text}` is not")),
        }
    }
}

impl fmt::Display for SocketMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// A kind of interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum InterruptKind {
    /// A vector for each queue
    Msix,
    /// Up to 32 vectors
    Msi,
    /// One shared line
    Intx,
}

impl InterruptKind {
    fn all() -> Vec<Self> {
        vec![Self::Msix, Self::Msi, Self::Intx]
    }
}

/// How doorbells arrive.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Doorbells {
    /// As messages from QEMU; through a shared page from clients that map one, such as SPDK
    #[default]
    Auto,
    /// As messages, few once the guest has shadow doorbells; nothing is polled
    Socket,
    /// Through a shared page that is polled, less often while it is idle
    Mmap,
}

/// Whether O_DIRECT is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum DirectIo {
    /// If the file system supports it
    #[default]
    Auto,
    /// Always; other files are refused
    On,
    /// Never
    Off,
}

/// Buffers of the host's I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Buffers {
    /// The registered pages of the guest: no I/O pins memory
    #[default]
    Fixed,
    /// Addresses that the kernel pins for each I/O, for comparison
    Plain,
}

/// A serial number that is the same at each start and differs between sockets, because guests identify controllers by it.
fn serial_of(socket: &Path) -> String {
    let path = std::path::absolute(socket).unwrap_or_else(|_| socket.to_owned());
    // FNV-1a: a name, not a secret.
    let bytes = path.as_os_str().as_encoded_bytes();
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("PR{hash:016X}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_numbers_fit_and_differ() {
        let [a, b] = ["a.sock", "b.sock"].map(|name| serial_of(Path::new(name)));
        assert!(a != b && a.len() <= 20, "{a} {b}");
    }
}
