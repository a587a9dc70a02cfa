//! What is to be served, as written in a file or on the command line: checked here, before anything is opened.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::quantity::parse_bytes;

/// Everything that one `prereg serve` does.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct Config {
    /// Where `prereg status` asks; by default see [`crate::serve::control::default_path`].
    pub control: Option<PathBuf>,
    /// Where Prometheus asks; nowhere by default.
    #[serde(default, deserialize_with = "address")]
    pub metrics: Option<SocketAddr>,
    /// How the clients' memory is registered.
    #[serde(default)]
    pub memory: MemoryConfig,
    /// The NVMe controllers.
    #[serde(default)]
    pub nvme: Vec<NvmeConfig>,
}

/// How the clients' memory is registered.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[non_exhaustive]
pub struct MemoryConfig {
    /// When.
    pub policy: MemoryPolicy,
    /// How much at a time.
    pub extent: Extent,
    /// How much for all clients together.
    pub limit: MemoryLimit,
    /// How much for one client.
    pub client_limit: MemoryLimit,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            policy: MemoryPolicy::default(),
            extent: Extent::default(),
            limit: MemoryLimit::default(),
            client_limit: MemoryLimit::None,
        }
    }
}

/// When memory is registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryPolicy {
    /// After a client maps it, while the device may use it already
    #[default]
    Background,
    /// Before the client's first map of it is answered
    Eager,
    /// When the device first reaches it
    FirstUse,
}

/// How much of a file is registered at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Extent {
    /// Pieces that suit the memory limit in the background, whole files otherwise.
    #[default]
    Auto,
    /// All of it: one registration, however much of it a guest maps.
    Whole,
    /// Pieces of this size in bytes: for memory that comes and goes (virtio-mem).
    Bytes(u64),
}

impl Extent {
    /// `auto`, `whole`, or a size of at least 2 MiB that is a power of two.
    ///
    /// # Errors
    /// In words.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => return Ok(Self::Auto),
            "whole" => return Ok(Self::Whole),
            _ => {}
        }
        let bytes = parse_bytes(text)?;
        if bytes < 2 << 20 || !bytes.is_power_of_two() {
            return Err(format!(
                "an extent is `auto`, `whole`, or a power of two of at least 2M; `{text}` is none of them"
            ));
        }
        Ok(Self::Bytes(bytes))
    }
}

impl<'de> Deserialize<'de> for Extent {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// How much memory may be pinned or promised.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum MemoryLimit {
    /// 7/8 of the memory of the host or of the control group, or the limit on locked memory, whichever is lowest.
    #[default]
    Auto,
    /// As much as the system allows.
    None,
    /// This number of bytes.
    Bytes(u64),
}

impl MemoryLimit {
    /// `auto`, `none`, or a size.
    ///
    /// # Errors
    /// In words.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            size => parse_bytes(size).map(Self::Bytes).map_err(|error| {
                format!("a memory limit is `auto`, `none`, or a size; `{text}` is none of them: {error}")
            }),
        }
    }

    /// The limit in bytes, `None` for no limit; `automatic` is the value of `auto`.
    #[must_use]
    pub fn bytes(self, automatic: Option<u64>) -> Option<u64> {
        match self {
            Self::Auto => automatic,
            Self::None => None,
            Self::Bytes(bytes) => Some(bytes),
        }
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

/// One NVMe controller.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct NvmeConfig {
    /// Where its client connects.
    pub socket: PathBuf,
    /// Who may connect: the socket's mode.
    #[serde(default = "NvmeConfig::owner_only", deserialize_with = "octal")]
    pub mode: u32,
    /// At most 20 characters; made from the socket's name by default.
    pub serial: Option<String>,
    /// The kinds of interrupt that are offered.
    #[serde(default = "InterruptKind::all")]
    pub interrupts: Vec<InterruptKind>,
    /// How the guest's doorbells arrive.
    #[serde(default)]
    pub doorbells: Doorbells,
    /// Threads that serve its I/O queues.
    #[serde(default = "NvmeConfig::two_threads")]
    pub threads: usize,
    /// Its disks, namespace 1 first.
    pub namespace: Vec<NamespaceConfig>,
}

impl NvmeConfig {
    /// A controller at `socket` with the disks named, everything else as it comes.
    #[must_use]
    pub fn new(socket: PathBuf, namespace: Vec<NamespaceConfig>) -> Self {
        Self {
            socket,
            mode: Self::owner_only(),
            serial: None,
            interrupts: InterruptKind::all(),
            doorbells: Doorbells::default(),
            threads: Self::two_threads(),
            namespace,
        }
    }

    fn owner_only() -> u32 {
        0o600
    }

    fn two_threads() -> usize {
        2
    }
}

/// One disk of a controller.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub struct NamespaceConfig {
    /// A file or block device.
    pub file: PathBuf,
    /// Refuse writes.
    #[serde(default)]
    pub read_only: bool,
    /// Bytes of a logical block, 512 or 4096.
    #[serde(default = "NamespaceConfig::sector")]
    pub block_size: u32,
    /// Whether to pass the host's page cache by.
    #[serde(default)]
    pub direct: DirectIo,
    /// Whether I/O uses the registered pages.
    #[serde(default)]
    pub buffers: Buffers,
}

impl NamespaceConfig {
    /// The disk in `file`, everything else as it comes.
    #[must_use]
    pub fn new(file: PathBuf) -> Self {
        Self {
            file,
            read_only: false,
            block_size: Self::sector(),
            direct: DirectIo::default(),
            buffers: Buffers::default(),
        }
    }

    fn sector() -> u32 {
        512
    }
}

/// A kind of interrupt.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum InterruptKind {
    /// A vector for each queue
    Msix,
    /// One or a few vectors
    Msi,
    /// One line, shared
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
pub enum Doorbells {
    /// As messages from QEMU, through a shared page from clients that need one, such as SPDK
    #[default]
    Auto,
    /// As messages; few once the guest has shadow doorbells; nothing is polled
    Socket,
    /// Through a shared page, which threads of the server look at, seldom while it is idle
    Mmap,
}

/// Whether to pass the host's page cache by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DirectIo {
    /// Where the file allows it
    #[default]
    Auto,
    /// Always; refuse the file otherwise
    On,
    /// Never
    Off,
}

/// Which memory I/O uses.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Buffers {
    /// The registered pages: nothing is pinned for an I/O
    #[default]
    Fixed,
    /// Plain addresses, which the kernel pins for each I/O; to compare
    Plain,
}

fn octal<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_mode(&text).map_err(serde::de::Error::custom)
}

fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_address(&text).map(Some).map_err(serde::de::Error::custom)
}

/// An address and a port to listen on.
///
/// # Errors
/// In words.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let port = text.trim_start_matches(':');
        let example = if port.parse::<u16>().is_ok() { port } else { "9469" };
        format!(
            "expected an address and a port: 127.0.0.1:{example} for this host alone, 0.0.0.0:{example} for every network"
        )
    })
}

/// A socket's mode in octal digits: `0600`, `660`.
///
/// # Errors
/// In words.
pub fn parse_mode(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(format!("a mode is three octal digits, like \"0660\"; `{text}` is not")),
    }
}

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {file}: {error}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// Why not.
        error: std::io::Error,
    },
    /// The file is no configuration.
    #[error("{file}: {error}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Where and why.
        error: Box<toml::de::Error>,
    },
    /// It contradicts itself.
    #[error("{0}")]
    Unservable(String),
}

impl Config {
    /// Reads and checks `file`. Relative paths in it are seen from its folder.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| ConfigError::Unreadable { file: file.to_owned(), error })?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let mut config = Self::parse(&text)
            .map_err(|error| ConfigError::Malformed { file: file.to_owned(), error: Box::new(error) })?;
        config.seen_from(folder);
        config.check()?;
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    fn seen_from(&mut self, folder: &Path) {
        let within = |path: &mut PathBuf| *path = folder.join(&*path);
        if let Some(control) = &mut self.control {
            within(control);
        }
        for device in &mut self.nvme {
            within(&mut device.socket);
            for namespace in &mut device.namespace {
                within(&mut namespace.file);
            }
        }
    }

    /// Whether it can be served as it stands; nothing is opened.
    ///
    /// # Errors
    /// [`ConfigError::Unservable`], naming the device.
    pub fn check(&self) -> Result<(), ConfigError> {
        let unservable = |why: String| Err(ConfigError::Unservable(why));
        if self.nvme.is_empty() {
            return unservable("nothing to serve: the configuration has no [[nvme]]".to_owned());
        }
        for (index, device) in self.nvme.iter().enumerate() {
            let name = device.socket.display();
            if self.nvme.iter().take(index).any(|other| other.socket == device.socket) {
                return unservable(format!("two devices have the socket {name}; give each its own"));
            }
            if self.control.as_ref() == Some(&device.socket) {
                return unservable(format!("the control socket is a device's too: {name}; choose another"));
            }
            if device.namespace.is_empty() || device.namespace.len() > MOST_NAMESPACES {
                return unservable(format!(
                    "{name} has {} namespaces; it needs 1 to {MOST_NAMESPACES}",
                    device.namespace.len()
                ));
            }
            if device.interrupts.is_empty() {
                return unservable(format!("{name} has no kind of interrupt; name msix, msi or intx"));
            }
            if device.threads == 0 || device.threads > MOST_THREADS {
                return unservable(format!(
                    "{name} asks for {} threads; it needs 1 to {MOST_THREADS}",
                    device.threads
                ));
            }
            if let Some(serial) = &device.serial {
                if serial.is_empty()
                    || serial.len() > 20
                    || !serial.bytes().all(|byte| (0x20..0x7f).contains(&byte))
                {
                    return unservable(format!(
                        "the serial number of {name} must be 1 to 20 printable ASCII characters, not {serial:?}"
                    ));
                }
            }
            for namespace in &device.namespace {
                if !matches!(namespace.block_size, 512 | 4096) {
                    return unservable(format!(
                        "the block size of {} must be 512 or 4096 bytes, not {}",
                        namespace.file.display(),
                        namespace.block_size
                    ));
                }
            }
        }
        let writable = self
            .nvme
            .iter()
            .flat_map(|device| &device.namespace)
            .filter(|namespace| !namespace.read_only)
            .map(|namespace| &namespace.file);
        let mut seen = Vec::new();
        for file in writable {
            if seen.contains(&file) {
                return unservable(format!(
                    "{} is writable in two places; two guests would destroy its file system; make it read-only",
                    file.display()
                ));
            }
            seen.push(file);
        }
        Ok(())
    }
}

/// More disks on one controller than anybody plugs in, few enough to list in one page.
const MOST_NAMESPACES: usize = 256;
const MOST_THREADS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<Config, String> {
        let config = Config::parse(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    const LEAST: &str = "[[nvme]]\nsocket = \"a.sock\"\n[[nvme.namespace]]\nfile = \"a.img\"\n";

    #[test]
    fn the_least_that_can_be_served_is_a_socket_and_a_file() {
        let config = checked(LEAST).unwrap();
        let device = &config.nvme[0];
        assert_eq!(device.mode, 0o600);
        assert_eq!(device.interrupts.len(), 3);
        assert_eq!(device.namespace[0].block_size, 512);
        assert!(!device.namespace[0].read_only);
        assert_eq!((config.memory.policy, config.memory.extent), (MemoryPolicy::Background, Extent::Auto));
        assert_eq!((config.memory.limit, config.memory.client_limit), (MemoryLimit::Auto, MemoryLimit::None));
    }

    #[test]
    fn all_that_can_be_said_is_heard() {
        let config = checked(
            "control = \"c.sock\"\nmetrics = \"127.0.0.1:9469\"\n[memory]\npolicy = \"first-use\"\nextent = \"128M\"\n\
             limit = \"8G\"\nclient-limit = \"4G\"\n\
             [[nvme]]\nsocket = \"a.sock\"\nmode = \"0660\"\nserial = \"A1\"\ninterrupts = [\"intx\"]\n\
             doorbells = \"mmap\"\nthreads = 4\n[[nvme.namespace]]\nfile = \"a.img\"\nread-only = true\n\
             block-size = 4096\ndirect = \"off\"\nbuffers = \"plain\"\n",
        )
        .unwrap();
        assert_eq!(config.memory.policy, MemoryPolicy::FirstUse);
        assert_eq!(config.memory.extent, Extent::Bytes(128 << 20));
        assert_eq!(config.memory.limit, MemoryLimit::Bytes(8 << 30));
        assert_eq!(config.memory.client_limit, MemoryLimit::Bytes(4 << 30));
        let device = &config.nvme[0];
        assert_eq!((device.mode, device.threads, device.doorbells), (0o660, 4, Doorbells::Mmap));
        let disk = &device.namespace[0];
        assert_eq!((disk.read_only, disk.block_size, disk.direct), (true, 4096, DirectIo::Off));
    }

    #[test]
    fn what_cannot_be_served_is_refused_by_name() {
        for (text, word) in [
            ("", "nothing to serve"),
            ("[[nvme]]\nsocket = \"a\"\nnamespace = []\n", "0 namespaces"),
            (&format!("{LEAST}{LEAST}"), "two devices have the socket a.sock"),
            (&format!("{LEAST}{}", LEAST.replace("a.sock", "b.sock")), "a.img is writable in two places"),
            (&format!("{LEAST}block-size = 1000\n"), "512 or 4096"),
            (&LEAST.replace("\n[[nvme.n", "\nthreads = 0\n[[nvme.n"), "0 threads"),
            (&LEAST.replace("\n[[nvme.n", "\ninterrupts = []\n[[nvme.n"), "no kind of interrupt"),
            (&LEAST.replace("\n[[nvme.n", "\nserial = \"\"\n[[nvme.n"), "serial number"),
            (&LEAST.replace("\n[[nvme.n", "\nmode = \"9\"\n[[nvme.n"), "octal"),
            (&format!("{LEAST}sise = 3\n"), "unknown field `sise`"),
            (&format!("[memory]\nextent = \"3M\"\n{LEAST}"), "power of two"),
            (&format!("[memory]\nlimit = \"all\"\n{LEAST}"), "a memory limit is"),
            (&format!("metrics = \"9100\"\n{LEAST}"), "127.0.0.1:9100"),
            (&format!("metrics = \"localhost\"\n{LEAST}"), "127.0.0.1:9469"),
        ] {
            let refusal = checked(text).unwrap_err();
            assert!(refusal.contains(word), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_packaged_example_can_be_served() {
        let config = checked(include_str!("../../../../packaging/serve.toml")).unwrap();
        assert_eq!(config.nvme.len(), 1);
        assert_eq!(config.metrics, Some(([127, 0, 0, 1], 9469).into()));
    }

    #[test]
    fn two_guests_may_read_one_disk() {
        let read_only = format!("{LEAST}read-only = true\n");
        checked(&format!("{read_only}{}", read_only.replace("a.sock", "b.sock"))).unwrap();
    }

    #[test]
    fn paths_are_seen_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("disks.toml");
        std::fs::write(&file, LEAST).unwrap();
        let config = Config::read(&file).unwrap();
        assert_eq!(config.nvme[0].socket, folder.path().join("a.sock"));
        assert_eq!(config.nvme[0].namespace[0].file, folder.path().join("a.img"));
        assert!(
            Config::read(&folder.path().join("none.toml")).unwrap_err().to_string().contains("none.toml")
        );
    }
}
