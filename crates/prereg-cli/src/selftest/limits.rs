//! The limit of an ordinary user, tested by a thread without privilege under a limit set for it.

use std::sync::Arc;

use prereg::{AddressSpace, Errno, PinError, RegisterError};
use prereg_linux::{GuestMemory, IoUring, KernelCount, MemlockAccount};

use super::backend::{Backend, BackendUnderTest};
use super::report::{NotPassed, StepResult, failed, skipped};
use super::unprivileged::{TemporaryLimit, drop_privilege};
use crate::units::Bytes;

/// The limit in excess of the memory locked already.
const ALLOWANCE: u64 = 8 << 20;

/// Registers more than the limit, as counted by prereg and by the kernel, and then an allowed amount.
pub(super) fn ordinary_user(tested: &BackendUnderTest) -> StepResult {
    // Tables of a window count against the limit of some back ends.
    let in_use = KernelCount::now().map_or(0, |count| count.locked);
    let (limit, bytes) = match TemporaryLimit::of(in_use + ALLOWANCE) {
        Ok(limit) => limit,
        Err(error) => return failed(format!("setting a limit on locked memory: {error}")),
    };
    let result = std::thread::scope(|scope| {
        let user = scope.spawn(|| match drop_privilege() {
            Ok(dropped) => as_user(tested, dropped, bytes),
            Err(error) => skipped(format!("this thread cannot drop its privilege: {error}")),
        });
        user.join().unwrap_or_else(|_| failed("the user's thread panicked"))
    });
    drop(limit);
    result
}

fn as_user(tested: &BackendUnderTest, dropped: bool, limit: u64) -> StepResult {
    let failure = |error: &dyn std::fmt::Display| NotPassed::Failed(error.to_string());
    let page = tested.granule().bytes();
    // The privilege of a ring is that of its creator, so this thread makes its own.
    let backend = match &tested.backend {
        Backend::IoUring(_) => Backend::IoUring(Arc::new(IoUring::new().map_err(|error| failure(&error))?)),
        other => other.clone(),
    };
    let more = GuestMemory::memfd("more", limit + page).map_err(|error| failure(&error))?;
    let new_space = |account| backend.space(account).map_err(|error| failure(&error));
    let ours = over(&new_space(None)?, &more)?;
    let asked = new_space(Some(MemlockAccount::with_limit(tested.granule(), None)))?;
    let kernels = over(&asked, &more)?;

    let some = GuestMemory::memfd("some", 1 << 20).map_err(|error| failure(&error))?;
    let space = new_space(None)?;
    let registration = space.register(&some).map_err(|error| failure(&error))?;
    registration.unregister().map_err(|error| failure(&error))?;
    let who = if dropped { "without privilege" } else { "as this user" };
    Ok(format!(
        "{who}, limit {}: {} registered; above it by prereg's count \"{ours}\", by the kernel's \"{kernels}\"",
        Bytes(limit),
        Bytes(1 << 20)
    ))
}

/// The error of registering more than the limit.
fn over(space: &AddressSpace, memory: &GuestMemory) -> Result<String, NotPassed> {
    match space.register(memory) {
        Ok(_) => failed(format!("{} were registered above the limit", Bytes(memory.bytes()))),
        Err(
            error @ (RegisterError::Charge { .. } | RegisterError::Pin { error: PinError::Limit { .. }, .. }),
        ) if error.errno() == Errno::ENOMEM => Ok(error.to_string()),
        Err(error) => failed(error),
    }
}
