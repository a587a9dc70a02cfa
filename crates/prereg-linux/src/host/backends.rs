//! Reports on the back ends: usable or not, the reason, and the remedy.

use prereg::AddressKind;

use super::report::{BackendReport, HostReport, PagemapAccess};
use super::vfio;
use crate::mlock::Mlock;

pub(super) fn backend_reports(report: &HostReport) -> Vec<BackendReport> {
    let [type1, spapr] = vfio::containers(report);
    vec![io_uring(report), mlock(report), fixed(), type1, spapr, vfio::iommufd(report)]
}

fn kib(bytes: u64) -> String {
    format!("{} KiB", bytes >> 10)
}

/// How to raise the limit on locked memory.
fn raise(report: &HostReport) -> Option<String> {
    let soft = report.memlock.allowance()?;
    let hard = match report.memlock.hard {
        None => "up to any size by `ulimit -l` in this shell".to_owned(),
        Some(hard) if hard > soft => format!("up to {} by `ulimit -l` in this shell", kib(hard)),
        Some(_) => "for the user in /etc/security/limits.conf (memlock), LimitMEMLOCK= of its systemd unit or --ulimit \
                    memlock= of its container"
            .to_owned(),
    };
    Some(format!("to pin more than {}, raise the limit {hard}, or grant CAP_IPC_LOCK", kib(soft)))
}

fn allowance_text(report: &HostReport) -> String {
    match report.memlock.allowance() {
        None if report.memlock.privileged => "no limit (CAP_IPC_LOCK)".to_owned(),
        None => "no limit".to_owned(),
        Some(bytes) => format!("up to {} (RLIMIT_MEMLOCK)", kib(bytes)),
    }
}

fn io_uring(report: &HostReport) -> BackendReport {
    let mut backend = BackendReport {
        name: "io-uring",
        usable: report.io_uring.probe.is_ok(),
        pins: true,
        addresses: report.io_uring.addresses,
        allowance: report.memlock.allowance(),
        why: String::new(),
        remedy: None,
    };
    match &report.io_uring.probe {
        Ok(slot) => {
            let addresses = match report.io_uring.addresses {
                Some(AddressKind::Physical) => "physical addresses",
                _ => "(slot, offset) addresses, for physical ones are hidden from this user",
            };
            backend.why = format!(
                "pins {}, {} a slot, {addresses}",
                allowance_text(report),
                if *slot > 1 << 30 { "more than 1 GiB" } else { "1 GiB" },
            );
            let frames = (report.pagemap != PagemapAccess::Frames)
                .then(|| "for physical addresses grant CAP_SYS_ADMIN".to_owned());
            backend.remedy = match (raise(report), frames) {
                (Some(limit), Some(frames)) => Some(format!("{limit}; {frames}")),
                (limit, frames) => limit.or(frames),
            };
        }
        Err(error) => {
            backend.why = error.to_string();
            backend.remedy = Some(match report.io_uring.disabled {
                Some(2) => "write 0 to /proc/sys/kernel/io_uring_disabled (as root)".to_owned(),
                Some(1) => "write 0 to /proc/sys/kernel/io_uring_disabled (as root), or add the user to the group of \
                            /proc/sys/kernel/io_uring_group"
                    .to_owned(),
                _ => raise(report).unwrap_or_else(|| {
                    "use Linux 5.19 or newer, and a container whose seccomp filter allows io_uring".to_owned()
                }),
            });
        }
    }
    backend
}

fn mlock(report: &HostReport) -> BackendReport {
    let moves = match report.compact_unevictable_allowed {
        Some(0) => "compaction leaves locked pages alone here, but fork, KSM and huge-page collapse do not",
        _ => "compaction moves locked pages here",
    };
    let (usable, addresses, why) = match report.pagemap {
        PagemapAccess::Frames | PagemapAccess::Hidden => (
            true,
            Some(AddressKind::Invented),
            format!("locks {}, addresses for reports only", allowance_text(report)),
        ),
        PagemapAccess::Denied(errno) => (false, None, format!("/proc/self/pagemap cannot be read ({errno})")),
    };
    BackendReport {
        name: "mlock",
        usable,
        pins: false,
        addresses,
        allowance: report.memlock.allowance(),
        why: format!("{why}; {}; {moves}", Mlock::WARNING),
        remedy: if usable {
            raise(report)
        } else {
            Some("mount /proc and keep the process dumpable".to_owned())
        },
    }
}

fn fixed() -> BackendReport {
    BackendReport {
        name: "fixed",
        usable: true,
        pins: false,
        addresses: Some(AddressKind::Device),
        allowance: None,
        why: "device memory at a base address: there is nothing to pin".to_owned(),
        remedy: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::BackendError;
    use crate::host::report::{Capabilities, HostReport, Memlock, UringAccess};
    use prereg::Errno;

    fn user(soft: Option<u64>, hard: Option<u64>) -> HostReport {
        HostReport {
            kernel: Some("6.1.0".into()),
            uid: 1000,
            euid: 1000,
            initial_user_namespace: true,
            capabilities: Capabilities::default(),
            memlock: Memlock { soft, hard, privileged: false, counted: None },
            page_bytes: 4096,
            memory_total: None,
            memory_available: None,
            huge_pools: Vec::new(),
            transparent_huge_pages: None,
            compact_unevictable_allowed: Some(1),
            pagemap: PagemapAccess::Hidden,
            io_uring: UringAccess {
                disabled: None,
                probe: Ok(1 << 30),
                addresses: Some(AddressKind::SlotOffset),
            },
            iommu_groups: Vec::new(),
            vfio: false,
            vfio_groups: Vec::new(),
            iommufd: false,
            groups: Vec::new(),
            type1_mappings: None,
            backends: Vec::new(),
        }
    }

    #[test]
    fn an_ordinary_user_is_told_the_limit_and_how_to_raise_it() {
        let report = user(Some(8 << 20), Some(8 << 20));
        let backend = io_uring(&report);
        assert!(backend.usable && backend.pins);
        assert_eq!(backend.allowance, Some(8 << 20));
        assert!(
            backend.why.contains("8192 KiB") && backend.why.contains("(slot, offset)"),
            "{}",
            backend.why
        );
        let remedy = backend.remedy.unwrap();
        assert!(remedy.contains("limits.conf") && remedy.contains("CAP_SYS_ADMIN"), "{remedy}");
        let remedy = io_uring(&user(Some(8 << 20), Some(64 << 20))).remedy.unwrap();
        assert!(remedy.contains("65536 KiB by `ulimit -l`"), "{remedy}");
        let remedy = io_uring(&user(Some(8 << 20), None)).remedy.unwrap();
        assert!(remedy.contains("any size"), "{remedy}");
    }

    #[test]
    fn nothing_is_missing_for_one_who_may_do_everything() {
        let mut report = user(Some(8 << 20), Some(8 << 20));
        report.memlock.privileged = true;
        report.pagemap = PagemapAccess::Frames;
        report.io_uring.addresses = Some(AddressKind::Physical);
        let backend = io_uring(&report);
        assert_eq!((backend.allowance, backend.remedy), (None, None));
        assert!(backend.why.contains("CAP_IPC_LOCK"), "{}", backend.why);
    }

    #[test]
    fn a_forbidden_io_uring_names_the_switch() {
        for (disabled, says) in [(Some(2), "write 0"), (Some(1), "io_uring_group"), (Some(0), "seccomp")] {
            let mut report = user(None, None);
            let probe = Err(BackendError::Forbidden);
            report.io_uring = UringAccess { disabled, probe, addresses: None };
            let backend = io_uring(&report);
            assert!(!backend.usable);
            assert!(backend.remedy.unwrap().contains(says), "{disabled:?}");
        }
    }

    #[test]
    fn a_lock_is_never_called_a_pin() {
        let mut report = user(None, None);
        for (setting, says) in
            [(Some(1), "moves locked pages"), (Some(0), "leaves locked pages alone"), (None, "moves")]
        {
            report.compact_unevictable_allowed = setting;
            let backend = mlock(&report);
            assert!(backend.usable && !backend.pins);
            assert_eq!(backend.addresses, Some(AddressKind::Invented));
            assert!(backend.why.contains("not a pin") && backend.why.contains(says), "{}", backend.why);
        }
        report.pagemap = PagemapAccess::Denied(Errno::EACCES);
        assert!(!mlock(&report).usable);
    }
}
