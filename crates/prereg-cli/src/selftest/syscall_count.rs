//! Counts the system calls of a function, which runs in a traced child.
#![expect(unsafe_code, reason = "fork and ptrace")]

use std::io;

/// The result of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SyscallCount {
    /// Stops at the entry or exit of a system call.
    pub(super) stops: u64,
    /// The return value of its function.
    pub(super) code: i32,
}

/// The stop signal at a system call, which distinguishes it from a trap.
const SYSTEM_CALL: libc::c_int = libc::SIGTRAP | 0x80;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Runs `work` in a child made by `fork` and counts its stops at system calls, `_exit` included.
///
/// The child has only this thread, and ends without destructors. `work` must not lock or allocate: another thread may have held
/// the lock at the fork.
///
/// # Errors
/// Those of `fork`, `ptrace` or `waitpid`; the child is killed.
pub(super) fn count_syscalls(work: impl FnOnce() -> u8) -> io::Result<SyscallCount> {
    // SAFETY: the child runs `work`, which neither locks nor allocates, and ends by `_exit`.
    let child = unsafe { libc::fork() };
    if child == 0 {
        // SAFETY: makes the parent the tracer; no memory is touched.
        let traced = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
        if traced != 0 {
            // SAFETY: ends the child.
            unsafe { libc::_exit(255) };
        }
        // SAFETY: stops the child until the parent continues it.
        unsafe { libc::raise(libc::SIGSTOP) };
        let code = work();
        // SAFETY: ends the child.
        unsafe { libc::_exit(i32::from(code)) };
    }
    check(i64::from(child))?;
    let mut running = Child { pid: child, gone: false };
    running.wait()?;
    if running.gone {
        return Err(io::Error::other("the child may not be traced"));
    }
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_EXITKILL;
    // SAFETY: the child is stopped and traced by this thread.
    check(unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, child, 0, options) } as i64)?;
    let mut stops = 0;
    loop {
        // SAFETY: as above.
        check(unsafe { libc::ptrace(libc::PTRACE_SYSCALL, child, 0, 0) } as i64)?;
        let status = running.wait()?;
        if libc::WIFEXITED(status) {
            return Ok(SyscallCount { stops, code: libc::WEXITSTATUS(status) });
        }
        if !libc::WIFSTOPPED(status) {
            return Err(io::Error::other(format!(
                "the child was ended by signal {}",
                libc::WTERMSIG(status)
            )));
        }
        stops += u64::from(libc::WSTOPSIG(status) == SYSTEM_CALL);
    }
}

/// A child that is killed when this is dropped.
struct Child {
    pid: libc::pid_t,
    gone: bool,
}

impl Child {
    fn wait(&mut self) -> io::Result<libc::c_int> {
        let mut status = 0;
        loop {
            // SAFETY: `status` is ours and is written once.
            let result = unsafe { libc::waitpid(self.pid, &raw mut status, 0) };
            match check(i64::from(result)) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
                Ok(_) => break,
            }
        }
        self.gone = libc::WIFEXITED(status) || libc::WIFSIGNALED(status);
        Ok(status)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.gone {
            return;
        }
        // SAFETY: a child of this process that was not reaped.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        while !self.gone {
            if self.wait().is_err() {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_system_calls() -> u8 {
        for _ in 0..2 {
            // SAFETY: no arguments.
            unsafe { libc::syscall(libc::SYS_getppid) };
        }
        7
    }

    #[test]
    fn every_system_call_is_counted() {
        let (Ok(none), Ok(two)) = (count_syscalls(|| 7), count_syscalls(two_system_calls)) else {
            eprintln!("skipped: this process may not trace its children");
            return;
        };
        assert_eq!((none.code, two.code), (7, 7));
        // Two stops for each call: entry and exit.
        assert_eq!(two.stops - none.stops, 4);
    }
}
