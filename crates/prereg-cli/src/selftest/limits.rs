//! What an ordinary user may pin: tried by a thread that has lost its privilege, under a limit that is set for it.

use std::sync::Arc;

use prereg::{AddressSpace, Errno, PinError, RegisterError};
use prereg_linux::{GuestMemory, IoUring, KernelCount, MemlockAccount};

use super::report::{Bad, Said, failed, skipped};
use super::rig::{Backend, Rig};
use super::unprivileged::{OtherLimit, drop_privilege};
use crate::quantity::Bytes;

/// What the user may lock beyond what is locked already.
const ALLOWANCE: u64 = 8 << 20;

/// Registers more than the limit, by our count and by the kernel's, and then what the limit allows.
pub(super) fn ordinary_user(rig: &Rig) -> Said {
    // Tables of a window count against the limit of some back ends.
    let in_use = KernelCount::now().map_or(0, |count| count.locked);
    let (limit, bytes) = match OtherLimit::of(in_use + ALLOWANCE) {
        Ok(limit) => limit,
        Err(error) => return failed(format!("setting a limit on locked memory: {error}")),
    };
    let said = std::thread::scope(|scope| {
        let user = scope.spawn(|| match drop_privilege() {
            Ok(dropped) => as_user(rig, dropped, bytes),
            Err(error) => skipped(format!("this thread cannot become an ordinary user's: {error}")),
        });
        user.join().unwrap_or_else(|_| failed("the user's thread panicked"))
    });
    drop(limit);
    said
}

fn as_user(rig: &Rig, dropped: bool, limit: u64) -> Said {
    let words = |error: &dyn std::fmt::Display| Bad::Failed(error.to_string());
    let page = rig.granule().bytes();
    // Whose privilege counts is settled when a ring is made, so the user has one of his own.
    let backend = match &rig.backend {
        Backend::IoUring(_) => Backend::IoUring(Arc::new(IoUring::new().map_err(|error| words(&error))?)),
        other => other.clone(),
    };
    let more = GuestMemory::memfd("more", limit + page).map_err(|error| words(&error))?;
    let new_space = |account| backend.space(account).map_err(|error| words(&error));
    let ours = over(&new_space(None)?, &more)?;
    let asked = new_space(Some(MemlockAccount::with_limit(rig.granule(), None)))?;
    let kernels = over(&asked, &more)?;

    let some = GuestMemory::memfd("some", 1 << 20).map_err(|error| words(&error))?;
    let space = new_space(None)?;
    let registration = space.register(&some).map_err(|error| words(&error))?;
    registration.unregister().map_err(|error| words(&error))?;
    let who = if dropped { "as nobody" } else { "as this user" };
    Ok(format!(
        "{who}, limit {}: {} registered; over it our count says \"{ours}\"; the kernel's \"{kernels}\"",
        Bytes(limit),
        Bytes(1 << 20)
    ))
}

/// The refusal of what is over the limit.
fn over(space: &AddressSpace, memory: &GuestMemory) -> Result<String, Bad> {
    match space.register(memory) {
        Ok(_) => failed(format!("{} were registered over the limit", Bytes(memory.bytes()))),
        Err(
            error @ (RegisterError::Charge { .. } | RegisterError::Pin { error: PinError::Limit { .. }, .. }),
        ) if error.errno() == Errno::ENOMEM => Ok(error.to_string()),
        Err(error) => failed(error),
    }
}
