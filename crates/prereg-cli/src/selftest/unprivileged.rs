//! A thread without privilege, and a limit for as long as something lasts.
#![expect(unsafe_code, reason = "changes the user of one thread, and the limit of the process")]

use std::io;

/// The user and group that have nothing.
const NOBODY: libc::c_long = 65534;

fn check(result: libc::c_long) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes the calling thread an ordinary user's, for ever, if it is root's. `false` when it was no root's before.
///
/// The system call changes one thread; the library's function would change all of them.
///
/// # Errors
/// What the kernel said.
pub(super) fn drop_privilege() -> io::Result<bool> {
    // SAFETY: takes nothing.
    if unsafe { libc::geteuid() } != 0 {
        return Ok(false);
    }
    // SAFETY: numbers only; this thread keeps what it has open.
    check(unsafe { libc::syscall(libc::SYS_setresgid, NOBODY, NOBODY, NOBODY) })?;
    // SAFETY: as above.
    check(unsafe { libc::syscall(libc::SYS_setresuid, NOBODY, NOBODY, NOBODY) })?;
    Ok(true)
}

/// Another limit on locked memory; it is as it was again when this is dropped.
pub(super) struct OtherLimit {
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

impl OtherLimit {
    /// Sets the soft limit to `bytes`, or as near to it as this process may; answers the limit in effect too.
    ///
    /// # Errors
    /// What the kernel said.
    pub(super) fn of(bytes: u64) -> io::Result<(Self, u64)> {
        let before = limit()?;
        let wanted = libc::rlimit64 { rlim_cur: bytes, rlim_max: before.rlim_max.max(bytes) };
        let allowed = libc::rlimit64 { rlim_cur: bytes.min(before.rlim_max), rlim_max: before.rlim_max };
        set(wanted).or_else(|_| set(allowed))?;
        Ok((Self { before }, limit()?.rlim_cur))
    }
}

impl Drop for OtherLimit {
    fn drop(&mut self) {
        // It was in effect before, so it is allowed; if the kernel thinks otherwise, this one lasts as long as the process.
        let _ = set(self.before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_limit_lasts_as_long_as_its_owner() {
        let before = limit().unwrap();
        // Next to what it was, so that tests that pin at the same time do not notice.
        let wanted = before.rlim_cur.min(1 << 40).saturating_sub(4096);
        let (other, bytes) = OtherLimit::of(wanted).unwrap();
        assert_eq!((limit().unwrap().rlim_cur, bytes), (wanted, wanted));
        drop(other);
        let after = limit().unwrap();
        assert_eq!((after.rlim_cur, after.rlim_max), (before.rlim_cur, before.rlim_max));
    }

    #[test]
    fn one_thread_alone_loses_its_privilege() {
        // SAFETY: takes nothing.
        let user = || unsafe { libc::syscall(libc::SYS_geteuid) };
        let before = user();
        let other = std::thread::spawn(move || (drop_privilege().unwrap(), user())).join().unwrap();
        assert_eq!(other.0, before == 0);
        assert_ne!(other.1, 0);
        assert_eq!(user(), before);
    }
}
