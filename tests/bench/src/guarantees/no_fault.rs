//! The no-fault guarantee: mapping and unmapping, in a signal handler too, cause no page fault, no allocation and no system
//! call.
//!
//! The kernel counts faults (`getrusage`), the program's allocator counts allocations, and a seccomp filter kills the process
//! at the first system call that is not needed to report the result.

#![expect(unsafe_code, reason = "an allocator, a signal handler and a thread that may make no system call")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::UnsafeCell;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};

use prereg::{PageShift, Translator, UserAddr};

/// An allocator that counts.
#[derive(Debug)]
pub struct CountingAllocator {
    calls: AtomicU64,
    bytes: AtomicU64,
}

impl CountingAllocator {
    /// An allocator with counters at zero.
    #[must_use]
    pub const fn new() -> Self {
        Self { calls: AtomicU64::new(0), bytes: AtomicU64::new(0) }
    }

    /// Allocations, changes of size and releases so far.
    #[must_use]
    pub fn calls(&self) -> u64 {
        // Relaxed: the caller wants the calls of its own thread.
        self.calls.load(Ordering::Relaxed)
    }

    /// Bytes allocated and not released.
    #[must_use]
    pub fn live(&self) -> u64 {
        // Relaxed: as above.
        self.bytes.load(Ordering::Relaxed)
    }

    fn count(&self, more: usize, less: usize) {
        // Relaxed: counters that order no other memory.
        self.calls.fetch_add(1, Ordering::Relaxed);
        // Relaxed: as above. Wraps on a decrease, as intended.
        self.bytes.fetch_add((more as u64).wrapping_sub(less as u64), Ordering::Relaxed);
    }
}

impl Default for CountingAllocator {
    fn default() -> Self {
        Self::new()
    }
}

// SAFETY: the system's allocator does the work, with the caller's own promises.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        self.count(layout.size(), 0);
        // SAFETY: the caller's promise.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        self.count(0, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        self.count(size, layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.realloc(memory, layout, size) }
    }
}

/// Counters of a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadCounters {
    /// Page faults without I/O.
    pub minor_faults: i64,
    /// Page faults with I/O.
    pub major_faults: i64,
    /// Calls of the allocator by all threads.
    pub allocations: u64,
}

impl ThreadCounters {
    /// Reads the counters of the calling thread by a system call.
    #[must_use]
    pub fn now(allocator: &CountingAllocator) -> Self {
        let mut usage = std::mem::MaybeUninit::<libc::rusage>::zeroed();
        // SAFETY: room for one answer.
        let answer = unsafe { libc::getrusage(libc::RUSAGE_THREAD, usage.as_mut_ptr()) };
        assert_eq!(answer, 0, "no usage of a thread");
        // SAFETY: all zeros is one, and the call has filled it.
        let usage = unsafe { usage.assume_init() };
        Self { minor_faults: usage.ru_minflt, major_faults: usage.ru_majflt, allocations: allocator.calls() }
    }
}

/// The registered pages to map.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// The first page.
    pub first: UserAddr,
    /// Number of pages, a power of two.
    pub pages: u64,
}

/// Maps and unmaps `count` pages in a random order; returns how many were refused.
pub fn map_and_unmap(translator: &mut Translator, target: Target, count: u64) -> u64 {
    let (mut state, mut refused) = (1u64, 0);
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let page = (state >> 33) & (target.pages - 1);
        let ua = UserAddr::new(target.first.raw() + page * PageShift::K4.bytes());
        match translator.map(ua, PageShift::K4) {
            Ok(mapping) => {
                black_box(mapping.hpa());
                translator.unmap(mapping);
            }
            Err(_) => refused += 1,
        }
    }
    refused
}

/// The work of the signal handler, with its own translator.
struct Handler {
    work: UnsafeCell<Option<(Translator, Target, u64)>>,
    done: AtomicU64,
    refused: AtomicU64,
}

// SAFETY: the cell is filled before the handler is installed, and used by the handler alone from then on; a signal is
// blocked while its own handler runs.
unsafe impl Sync for Handler {}

/// A static, because a signal handler takes no argument.
static HANDLER: Handler =
    Handler { work: UnsafeCell::new(None), done: AtomicU64::new(0), refused: AtomicU64::new(0) };

extern "C" fn on_signal(_signal: libc::c_int) {
    // SAFETY: see `Handler`.
    let work = unsafe { &mut *HANDLER.work.get() };
    if let Some((translator, target, count)) = work {
        let refused = map_and_unmap(translator, *target, *count);
        // Relaxed: the reader is the interrupted thread.
        HANDLER.refused.fetch_add(refused, Ordering::Relaxed);
        HANDLER.done.fetch_add(*count, Ordering::Relaxed);
    }
}

/// Makes `signal` map and unmap `count` pages each time it arrives. At most once in a process.
pub fn map_in_handler(signal: libc::c_int, translator: Translator, target: Target, count: u64) {
    // SAFETY: the handler is not installed yet.
    let work = unsafe { &mut *HANDLER.work.get() };
    assert!(work.is_none(), "one handler in a process");
    *work = Some((translator, target, count));
    let handler: extern "C" fn(libc::c_int) = on_signal;
    // SAFETY: the handler does nothing that is not allowed in one.
    let before = unsafe { libc::signal(signal, handler as libc::sighandler_t) };
    assert_ne!(before, libc::SIG_ERR, "the signal cannot be handled");
}

/// Pages that the handler mapped and unmapped, and those that were refused.
#[must_use]
pub fn handled() -> (u64, u64) {
    // Relaxed: see `on_signal`.
    (HANDLER.done.load(Ordering::Relaxed), HANDLER.refused.load(Ordering::Relaxed))
}

/// Locks the program's text and data, its libraries and the calling thread's stack, and returns the number of bytes. Without it
/// the kernel may reclaim a page of code, which a library cannot prevent.
///
/// # Errors
/// The error of `mlock`, or of reading the program's mappings.
pub fn lock_program() -> std::io::Result<u64> {
    let mut locked = 0;
    let mut follows = None;
    for line in std::fs::read_to_string("/proc/self/maps")?.lines() {
        let mut parts = line.split_whitespace();
        let (range, name) = (parts.next().unwrap_or_default(), parts.nth(4).unwrap_or_default());
        let Some((start, end)) = range.split_once('-') else { continue };
        let (Ok(start), Ok(end)) = (usize::from_str_radix(start, 16), usize::from_str_radix(end, 16)) else {
            continue;
        };
        // Zeroed statics have no name and follow a file's data.
        let statics = name.is_empty() && follows == Some(start);
        if name.starts_with('/') || name == "[stack]" || statics {
            follows = Some(end);
            // SAFETY: locks pages, and changes nothing in them.
            let answer = unsafe { libc::mlock(std::ptr::without_provenance(start), end - start) };
            // A mapping without access rights has no pages to lock.
            if answer != 0 && !line.contains("---p") {
                return Err(std::io::Error::last_os_error());
            }
            locked += (end - start) as u64;
        }
    }
    Ok(locked)
}

/// Installs a filter: the kernel kills the process if the calling thread makes a system call other than `write`, `exit_group`,
/// `rt_sigreturn` (the end of a handler) or `getrusage`. Returns `false` if the kernel has no such filter.
pub fn forbid_system_calls() -> bool {
    // Load the call's number; allow four of them; otherwise kill the process.
    const ALLOWED: [libc::c_long; 4] =
        [libc::SYS_write, libc::SYS_exit_group, libc::SYS_rt_sigreturn, libc::SYS_getrusage];
    let statement = |code: u32, jt: u8, jf: u8, k: u32| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut program = vec![statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for (index, number) in ALLOWED.iter().enumerate() {
        let to_allow = (ALLOWED.len() - index) as u8;
        program.push(statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, to_allow, 0, *number as u32));
    }
    program.push(statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_KILL_PROCESS));
    program.push(statement(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
    // SAFETY: takes no memory of ours.
    let no_new = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // The filter must outlive the call, and freeing it may be a system call.
    std::mem::forget(program);
    // SAFETY: the program is valid for as long as the call lasts.
    no_new == 0
        && unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter) } == 0
}
