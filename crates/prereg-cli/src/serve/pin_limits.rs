//! The limit on pinned memory: its lowest source, the memory policy made from it, and the reasons for which clients' memory is refused.

use std::fmt;

use prereg_linux::{HostReport, SharedError};
use prereg_vfio_user::server::{MapMemoryError, MemoryPolicy};

use super::cgroup::{self, CgroupLimit};
use super::config::memory::{MemoryConfig, MemoryLimit};
use crate::backend::HostMemory;
use crate::error::CommandError;
use crate::units::Bytes;

/// The memory policy, and the limits that apply to it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct PinLimits {
    pub(super) policy: MemoryPolicy,
    /// The limit of `policy` for all clients.
    total: Option<Limit>,
    /// The lowest limit: `total`, or the kernel's. `None` without any.
    binding: Option<Limit>,
}

/// A limit on all clients' memory.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Limit {
    bytes: u64,
    source: Source,
}

/// The origin of a limit.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Source {
    /// RLIMIT_MEMLOCK, less the memory locked already.
    Memlock,
    /// The memory limit of this process's control group, less an eighth.
    Cgroup(CgroupLimit),
    /// The host's memory, less an eighth.
    Host,
    Configured,
}

/// The host's limits for this process.
#[derive(Clone, Default, Debug)]
struct HostLimits {
    memory_total: Option<u64>,
    /// Bytes that may still be locked; `None` without a limit.
    lockable: Option<u64>,
    cgroup: Option<CgroupLimit>,
}

/// Guests that run an operating system have more.
const SMALL_GUEST: u64 = 128 << 20;

impl PinLimits {
    /// The configured policy under this host's limits.
    ///
    /// # Errors
    /// [`CommandError::Host`] for limits under which no guest could be served, or that contradict each other.
    pub(super) fn of(config: &MemoryConfig) -> Result<Self, CommandError> {
        let refused = |why| CommandError::host("the memory limits of the configuration", why);
        config.check().map_err(refused)?;
        Ok(Self::within(config, HostLimits::now()))
    }

    fn within(config: &MemoryConfig, host: HostLimits) -> Self {
        let locked = host.lockable.map(|bytes| Limit { bytes, source: Source::Memlock });
        let memory = host.memory_total.map(|total| {
            /// Kept for the host: an eighth of a small one is too little.
            const RESERVE: u64 = 512 << 20;
            Limit { bytes: total.saturating_sub((total / 8).max(RESERVE)), source: Source::Host }
        });
        let cgroup = host
            .cgroup
            .map(|limit| Limit { bytes: limit.bytes - limit.bytes / 8, source: Source::Cgroup(limit) });
        let lowest =
            |limits: Vec<Option<Limit>>| limits.into_iter().flatten().min_by_key(|limit| limit.bytes);
        let (total, binding) = match config.limit {
            MemoryLimit::Auto => {
                let lowest = lowest(vec![locked, cgroup, memory]);
                (lowest.clone(), lowest)
            }
            // The kernel still enforces the limit on locked memory.
            MemoryLimit::None => (None, locked),
            MemoryLimit::Bytes(bytes) => {
                let configured = Some(Limit { bytes, source: Source::Configured });
                (configured.clone(), lowest(vec![locked, configured]))
            }
        };
        Self { policy: config.policy(total.as_ref().map(|limit| limit.bytes)), total, binding }
    }

    /// The lowest limit in bytes; `None` without any.
    pub(super) fn lowest(&self) -> Option<u64> {
        self.binding.as_ref().map(|limit| limit.bytes)
    }

    /// The limit that refuses a guest of `bytes`, with the remedy; `None` if it fits.
    pub(super) fn refusal(&self, bytes: u64) -> Option<String> {
        self.binding.as_ref().filter(|limit| limit.bytes < bytes).map(ToString::to_string)
    }

    /// The default limits of a host with `total` bytes of memory, of which `lockable` may be locked.
    #[cfg(test)]
    pub(super) fn on_host(total: u64, lockable: Option<u64>) -> Self {
        let host = HostLimits { memory_total: Some(total), lockable, cgroup: None };
        Self::within(&MemoryConfig::default(), host)
    }

    /// A warning for the start if no guest fits.
    pub(super) fn warning(&self) -> Option<String> {
        let limit = self.binding.as_ref().filter(|limit| limit.bytes < SMALL_GUEST)?;
        Some(format!(
            "all guests together may have {} pinned, which is too little for most: {limit}. A DMA_MAP above it is refused, and \
             the guest's device does not work",
            Bytes(limit.bytes)
        ))
    }

    /// The reason for which memory was refused, with the limit, and the remedy.
    pub(super) fn reason(&self, error: &MapMemoryError) -> (String, Option<String>) {
        match *error {
            MapMemoryError::Limit { bytes, used, limit } => {
                let which = self.total.as_ref().map_or_else(String::new, |total| format!(" ({total})"));
                let why = format!(
                    "it needs {}, {} are in use and the limit is {}{which}",
                    Bytes(bytes),
                    Bytes(used),
                    Bytes(limit)
                );
                let remedy = "give the guest less memory, stop other guests, or raise the limit";
                (why, Some(remedy.to_owned()))
            }
            MapMemoryError::Quota { bytes, left } => {
                let why = format!(
                    "one of its files needs {}, and {} are left for this client",
                    Bytes(bytes),
                    Bytes(left)
                );
                let remedy =
                    "give the guest less memory, or raise --client-memory-limit (`client-limit` of [memory])";
                (why, Some(remedy.to_owned()))
            }
            MapMemoryError::Memory(SharedError::Short { .. }) => (
                error.to_string(),
                Some("give the memory back end of the guest a file of its size".to_owned()),
            ),
            error => (error.to_string(), None),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Memlock => f.write_str(
                "the limit on locked memory, RLIMIT_MEMLOCK; raise it by `ulimit -l` or LimitMEMLOCK= of the unit, or grant \
                 CAP_IPC_LOCK",
            ),
            Source::Cgroup(limit) => write!(
                f,
                "7/8 of the {} of {}; raise that (MemoryMax= of the unit), or set --memory-limit where guests' memory is charged \
                 to another group",
                Bytes(limit.bytes),
                limit.file.display()
            ),
            Source::Host => f.write_str("the host's memory less an eighth; --memory-limit overrides it"),
            Source::Configured => f.write_str("--memory-limit, or `limit` of [memory]"),
        }
    }
}

impl HostLimits {
    fn now() -> Self {
        let memlock = HostReport::probe().memlock;
        let used = memlock.counted.map_or(0, |counted| counted.locked + counted.pinned);
        Self {
            memory_total: HostMemory::now().map(|host| host.total),
            lockable: memlock.allowance().map(|bytes| bytes.saturating_sub(used)),
            cgroup: cgroup::memory_limit(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn group(bytes: u64) -> Option<CgroupLimit> {
        Some(CgroupLimit { bytes, file: "/cg/memory.max".into() })
    }

    fn within(
        limit: MemoryLimit,
        host: u64,
        lockable: Option<u64>,
        cgroup: Option<CgroupLimit>,
    ) -> PinLimits {
        let config = MemoryConfig { limit, ..MemoryConfig::default() };
        PinLimits::within(&config, HostLimits { memory_total: Some(host), lockable, cgroup })
    }

    fn automatic(host: u64, lockable: Option<u64>, cgroup: Option<CgroupLimit>) -> (Option<u64>, Source) {
        let limits = within(MemoryLimit::Auto, host, lockable, cgroup);
        (limits.policy.total_bytes, limits.binding.unwrap().source)
    }

    #[test]
    fn the_lowest_of_host_group_and_locked_memory_is_the_default_limit() {
        assert_eq!(automatic(24 * GIB, None, None), (Some(21 * GIB), Source::Host));
        assert_eq!(automatic(2 * GIB, None, None), (Some(3 * GIB / 2), Source::Host));
        assert_eq!(automatic(GIB / 4, None, None), (Some(0), Source::Host));
        assert_eq!(automatic(24 * GIB, Some(8 << 20), group(GIB)), (Some(8 << 20), Source::Memlock));
        let cgroup = Source::Cgroup(group(8 * GIB).unwrap());
        assert_eq!(automatic(24 * GIB, Some(64 * GIB), group(8 * GIB)), (Some(7 * GIB), cgroup));
        assert_eq!(automatic(24 * GIB, None, group(64 * GIB)), (Some(21 * GIB), Source::Host));
        let nothing_known = PinLimits::within(&MemoryConfig::default(), HostLimits::default());
        assert_eq!((nothing_known.policy.total_bytes, nothing_known.binding), (None, None));
    }

    #[test]
    fn a_configured_limit_applies_and_a_lower_one_of_the_kernel_is_reported() {
        let limits = within(MemoryLimit::Bytes(4 * GIB), 2 * GIB, Some(8 << 20), group(GIB));
        assert_eq!(limits.policy.total_bytes, Some(4 * GIB));
        assert_eq!(limits.binding.as_ref().unwrap().source, Source::Memlock);
        assert!(limits.warning().unwrap().contains("ulimit -l"));
        let limits = within(MemoryLimit::None, 2 * GIB, Some(8 << 20), None);
        assert_eq!(limits.policy.total_bytes, None);
        assert!(limits.warning().unwrap().contains("ulimit -l"));
        assert_eq!(within(MemoryLimit::Bytes(4 * GIB), 2 * GIB, None, None).warning(), None);
    }

    #[test]
    fn a_limit_under_which_no_guest_fits_is_reported_at_the_start_with_its_remedy() {
        let warning = |limits: PinLimits| limits.warning().unwrap_or_default();
        let locked = warning(within(MemoryLimit::Auto, 24 * GIB, Some(8 << 20), group(GIB / 2)));
        assert!(locked.contains("8 MiB") && locked.contains("ulimit -l"), "{locked}");
        let grouped = warning(within(MemoryLimit::Auto, 24 * GIB, None, group(64 << 20)));
        assert!(grouped.contains("/cg/memory.max") && grouped.contains("MemoryMax="), "{grouped}");
        let configured = warning(within(MemoryLimit::Bytes(4 << 20), 24 * GIB, None, None));
        assert!(configured.contains("--memory-limit"), "{configured}");
        assert_eq!(warning(within(MemoryLimit::Auto, 24 * GIB, None, None)), "");
    }

    #[test]
    fn a_refusal_names_the_limit_that_applies() {
        let limits = within(MemoryLimit::Auto, 24 * GIB, None, group(8 * GIB));
        let error = MapMemoryError::Limit { bytes: 8 * GIB, used: 0, limit: 7 * GIB };
        assert!(limits.reason(&error).0.contains("/cg/memory.max"));
        let limits = within(MemoryLimit::Bytes(GIB), 24 * GIB, Some(GIB / 2), None);
        assert!(limits.reason(&error).0.contains("`limit` of [memory]"));
    }
}
