//! The memory policy of a server: made from its configuration, with the default limit on pinned memory, and the log lines for
//! clients whose memory is refused.

use prereg_linux::HostReport;
use prereg_vfio_user::server::{MapMemoryError, MemoryNote, MemoryPolicy, NoteKind};

use super::config::{self, Extent, MemoryConfig};
use crate::pins::HostMemory;
use crate::quantity::Bytes;

/// The store's policy, with this host's limits.
pub(super) fn policy(config: &MemoryConfig) -> MemoryPolicy {
    let automatic = || automatic_limit(HostMemory::now().map(|host| host.total), allowance());
    with_limit(config, config.limit.bytes(automatic()))
}

fn with_limit(config: &MemoryConfig, total: Option<u64>) -> MemoryPolicy {
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

/// Bytes that this process may lock in addition to those it has locked; `None` without a limit.
fn allowance() -> Option<u64> {
    let memlock = HostReport::probe().memlock;
    let used = memlock.counted.map_or(0, |counted| counted.locked + counted.pinned);
    memlock.allowance().map(|bytes| bytes.saturating_sub(used))
}

/// The default limit: the host's memory less an eighth (at least 512 MiB), or the limit on locked memory if that is lower.
fn automatic_limit(host_total: Option<u64>, allowance: Option<u64>) -> Option<u64> {
    const LEAST: u64 = 512 << 20;
    let host = host_total.map(|total| total.saturating_sub((total / 8).max(LEAST)));
    match (host, allowance) {
        (Some(host), Some(allowance)) => Some(host.min(allowance)),
        (one, other) => one.or(other),
    }
}

/// A note as a line of the log.
pub(super) fn explain(note: &MemoryNote) -> String {
    let what = match note.kind {
        NoteKind::MapRefused => "a DMA_MAP was refused",
        NoteKind::PinFailed => "mapped memory could not be pinned, the device's accesses to it fail",
        _ => "its memory",
    };
    let why = match note.error {
        MapMemoryError::Limit { bytes, used, limit } => format!(
            "it needs {}, {} are in use and the limit is {}; give the guest less memory, free other guests, or raise \
             --memory-limit (`limit` of [memory]; if `ulimit -l` is lower, raise that)",
            Bytes(bytes),
            Bytes(used),
            Bytes(limit)
        ),
        MapMemoryError::Quota { bytes, left } => format!(
            "it needs {}, and {} are left for this client; give the guest less memory, or raise --client-memory-limit \
             (`client-limit` of [memory])",
            Bytes(bytes),
            Bytes(left)
        ),
        error => error.to_string(),
    };
    format!("client {}: {what}: {why}. Said once for this client.", note.client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::config::MemoryLimit;

    #[test]
    fn the_host_keeps_an_eighth_and_a_lower_limit_counts() {
        const GIB: u64 = 1 << 30;
        assert_eq!(automatic_limit(Some(24 * GIB), None), Some(21 * GIB));
        assert_eq!(automatic_limit(Some(2 * GIB), None), Some(3 * GIB / 2));
        assert_eq!(automatic_limit(Some(GIB / 4), None), Some(0));
        assert_eq!(automatic_limit(Some(24 * GIB), Some(8 << 20)), Some(8 << 20));
        assert_eq!(automatic_limit(None, Some(GIB)), Some(GIB));
        assert_eq!(automatic_limit(None, None), None);
    }

    #[test]
    fn whole_files_in_the_background_are_pieces_longer_than_any_file() {
        let mut config = MemoryConfig { extent: Extent::Whole, ..MemoryConfig::default() };
        assert_eq!(with_limit(&config, None), MemoryPolicy::BACKGROUND.with_extent(1 << 62));
        config.policy = config::MemoryPolicy::Eager;
        config.client_limit = MemoryLimit::Bytes(5);
        assert_eq!(
            with_limit(&config, Some(9)),
            MemoryPolicy::EAGER.with_total_bytes(9).with_client_bytes(5)
        );
    }
}
