//! The memory policy of a server: made from its configuration, with the limit on pinned memory and where that comes from, and
//! the log lines for clients whose memory is refused.

use std::fmt;

use prereg_linux::HostReport;
use prereg_vfio_user::server::{MapMemoryError, MemoryNote, MemoryPolicy, NoteKind};

use super::cgroup::{self, CgroupLimit};
use super::config::{self, Extent, MemoryConfig, MemoryLimit};
use crate::failure::Failure;
use crate::pins::HostMemory;
use crate::quantity::Bytes;

/// How much may be pinned, and the lowest of the limits that say so.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Limits {
    pub(super) policy: MemoryPolicy,
    /// What `policy` limits all clients to.
    total: Option<Limit>,
    /// The lowest limit: the same, or that of the kernel. `None` without any.
    binding: Option<Limit>,
}

/// A limit on all clients' memory.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Limit {
    bytes: u64,
    source: Source,
}

/// Where a limit comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Source {
    /// RLIMIT_MEMLOCK, less what is locked already.
    Locked,
    /// The memory limit of this process's control group, less an eighth.
    Cgroup(CgroupLimit),
    /// The host's memory, less an eighth.
    Host,
    Configured,
}

/// What this process was given by its host.
#[derive(Clone, Default, Debug)]
struct Surroundings {
    host_total: Option<u64>,
    /// Bytes that may be locked in addition to those that are; `None` without a limit.
    lockable: Option<u64>,
    cgroup: Option<CgroupLimit>,
}

/// The least that a limit may be configured to; larger pieces ask for more.
const LEAST: u64 = 2 << 20;
/// No guest that runs an operating system has less.
const SMALL_GUEST: u64 = 128 << 20;

impl Limits {
    /// The policy that is configured, with this host's limits.
    ///
    /// # Errors
    /// [`Failure::Host`] for limits that no guest could be served under, or that contradict each other.
    pub(super) fn of(config: &MemoryConfig) -> Result<Self, Failure> {
        let refused = |why| Failure::host("the memory limits of the configuration", why);
        check(config).map_err(refused)?;
        Ok(Self::within(config, Surroundings::now()))
    }

    fn within(config: &MemoryConfig, surroundings: Surroundings) -> Self {
        let locked = surroundings.lockable.map(|bytes| Limit { bytes, source: Source::Locked });
        let host = surroundings.host_total.map(|total| {
            /// Of a small host an eighth is too little for itself.
            const LEFT: u64 = 512 << 20;
            Limit { bytes: total.saturating_sub((total / 8).max(LEFT)), source: Source::Host }
        });
        let cgroup = surroundings
            .cgroup
            .map(|limit| Limit { bytes: limit.bytes - limit.bytes / 8, source: Source::Cgroup(limit) });
        let lowest =
            |limits: Vec<Option<Limit>>| limits.into_iter().flatten().min_by_key(|limit| limit.bytes);
        let (total, binding) = match config.limit {
            MemoryLimit::Auto => {
                let lowest = lowest(vec![locked, cgroup, host]);
                (lowest.clone(), lowest)
            }
            // The kernel goes on to refuse what passes the limit on locked memory.
            MemoryLimit::None => (None, locked),
            MemoryLimit::Bytes(bytes) => {
                let configured = Some(Limit { bytes, source: Source::Configured });
                (configured.clone(), lowest(vec![locked, configured]))
            }
        };
        Self { policy: policy(config, total.as_ref().map(|limit| limit.bytes)), total, binding }
    }

    /// What a user is to know at the start: that no guest fits.
    pub(super) fn warning(&self) -> Option<String> {
        let limit = self.binding.as_ref().filter(|limit| limit.bytes < SMALL_GUEST)?;
        Some(format!(
            "guests can have {} of memory in all, which is too little for most: {limit}. A guest's DMA_MAP above it is refused, \
             and its device does not work",
            Bytes(limit.bytes)
        ))
    }

    /// A note as a line of the log.
    pub(super) fn explain(&self, note: &MemoryNote) -> String {
        let what = match note.kind {
            NoteKind::MapRefused => "a DMA_MAP was refused",
            NoteKind::PinFailed => "mapped memory could not be pinned, the device's accesses to it fail",
            NoteKind::BackgroundEnded => {
                "pinning its memory in the background ended early, the rest is pinned when its device reaches it"
            }
            _ => "its memory",
        };
        let why = self.reason(&note.error);
        format!("client {}: {what}: {why}. Said once for this client.", note.client)
    }

    /// Why there was no room, and which limit is to be raised.
    fn reason(&self, error: &MapMemoryError) -> String {
        match *error {
            MapMemoryError::Limit { bytes, used, limit } => {
                let which = self.total.as_ref().map_or_else(String::new, |total| format!(" ({total})"));
                format!(
                    "it needs {}, {} are in use and the limit is {}{which}; give the guest less memory, free other guests, or \
                     raise the limit",
                    Bytes(bytes),
                    Bytes(used),
                    Bytes(limit)
                )
            }
            MapMemoryError::Quota { bytes, left } => format!(
                "one of its files needs {}, and {} are left for this client; give the guest less memory, or raise \
                 --client-memory-limit (`client-limit` of [memory])",
                Bytes(bytes),
                Bytes(left)
            ),
            error => error.to_string(),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.source {
            Source::Locked => f.write_str(
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
            Source::Host => f.write_str("what the host's memory is less an eighth; --memory-limit overrides it"),
            Source::Configured => f.write_str("--memory-limit, or `limit` of [memory]"),
        }
    }
}

impl Surroundings {
    fn now() -> Self {
        let memlock = HostReport::probe().memlock;
        let used = memlock.counted.map_or(0, |counted| counted.locked + counted.pinned);
        Self {
            host_total: HostMemory::now().map(|host| host.total),
            lockable: memlock.allowance().map(|bytes| bytes.saturating_sub(used)),
            cgroup: cgroup::memory_limit(),
        }
    }
}

fn policy(config: &MemoryConfig, total: Option<u64>) -> MemoryPolicy {
    let mut policy = match config.policy {
        config::MemoryPolicy::Background => MemoryPolicy::BACKGROUND,
        config::MemoryPolicy::Eager => MemoryPolicy::EAGER,
        config::MemoryPolicy::FirstUse => MemoryPolicy::FIRST_USE,
    };
    policy.total_bytes = total;
    policy.client_bytes = config.client_limit.bytes(None);
    policy.extent = match config.extent {
        Extent::Auto => None,
        // Longer than any file.
        Extent::Whole => (config.policy == config::MemoryPolicy::Background).then_some(1 << 62),
        Extent::Bytes(bytes) => Some(bytes),
    };
    policy
}

/// Whether a guest could be served under the limits that are configured as numbers.
fn check(config: &MemoryConfig) -> Result<(), String> {
    let piece = match config.extent {
        Extent::Bytes(bytes) => bytes,
        Extent::Auto | Extent::Whole => LEAST,
    };
    let limits = [("--memory-limit", config.limit), ("--client-memory-limit", config.client_limit)];
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
    match (config.limit, config.client_limit) {
        (MemoryLimit::Bytes(total), MemoryLimit::Bytes(client)) if client > total => Err(format!(
            "--client-memory-limit of {} is more than --memory-limit, which is {} for all clients together; lower the first \
             or raise the second",
            Bytes(client),
            Bytes(total)
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn group(bytes: u64) -> Option<CgroupLimit> {
        Some(CgroupLimit { bytes, file: "/cg/memory.max".into() })
    }

    fn within(limit: MemoryLimit, host: u64, lockable: Option<u64>, cgroup: Option<CgroupLimit>) -> Limits {
        let config = MemoryConfig { limit, ..MemoryConfig::default() };
        Limits::within(&config, Surroundings { host_total: Some(host), lockable, cgroup })
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
        assert_eq!(automatic(24 * GIB, Some(8 << 20), group(GIB)), (Some(8 << 20), Source::Locked));
        let cgroup = Source::Cgroup(group(8 * GIB).unwrap());
        assert_eq!(automatic(24 * GIB, Some(64 * GIB), group(8 * GIB)), (Some(7 * GIB), cgroup));
        assert_eq!(automatic(24 * GIB, None, group(64 * GIB)), (Some(21 * GIB), Source::Host));
        let nothing_known = Limits::within(&MemoryConfig::default(), Surroundings::default());
        assert_eq!((nothing_known.policy.total_bytes, nothing_known.binding), (None, None));
    }

    #[test]
    fn a_limit_that_is_configured_is_taken_and_a_lower_one_of_the_kernel_is_said() {
        let limits = within(MemoryLimit::Bytes(4 * GIB), 2 * GIB, Some(8 << 20), group(GIB));
        assert_eq!(limits.policy.total_bytes, Some(4 * GIB));
        assert_eq!(limits.binding.as_ref().unwrap().source, Source::Locked);
        assert!(limits.warning().unwrap().contains("ulimit -l"));
        let limits = within(MemoryLimit::None, 2 * GIB, Some(8 << 20), None);
        assert_eq!(limits.policy.total_bytes, None);
        assert!(limits.warning().unwrap().contains("ulimit -l"));
        assert_eq!(within(MemoryLimit::Bytes(4 * GIB), 2 * GIB, None, None).warning(), None);
    }

    #[test]
    fn a_limit_under_which_no_guest_fits_is_said_at_the_start_with_its_remedy() {
        let warning = |limits: Limits| limits.warning().unwrap_or_default();
        let locked = warning(within(MemoryLimit::Auto, 24 * GIB, Some(8 << 20), group(GIB / 2)));
        assert!(locked.contains("8 MiB") && locked.contains("ulimit -l"), "{locked}");
        let grouped = warning(within(MemoryLimit::Auto, 24 * GIB, None, group(64 << 20)));
        assert!(grouped.contains("/cg/memory.max") && grouped.contains("MemoryMax="), "{grouped}");
        let configured = warning(within(MemoryLimit::Bytes(4 << 20), 24 * GIB, None, None));
        assert!(configured.contains("--memory-limit"), "{configured}");
        assert_eq!(warning(within(MemoryLimit::Auto, 24 * GIB, None, None)), "");
    }

    #[test]
    fn limits_that_cannot_be_are_refused() {
        let check = |extent, limit, client_limit| {
            check(&MemoryConfig { extent, limit, client_limit, ..MemoryConfig::default() })
        };
        use MemoryLimit::{Auto, Bytes, None};
        for bytes in [0, 1, 4096, LEAST - 1] {
            let refused = check(Extent::Auto, Bytes(bytes), None).unwrap_err();
            assert!(refused.contains("--memory-limit"), "{refused}");
            let refused = check(Extent::Auto, Auto, Bytes(bytes)).unwrap_err();
            assert!(refused.contains("--client-memory-limit"), "{refused}");
        }
        assert!(check(Extent::Bytes(8 << 20), Bytes(4 << 20), None).is_err());
        let refused = check(Extent::Auto, Bytes(GIB), Bytes(2 * GIB)).unwrap_err();
        assert!(refused.contains("1 GiB") && refused.contains("2 GiB"), "{refused}");
        for (limit, client) in
            [(Auto, None), (None, Bytes(LEAST)), (Bytes(GIB), Bytes(GIB)), (Auto, Bytes(GIB))]
        {
            check(Extent::Auto, limit, client).unwrap();
        }
    }

    #[test]
    fn a_refusal_says_which_limit_binds() {
        let limits = within(MemoryLimit::Auto, 24 * GIB, None, group(8 * GIB));
        let error = MapMemoryError::Limit { bytes: 8 * GIB, used: 0, limit: 7 * GIB };
        assert!(limits.reason(&error).contains("/cg/memory.max"));
        let limits = within(MemoryLimit::Bytes(GIB), 24 * GIB, Some(GIB / 2), None);
        assert!(limits.reason(&error).contains("`limit` of [memory]"));
    }

    #[test]
    fn whole_files_in_the_background_are_pieces_longer_than_any_file() {
        let mut config = MemoryConfig { extent: Extent::Whole, ..MemoryConfig::default() };
        assert_eq!(policy(&config, None), MemoryPolicy::BACKGROUND.with_extent(1 << 62));
        config.policy = config::MemoryPolicy::Eager;
        config.client_limit = MemoryLimit::Bytes(5);
        assert_eq!(policy(&config, Some(9)), MemoryPolicy::EAGER.with_total_bytes(9).with_client_bytes(5));
    }
}
