//! A thread without privilege, and a temporary limit on locked memory.
#![expect(unsafe_code, reason = "changes the user of one thread, and the limit of the process")]

use std::io;

/// The user and group id of an account without privileges.
const UNPRIVILEGED: libc::c_long = 65534;

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Changes the user of the calling thread, if that is root, to one without privileges. Returns whether it was root.
///
/// The system call changes one thread; the function of libc would change all.
///
/// # Errors
/// The system's error.
pub(super) fn drop_privilege() -> io::Result<bool> {
    // SAFETY: no arguments.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(false);
    }
    // SAFETY: numbers only; open descriptors stay valid.
    check(unsafe { libc::syscall(libc::SYS_setresgid, UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, UNPRIVILEGED, UNPRIVILEGED, UNPRIVILEGED) })?;
    Ok(true)
}

/// A temporary limit on locked memory; the old one is restored when this is dropped.
pub(super) struct TemporaryLimit {
    before: libc::rlimit64,
}

fn limit() -> io::Result<libc::rlimit64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is ours and is written once.
    check(unsafe { libc::getrlimit64(libc::RLIMIT_MEMLOCK, &raw mut limit) }.into())?;
    Ok(limit)
}

fn set(limit: libc::rlimit64) -> io::Result<()> {
    // SAFETY: only read.
    check(unsafe { libc::setrlimit64(libc::RLIMIT_MEMLOCK, &raw const limit) }.into())
}

impl TemporaryLimit {
    /// Sets the soft limit to `bytes`, or to the hard limit if that is lower; also returns the limit in effect.
    ///
    /// # Errors
    /// The system's error.
    pub(super) fn of(bytes: u64) -> io::Result<(Self, u64)> {
        let before = limit()?;
        let wanted = libc::rlimit64 { rlim_cur: bytes, rlim_max: before.rlim_max.max(bytes) };
        let allowed = libc::rlimit64 { rlim_cur: bytes.min(before.rlim_max), rlim_max: before.rlim_max };
        set(wanted).or_else(|_| set(allowed))?;
        Ok((Self { before }, limit()?.rlim_cur))
    }
}

impl Drop for TemporaryLimit {
    fn drop(&mut self) {
        // The old limit is allowed. If this fails, the temporary limit stays for the life of the process.
        let _ = set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_temporary_limit_ends_with_its_owner() {
        let before = limit().unwrap();
        // Just below the old limit, so that concurrent tests are not affected.
        let wanted = before.rlim_cur.min(1 << 40).saturating_sub(4096);
        let (other, bytes) = TemporaryLimit::of(wanted).unwrap();
        assert_eq!((limit().unwrap().rlim_cur, bytes), (wanted, wanted));
        drop(other);
        let after = limit().unwrap();
        assert_eq!((after.rlim_cur, after.rlim_max), (before.rlim_cur, before.rlim_max));
    }

    #[test]
    fn only_one_thread_loses_its_privilege() {
        // SAFETY: no arguments.
        let user = || unsafe { libc::syscall(libc::SYS_geteuid) };
        let before = user();
        let other = std::thread::spawn(move || (drop_privilege().unwrap(), user())).join().unwrap();
        assert_eq!(other.0, before == 0);
        assert_ne!(other.1, 0);
        assert_eq!(user(), before);
    }
}
