//! Options for the clients' memory: when and how much of it is pinned.

use std::fmt;
use std::str::FromStr;

use clap::Args;
use prereg_vfio_user::server::MemoryPolicy;
use serde::Deserialize;

use super::from_text::from_text;
use crate::units::{Bytes, parse_bytes};

/// Pinning of the clients' memory.
#[derive(Clone, Copy, Debug, Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
#[non_exhaustive]
pub(crate) struct MemoryConfig {
    /// When guest memory is pinned
    #[arg(long, value_enum, default_value_t)]
    pub register: RegisterPolicy,

    /// How much of a memory file is registered at a time: `auto`, `whole`, or a power of two of at least 2M
    #[arg(long, value_name = "SIZE", default_value_t)]
    #[serde(deserialize_with = "from_text")]
    pub extent: Extent,

    /// Most guest memory pinned in all: `auto` (7/8 of the host's, less under a limit of the cgroup or on locked memory), `none`, or
    /// a size
    #[arg(long = "memory-limit", value_name = "SIZE", default_value_t)]
    #[serde(deserialize_with = "from_text")]
    pub limit: MemoryLimit,

    /// Most guest memory pinned for one client: `none`, or a size
    #[arg(long = "client-memory-limit", value_name = "SIZE", default_value_t = Self::default().client_limit)]
    #[serde(deserialize_with = "from_text")]
    pub client_limit: MemoryLimit,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            register: RegisterPolicy::default(),
            extent: Extent::default(),
            limit: MemoryLimit::default(),
            client_limit: MemoryLimit::None,
        }
    }
}

impl MemoryConfig {
    /// The policy of a server whose clients may have `total` bytes pinned in all; `None` without a limit.
    #[must_use]
    pub(crate) fn policy(&self, total: Option<u64>) -> MemoryPolicy {
        let mut policy = match self.register {
            RegisterPolicy::Background => MemoryPolicy::BACKGROUND,
            RegisterPolicy::Eager => MemoryPolicy::EAGER,
            RegisterPolicy::OnDemand => MemoryPolicy::FIRST_USE,
        };
        policy.total_bytes = total;
        policy.client_bytes = match self.client_limit {
            MemoryLimit::Bytes(bytes) => Some(bytes),
            MemoryLimit::Auto | MemoryLimit::None => None,
        };
        policy.extent = match self.extent {
            Extent::Auto => None,
            // Longer than any file.
            Extent::Whole => (self.register == RegisterPolicy::Background).then_some(1 << 62),
            Extent::Bytes(bytes) => Some(bytes),
        };
        policy
    }

    /// Refuses numeric limits under which no guest could be served, or that contradict each other.
    ///
    /// # Errors
    /// The reason and the remedy.
    pub(crate) fn check(&self) -> Result<(), String> {
        let piece = match self.extent {
            Extent::Bytes(bytes) => bytes,
            Extent::Auto | Extent::Whole => MIN_LIMIT,
        };
        let limits = [("--memory-limit", self.limit), ("--client-memory-limit", self.client_limit)];
        for (name, limit) in limits {
            match limit {
                MemoryLimit::Bytes(bytes) if bytes < piece => {
                    return Err(format!(
                        "{name} of {} is less than one piece of {}, which is what is pinned at a time: no guest could be served; \
                         raise it, or use `auto` or `none`",
                        Bytes(bytes),
                        Bytes(piece)
                    ));
                }
                _ => {}
            }
        }
        match (self.limit, self.client_limit) {
            (MemoryLimit::Bytes(total), MemoryLimit::Bytes(client)) if client > total => Err(format!(
                "--client-memory-limit of {} is more than --memory-limit, which is {} for all clients together; lower the first \
                 or raise the second",
                Bytes(client),
                Bytes(total)
            )),
            _ => Ok(()),
        }
    }
}

/// The lowest numeric limit; larger pieces need more.
const MIN_LIMIT: u64 = 2 << 20;

/// When memory is registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum RegisterPolicy {
    /// After a client maps it, while the device may use it already
    #[default]
    Background,
    /// Before the client's first map of it is answered
    Eager,
    /// At the device's first access
    OnDemand,
}

/// The unit of registration of a memory file.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum Extent {
    /// Pieces that suit the memory limit with [`RegisterPolicy::Background`], whole files otherwise.
    #[default]
    Auto,
    /// The whole file.
    Whole,
    /// Pieces of this many bytes: for memory that is plugged and unplugged (virtio-mem).
    Bytes(u64),
}

impl FromStr for Extent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
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

impl fmt::Display for Extent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Whole => f.write_str("whole"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

/// Limit on the memory that is pinned or promised for all clients.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) enum MemoryLimit {
    /// 7/8 of the memory of the host or of the control group, or the limit on locked memory, whichever is lowest.
    #[default]
    Auto,
    /// Only the kernel's own limits.
    None,
    /// This many bytes.
    Bytes(u64),
}

impl FromStr for MemoryLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "none" => Ok(Self::None),
            size => parse_bytes(size).map(Self::Bytes).map_err(|error| {
                format!("a memory limit is `auto`, `none`, or a size; `{text}` is none of them: {error}")
            }),
        }
    }
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::None => f.write_str("none"),
            Self::Bytes(bytes) => write!(f, "{bytes}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn limits_that_cannot_be_are_refused() {
        let check = |extent, limit, client_limit| {
            MemoryConfig { extent, limit, client_limit, ..MemoryConfig::default() }.check()
        };
        use MemoryLimit::{Auto, Bytes, None};
        for bytes in [0, 1, 4096, MIN_LIMIT - 1] {
            let refused = check(Extent::Auto, Bytes(bytes), None).unwrap_err();
            assert!(refused.contains("--memory-limit"), "{refused}");
            let refused = check(Extent::Auto, Auto, Bytes(bytes)).unwrap_err();
            assert!(refused.contains("--client-memory-limit"), "{refused}");
        }
        assert!(check(Extent::Bytes(8 << 20), Bytes(4 << 20), None).is_err());
        let refused = check(Extent::Auto, Bytes(GIB), Bytes(2 * GIB)).unwrap_err();
        assert!(refused.contains("1 GiB") && refused.contains("2 GiB"), "{refused}");
        for (limit, client) in
            [(Auto, None), (None, Bytes(MIN_LIMIT)), (Bytes(GIB), Bytes(GIB)), (Auto, Bytes(GIB))]
        {
            check(Extent::Auto, limit, client).unwrap();
        }
    }

    #[test]
    fn whole_files_in_the_background_are_pieces_longer_than_any_file() {
        let mut config = MemoryConfig { extent: Extent::Whole, ..MemoryConfig::default() };
        assert_eq!(config.policy(None), MemoryPolicy::BACKGROUND.with_extent(1 << 62));
        config.register = RegisterPolicy::Eager;
        config.client_limit = MemoryLimit::Bytes(5);
        assert_eq!(config.policy(Some(9)), MemoryPolicy::EAGER.with_total_bytes(9).with_client_bytes(5));
    }
}
