//! Limits of an ordinary user: locked memory, and hidden page frames.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use prereg::{AddressKind, AddressSpace, ChargeError, Errno, PageShift, Pin, PinError, RegisterError};
use prereg_linux::{BackendError, GuestMemory, HostReport, IoUring, Mlock, PagemapAccess, SlotAddress};

use crate::pins::{pin, pinned};
use crate::raw;
use crate::{Outcome, ROLE, Test, need_pins, need_root};

pub(crate) const TESTS: &[Test] = &[
    ("an_ordinary_user_pins_within_the_limit_and_is_told_beyond_it", ordinary_user),
    ("an_ordinary_user_without_any_locked_memory_gets_no_ring", nothing_allowed),
    ("root_without_the_capability_is_limited_too", no_capability),
];

const NOBODY: u32 = 65534;
const LIMIT: u64 = 8 << 20;

/// Runs this program again in a role, as an ordinary user.
fn as_nobody(role: &str) -> Outcome {
    let program = std::env::current_exe().unwrap();
    let mut command = Command::new(program);
    command.env(ROLE, role);
    if need_root().is_ok() {
        command.uid(NOBODY).gid(NOBODY);
    }
    match command.status() {
        Ok(status) => {
            assert!(status.success(), "{role}: {status}");
            Ok(())
        }
        Err(error) => Err(format!("this program cannot be run by user {NOBODY}: {error}")),
    }
}

fn ordinary_user() -> Outcome {
    need_pins(0)?;
    as_nobody("limited")
}

fn nothing_allowed() -> Outcome {
    need_pins(0)?;
    as_nobody("no-memlock")
}

fn no_capability() -> Outcome {
    need_root()?;
    let program = std::env::current_exe().unwrap();
    let status = Command::new("setpriv")
        .args(["--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock"])
        .arg(program)
        .env(ROLE, "root-without-ipc-lock")
        .status();
    match status {
        Ok(status) => {
            assert!(status.success(), "{status}");
            Ok(())
        }
        Err(error) => Err(format!("setpriv: {error}")),
    }
}

/// The account refuses before the kernel does; both errors name the request and the limit.
fn meet_the_limit(uring: &std::sync::Arc<IoUring>) {
    let empty = pinned();
    let space = AddressSpace::builder(std::sync::Arc::clone(uring)).build().unwrap();
    let small = GuestMemory::anonymous(4 << 20).unwrap();
    let registration = space.register(&small).unwrap();
    assert_eq!(pinned(), empty + (4 << 20));
    let large = GuestMemory::anonymous(16 << 20).unwrap();
    let error = space.register(&large).unwrap_err();
    let RegisterError::Charge { error: ChargeError::OverLimit { need, charged, limit }, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((need, charged, limit), (4096, 1024, LIMIT >> 12));
    assert!(error.to_string().contains("ulimit -l"), "{error}");
    let error = pin(&**uring, &large).unwrap_err();
    assert_eq!(error, PinError::Limit { need: 16 << 20, used: 4 << 20, limit: LIMIT });
    registration.unregister().unwrap();
    assert_eq!((pinned(), uring.account().charged()), (empty, 0));
    // Exactly the limit: the account allows it, but the kernel also charges the ring's own memory.
    let exact = GuestMemory::anonymous(LIMIT).unwrap();
    match space.register(&exact) {
        Ok(registration) => registration.unregister().unwrap(),
        Err(RegisterError::Pin { error: PinError::Limit { need, limit, .. }, .. }) => {
            assert_eq!((need, limit), (LIMIT, LIMIT));
        }
        Err(error) => panic!("{error}"),
    }
    assert_eq!((pinned(), uring.account().charged()), (empty, 0));
    assert_eq!(uring.state().slots_used, 0);
}

pub(crate) fn limited() -> ExitCode {
    raw::limit_memlock(LIMIT);
    let uring = std::sync::Arc::new(IoUring::new().unwrap());
    assert_eq!(uring.account().limit(), Some(LIMIT >> 12));
    assert_eq!(uring.address_kind(), AddressKind::SlotOffset);
    assert!(uring.address_note().contains("CAP_SYS_ADMIN"));
    meet_the_limit(&uring);
    let space = AddressSpace::builder(uring).build().unwrap();
    let memory = GuestMemory::memfd("ordinary", 1 << 20).unwrap();
    let registration = space.register(&memory).unwrap();
    let mapping = space.translator().map(memory.ua(), PageShift::K4).unwrap();
    assert!(SlotAddress::of(mapping.hpa()).is_some());
    drop(mapping);
    registration.unregister().unwrap();
    assert_eq!(
        IoUring::builder().addresses(AddressKind::Physical).build().unwrap_err(),
        BackendError::FramesHidden
    );
    assert_eq!(Mlock::new().unwrap().address_kind(), AddressKind::Invented);
    let report = HostReport::probe();
    assert_eq!(report.pagemap, PagemapAccess::Hidden);
    let verdict = report.backend("io-uring").unwrap();
    assert_eq!((verdict.usable, verdict.allowance), (true, Some(LIMIT)));
    assert!(verdict.remedy.is_some());
    ExitCode::SUCCESS
}

pub(crate) fn no_memlock() -> ExitCode {
    raw::limit_memlock(0);
    // Kernels that do not charge rings let this pass.
    if let Err(error) = IoUring::new() {
        assert_eq!(error, BackendError::NoMemory { limit: Some(0) });
        assert_eq!(error.errno(), Errno::ENOMEM);
        let report = HostReport::probe();
        let verdict = report.backend("io-uring").unwrap();
        assert!(!verdict.usable && verdict.remedy.as_ref().unwrap().contains("memlock"), "{verdict:?}");
    }
    ExitCode::SUCCESS
}

pub(crate) fn root_without_ipc_lock() -> ExitCode {
    raw::limit_memlock(LIMIT);
    let uring = std::sync::Arc::new(IoUring::new().unwrap());
    assert_eq!(uring.account().limit(), Some(LIMIT >> 12));
    assert_eq!(uring.address_kind(), AddressKind::Physical);
    meet_the_limit(&uring);
    ExitCode::SUCCESS
}
