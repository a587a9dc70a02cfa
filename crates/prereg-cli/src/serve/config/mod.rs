//! The configuration of `prereg serve`, checked before anything is opened.
//!
//! Each option is a field of one struct here or in a file of this folder, with its documentation, default and parser. The struct is
//! parsed from the command line (clap) and from the configuration file (serde), and converts itself to the settings of what it
//! configures.

mod from_text;
pub(crate) mod memory;
pub(crate) mod nvme;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde::de::Error as _;

use memory::MemoryConfig;
use nvme::NvmeConfig;

use super::log::output::{LogFilter, LogFormat};

/// The configuration of one server.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
#[non_exhaustive]
pub(crate) struct Config {
    /// The control socket, which `prereg status` connects to, or `none` [default: in the runtime folder]
    #[arg(long, global = true, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Address and port of the page (/), the metrics (/metrics) and the health (/healthz), such as 127.0.0.1:9469
    #[arg(long, global = true, value_name = "ADDR", value_parser = parse_address)]
    #[serde(default, deserialize_with = "address")]
    pub metrics: Option<SocketAddr>,

    /// Clients at a time, over all sockets; more are rejected [default: 64, or the number of controllers if that is more]
    #[arg(long, global = true, value_name = "N")]
    pub max_clients: Option<usize>,

    /// Format of the log on standard error [default: text]
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Level of the log: off, error, warn, info, debug, or levels by target such as warn,prereg::disk=info [default: info]
    #[arg(long, global = true, value_name = "LEVEL")]
    pub log_level: Option<LogFilter>,

    /// The clients' memory
    #[arg(skip)]
    #[serde(default)]
    pub memory: MemoryConfig,

    /// The NVMe controllers
    #[arg(skip)]
    #[serde(default)]
    pub nvme: Vec<NvmeConfig>,
}

fn address<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_address(&text).map(Some).map_err(D::Error::custom)
}

/// An address and a port to listen on.
fn parse_address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        let port = text.trim_start_matches(':');
        let example = if port.parse::<u16>().is_ok() { port } else { "9469" };
        format!(
            "expected an address and a port: 127.0.0.1:{example} for this host alone, 0.0.0.0:{example} for every network"
        )
    })
}

/// Errors of a configuration.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub(crate) enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {file}: {error}")]
    Unreadable {
        /// The file.
        file: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// The file is not a configuration.
    #[error("{file}: {error}")]
    Malformed {
        /// The file.
        file: PathBuf,
        /// Place and reason.
        error: Box<toml::de::Error>,
    },
    /// The configuration contradicts itself or the limits.
    #[error("{0}")]
    Unservable(String),
}

prereg::debug_as_display!(ConfigError);

impl Config {
    /// Reads and checks `file`. Relative paths in it are relative to its folder.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub(crate) fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file)
            .map_err(|error| ConfigError::Unreadable { file: file.to_owned(), error })?;
        let folder = file.parent().unwrap_or(Path::new(""));
        let mut config = Self::parse(&text)
            .map_err(|error| ConfigError::Malformed { file: file.to_owned(), error: Box::new(error) })?;
        config.resolve_paths(folder);
        config.check()?;
        Ok(config)
    }

    fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    fn resolve_paths(&mut self, folder: &Path) {
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

    /// These options where they are given, those of `file` otherwise.
    #[must_use]
    pub(crate) fn over(self, file: Self) -> Self {
        Self {
            control: self.control.or(file.control),
            metrics: self.metrics.or(file.metrics),
            max_clients: self.max_clients.or(file.max_clients),
            log_format: self.log_format.or(file.log_format),
            log_level: self.log_level.or(file.log_level),
            memory: file.memory,
            nvme: file.nvme,
        }
    }

    /// Refuses what cannot be served; nothing is opened.
    ///
    /// # Errors
    /// [`ConfigError::Unservable`], naming the device.
    pub(crate) fn check(&self) -> Result<(), ConfigError> {
        let sockets = self.nvme.iter().map(|device| &device.socket);
        let unservable = |why: String| Err(ConfigError::Unservable(why));
        if self.max_clients == Some(0) {
            return unservable(
                "max-clients is 0, so that no client could attach; leave it out, or give at least 1"
                    .to_owned(),
            );
        }
        if self.nvme.is_empty() {
            return unservable("nothing to serve: the configuration has no [[nvme]]".to_owned());
        }
        if let Some(socket) = duplicate(sockets.clone()) {
            return unservable(format!(
                "two devices have the socket {}; give each its own",
                socket.display()
            ));
        }
        if let Some(control) =
            self.control.as_ref().filter(|&control| sockets.clone().any(|path| path == control))
        {
            return unservable(format!(
                "the control socket is also a device's: {}; choose another",
                control.display()
            ));
        }
        self.nvme.iter().try_for_each(NvmeConfig::check).map_err(ConfigError::Unservable)?;
        let namespaces = self.nvme.iter().flat_map(|device| &device.namespace);
        let writable = namespaces.filter(|namespace| !namespace.read_only).map(|namespace| &namespace.file);
        duplicate(writable).map_or(Ok(()), |file| {
            unservable(format!(
                "{} is writable in two places; two guests would destroy its file system; make it read-only",
                file.display()
            ))
        })
    }
}

/// The first path that occurs twice.
fn duplicate<'a>(paths: impl Iterator<Item = &'a PathBuf>) -> Option<&'a PathBuf> {
    let mut seen = Vec::new();
    for path in paths {
        if seen.contains(&path) {
            return Some(path);
        }
        seen.push(path);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::memory::{Extent, MemoryLimit, RegisterPolicy};
    use super::nvme::{DirectIo, Doorbells, SocketMode};
    use super::*;

    fn checked(text: &str) -> Result<Config, String> {
        let config = Config::parse(text).map_err(|error| error.to_string())?;
        config.check().map_err(|error| error.to_string())?;
        Ok(config)
    }

    const LEAST: &str = "[[nvme]]\nsocket = \"a.sock\"\n[[nvme.namespace]]\nfile = \"a.img\"\n";

    #[test]
    fn a_socket_and_a_file_are_enough() {
        let config = checked(LEAST).unwrap();
        let device = &config.nvme[0];
        assert_eq!(device.mode, SocketMode(0o600));
        assert_eq!(device.interrupts.len(), 3);
        assert_eq!(device.namespace[0].block_size, 512);
        assert!(!device.namespace[0].read_only);
        assert_eq!(
            (config.memory.register, config.memory.extent),
            (RegisterPolicy::Background, Extent::Auto)
        );
        assert_eq!((config.memory.limit, config.memory.client_limit), (MemoryLimit::Auto, MemoryLimit::None));
    }

    #[test]
    fn every_key_of_the_file_is_read() {
        let config = checked(
            "control = \"c.sock\"\nlog-format = \"json\"\nlog-level = \"warn,prereg::disk=info\"\nmetrics = \"127.0.0.1:9469\"\n[memory]\nregister = \"on-demand\"\nextent = \"128M\"\n\
             limit = \"8G\"\nclient-limit = \"4G\"\n\
             [[nvme]]\nsocket = \"a.sock\"\nmode = \"0660\"\nserial = \"A1\"\ninterrupts = [\"intx\"]\n\
             doorbells = \"mmap\"\nthreads = 4\n[[nvme.namespace]]\nfile = \"a.img\"\nread-only = true\n\
             block-size = 4096\no-direct = \"off\"\nbuffers = \"plain\"\n",
        )
        .unwrap();
        assert_eq!(config.log_format, Some(LogFormat::Json));
        assert_eq!(
            config.log_level.map(|level| level.to_string()).as_deref(),
            Some("warn,prereg::disk=info")
        );
        assert_eq!(config.memory.register, RegisterPolicy::OnDemand);
        assert_eq!(config.memory.extent, Extent::Bytes(128 << 20));
        assert_eq!(config.memory.limit, MemoryLimit::Bytes(8 << 30));
        assert_eq!(config.memory.client_limit, MemoryLimit::Bytes(4 << 30));
        let device = &config.nvme[0];
        assert_eq!((device.mode, device.threads, device.doorbells), (SocketMode(0o660), 4, Doorbells::Mmap));
        let disk = &device.namespace[0];
        assert_eq!((disk.read_only, disk.block_size, disk.o_direct), (true, 4096, DirectIo::Off));
    }

    #[test]
    fn a_configuration_that_cannot_be_served_is_refused_by_name() {
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
            (&format!("log-level = \"prereg=loud\"\n{LEAST}"), "a log level is"),
            (&format!("metrics = \"9100\"\n{LEAST}"), "127.0.0.1:9100"),
            (&format!("metrics = \"localhost\"\n{LEAST}"), "127.0.0.1:9469"),
        ] {
            let refusal = checked(text).unwrap_err();
            assert!(refusal.contains(word), "{text}: {refusal}");
        }
    }

    #[test]
    fn the_packaged_example_can_be_served() {
        let config = checked(include_str!("../../../../../packaging/serve.toml")).unwrap();
        assert_eq!(config.nvme.len(), 1);
        assert_eq!(config.metrics, Some(([127, 0, 0, 1], 9469).into()));
    }

    #[test]
    fn two_guests_may_read_one_disk() {
        let read_only = format!("{LEAST}read-only = true\n");
        checked(&format!("{read_only}{}", read_only.replace("a.sock", "b.sock"))).unwrap();
    }

    #[test]
    fn relative_paths_begin_in_the_folder_of_the_file() {
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
