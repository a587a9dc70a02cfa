//! System calls: results are values, failures are errnos.
//!
//! Addresses of a scenario's memory are numbers: the program has no references into it. A scenario may map over, unmap or
//! protect everything it names; [`map_memory`] never replaces an existing mapping.
#![expect(unsafe_code, reason = "system calls")]

use std::ffi::{CString, c_long, c_ulong};
use std::fmt;
use std::ptr;

use prereg_scenario::transcript::Errno;

/// The result of a system call.
pub(crate) type Result = std::result::Result<i64, Errno>;

fn checked(result: i64) -> Result {
    if result < 0 {
        Err(Errno(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)))
    } else {
        Ok(result)
    }
}

fn file(result: Result) -> std::result::Result<i32, Errno> {
    result.and_then(|fd| i32::try_from(fd).map_err(|_| Errno(libc::EOVERFLOW)))
}

/// A C string; one with a zero inside is refused.
fn c_text(text: &str) -> std::result::Result<CString, Errno> {
    CString::new(text).map_err(|_| Errno(libc::EINVAL))
}

// ---- files and ioctls

pub(crate) fn open(path: &str) -> std::result::Result<i32, Errno> {
    open_with(path, libc::O_RDWR | libc::O_CLOEXEC)
}

fn open_with(path: &str, flags: i32) -> std::result::Result<i32, Errno> {
    let path = c_text(path)?;
    // SAFETY: the path is a string that ends in zero; the mode matters only if a file is made.
    file(checked(i64::from(unsafe { libc::open(path.as_ptr(), flags, 0o600) })))
}

pub(crate) fn close(fd: i32) -> Result {
    // SAFETY: descriptors are numbers in this program, so no owner loses one.
    checked(i64::from(unsafe { libc::close(fd) }))
}

pub(crate) fn duplicate(fd: i32) -> std::result::Result<i32, Errno> {
    // SAFETY: duplicating touches no memory.
    file(checked(i64::from(unsafe { libc::dup(fd) })))
}

fn set_size(fd: i32, size: u64) -> Result {
    let size = i64::try_from(size).map_err(|_| Errno(libc::EINVAL))?;
    // SAFETY: no memory is handed over.
    checked(i64::from(unsafe { libc::ftruncate(fd, size) }))
}

/// Opens or makes the file `path`; if it cannot get its size, mapping it fails.
pub(crate) fn create_sized(path: &str, size: u64) -> std::result::Result<i32, Errno> {
    let fd = open_with(path, libc::O_RDWR | libc::O_CREAT)?;
    let _ = set_size(fd, size);
    Ok(fd)
}

/// An anonymous memory file of `size` bytes.
pub(crate) fn memory_file(size: u64) -> std::result::Result<i32, Errno> {
    // SAFETY: the name is a string that ends in zero.
    let fd = file(checked(i64::from(unsafe { libc::memfd_create(c"repeated".as_ptr(), 0) })))?;
    match set_size(fd, size) {
        Ok(_) => Ok(fd),
        Err(errno) => {
            let _ = close(fd);
            Err(errno)
        }
    }
}

/// An ioctl whose argument is a number, or an address of the scenario.
pub(crate) fn ioctl(fd: i32, request: u64, argument: u64) -> Result {
    // SAFETY: the requests of scenarios take no argument, a number, or an address that is no memory of this program.
    checked(i64::from(unsafe { libc::ioctl(fd, request as c_ulong, argument) }))
}

/// The argument struct of an ioctl: numbers in the kernel's layout.
pub(crate) trait Argument {}

/// An ioctl on a struct, which the kernel may change.
pub(crate) fn ioctl_on<T: Argument>(fd: i32, request: u64, argument: &mut T) -> Result {
    // SAFETY: the struct is the request's own, lives through the call, and any bits are a value of its fields.
    checked(i64::from(unsafe { libc::ioctl(fd, request as c_ulong, ptr::from_mut(argument)) }))
}

/// An ioctl on a name.
pub(crate) fn ioctl_text(fd: i32, request: u64, text: &str) -> Result {
    let text = c_text(text)?;
    // SAFETY: the kernel reads the name up to its zero.
    checked(i64::from(unsafe { libc::ioctl(fd, request as c_ulong, text.as_ptr()) }))
}

/// The size of `T` for `argsz`.
pub(crate) const fn size_of_u32<T>() -> u32 {
    size_of::<T>() as u32
}

macro_rules! arguments {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $kind:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default)]
        #[repr(C)]
        pub(crate) struct $name { $(pub(crate) $field: $kind,)* }
        impl Argument for $name {}
    )*};
}

// The layouts of `linux/vfio.h`.
arguments! {
    GroupStatus { argsz: u32, flags: u32, }
    TceInfo {
        argsz: u32, flags: u32, dma32_window_start: u32, dma32_window_size: u32,
        page_sizes: u64, most_windows: u32, levels: u32,
    }
    RegisterMemory { argsz: u32, flags: u32, vaddr: u64, size: u64, }
    TceCreate {
        argsz: u32, flags: u32, page_shift: u32, reserved: u32,
        window_size: u64, levels: u32, reserved_too: u32, start_addr: u64,
    }
    TceRemove { argsz: u32, flags: u32, start_addr: u64, }
    DmaMap { argsz: u32, flags: u32, vaddr: u64, iova: u64, size: u64, }
    DmaUnmap { argsz: u32, flags: u32, iova: u64, size: u64, }
    /// `struct mm_iommu_call` of the module.
    RegionCall { call: u32, slot: i32, user: u64, amount: u64, host: u64, result: i64, }
}
impl Argument for i32 {}

// ---- memory

/// Access rights of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Access(i32);

impl Access {
    pub(crate) const READ_WRITE: Self = Self(libc::PROT_READ | libc::PROT_WRITE);

    /// The letters `r`, `w` and `x` in any order; without any of them, no access.
    pub(crate) fn parse(text: &str) -> Self {
        let bit = |letter, bit| if text.contains(letter) { bit } else { 0 };
        Self(bit('r', libc::PROT_READ) | bit('w', libc::PROT_WRITE) | bit('x', libc::PROT_EXEC))
    }

    pub(crate) fn writes(self) -> bool {
        self.0 & libc::PROT_WRITE != 0
    }
}

/// The backing of a mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Backing {
    Anonymous,
    File { fd: i32, offset: u64 },
}

/// A mapping.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Mapping {
    pub(crate) at: u64,
    pub(crate) size: u64,
    pub(crate) access: Access,
    pub(crate) shared: bool,
    /// The size of huge pages.
    pub(crate) huge: Option<u64>,
    pub(crate) backing: Backing,
}

pub(crate) fn map_memory(mapping: &Mapping) -> Result {
    let (mut flags, fd, offset) = match mapping.backing {
        Backing::Anonymous => (libc::MAP_ANONYMOUS, -1, 0),
        Backing::File { fd, offset } => (0, fd, offset),
    };
    flags |= libc::MAP_FIXED_NOREPLACE;
    flags |= if mapping.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    if let Some(size) = mapping.huge {
        // Hugetlb takes the exponent of the size in the six bits above bit 26.
        flags |= libc::MAP_HUGETLB | ((size.trailing_zeros() & 63) << 26) as i32;
    }
    let (size, offset) = (length(mapping.size)?, offset as i64);
    // SAFETY: NOREPLACE leaves every mapping alone that this program has.
    let at = unsafe { libc::mmap(address(mapping.at), size, mapping.access.0, flags, fd, offset) };
    if at == libc::MAP_FAILED { checked(-1) } else { Ok(0) }
}

fn address<T>(at: u64) -> *mut T {
    ptr::with_exposed_provenance_mut(at as usize)
}

fn length(size: u64) -> std::result::Result<usize, Errno> {
    usize::try_from(size).map_err(|_| Errno(libc::EINVAL))
}

pub(crate) fn unmap_memory(at: u64, size: u64) -> Result {
    // SAFETY: the range is the scenario's memory, into which the program holds no reference.
    checked(i64::from(unsafe { libc::munmap(address(at), length(size)?) }))
}

pub(crate) fn protect(at: u64, size: u64, access: Access) -> Result {
    // SAFETY: as for unmapping.
    checked(i64::from(unsafe { libc::mprotect(address(at), length(size)?, access.0) }))
}

pub(crate) fn lock_memory(at: u64, size: u64) -> Result {
    // SAFETY: locking changes no contents.
    checked(i64::from(unsafe { libc::mlock(address(at), length(size)?) }))
}

pub(crate) fn unlock_memory(at: u64, size: u64) -> Result {
    // SAFETY: unlocking changes no contents.
    checked(i64::from(unsafe { libc::munlock(address(at), length(size)?) }))
}

pub(crate) fn advise(at: u64, size: u64, advice: i32) -> Result {
    // SAFETY: the range is the scenario's memory, into which the program holds no reference.
    checked(i64::from(unsafe { libc::madvise(address(at), length(size)?, advice) }))
}

/// Writes `byte` to the first byte of every page of the range. A page that is not writable kills the process, which the
/// scenario intends.
pub(crate) fn write_pages(at: u64, size: u64, page: u64, byte: u8) {
    let mut offset = 0;
    while offset < size {
        let place: *mut u8 = address(at.wrapping_add(offset));
        // SAFETY: the range is the scenario's memory, into which the program holds no reference.
        unsafe { place.write_volatile(byte) };
        offset += page;
    }
}

// ---- the process

/// The end of a child.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum End {
    Exit(i32),
    Signal(i32),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exit(code) => write!(f, "{code}"),
            Self::Signal(signal) => write!(f, "-{signal}"),
        }
    }
}

/// Runs `work` in a child process and waits for its end.
pub(crate) fn fork_and_wait(work: impl FnOnce()) -> End {
    // SAFETY: the program has one thread, so the copy finds no lock taken.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        work();
        // SAFETY: ends this process only; destructors belong to the parent.
        unsafe { libc::_exit(0) };
    }
    let mut status = 0;
    // SAFETY: the status lives through the call. A failed fork (-1) waits for any child, of which there is none.
    unsafe { libc::waitpid(pid, &raw mut status, 0) };
    match pid {
        -1 => End::Signal(0),
        _ if libc::WIFEXITED(status) => End::Exit(libc::WEXITSTATUS(status)),
        _ => End::Signal(libc::WTERMSIG(status)),
    }
}

pub(crate) fn limit_locked_memory(bytes: u64) -> Result {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
    // SAFETY: the struct lives through the call.
    checked(i64::from(unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) }))
}

pub(crate) fn set_user(user: u64) -> Result {
    // SAFETY: the program has one thread.
    checked(i64::from(unsafe { libc::setuid(user as u32) }))
}

#[derive(Debug)]
#[repr(C)]
struct CapabilityHead {
    version: u32,
    pid: i32,
}

#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct CapabilityWord {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// The version of the capability calls with two words.
const CAPABILITIES_OF_64_BITS: u32 = 0x2008_0522;

/// Drops a capability of this process for good.
pub(crate) fn drop_capability(capability: u32) -> Result {
    let mut head = CapabilityHead { version: CAPABILITIES_OF_64_BITS, pid: 0 };
    let mut words = [CapabilityWord::default(); 2];
    // SAFETY: head and words have the layout of this version and live through the call.
    checked(unsafe { libc::syscall(libc::SYS_capget, &raw mut head, words.as_mut_ptr()) })?;
    let word = &mut words[(capability / 32) as usize & 1];
    let rest = !(1 << (capability % 32));
    word.effective &= rest;
    word.permitted &= rest;
    word.inheritable &= rest;
    // SAFETY: as above; the kernel only reads.
    checked(unsafe { libc::syscall(libc::SYS_capset, &raw mut head, words.as_ptr()) })
}

// ---- the machine

pub(crate) fn mount(kind: &str, place: &str) {
    let (Ok(kind), Ok(place)) = (c_text(kind), c_text(place)) else { return };
    // SAFETY: three strings that end in zero, and no data. A failure shows later.
    unsafe { libc::mount(kind.as_ptr(), place.as_ptr(), kind.as_ptr(), 0, ptr::null()) };
}

/// Makes the console this process's input and output; the kernel found none before /dev was mounted.
pub(crate) fn take_console() {
    let Ok(fd) = open("/dev/console") else { return };
    for standard in 0..=2 {
        // SAFETY: the standard descriptors are replaced on purpose; nothing was printed yet.
        unsafe { libc::dup2(fd, standard) };
    }
}

/// Keeps the kernel's messages off the console; a warning enables them again.
pub(crate) fn quieten_console() {
    const SET_CONSOLE_LEVEL: c_long = 8;
    // SAFETY: this call of syslog takes no buffer.
    unsafe { libc::syscall(libc::SYS_syslog, SET_CONSOLE_LEVEL, ptr::null::<u8>(), 1 as c_long) };
}

pub(crate) fn page_size() -> u64 {
    // SAFETY: asks for a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// Loads the module in `file`; the kernel decompresses it if it is `packed`.
pub(crate) fn insert_module(file: &str, packed: bool) -> Result {
    const COMPRESSED: c_long = 4;
    let fd = open_with(file, libc::O_RDONLY | libc::O_CLOEXEC)?;
    let flags = if packed { COMPRESSED } else { 0 };
    // SAFETY: the parameters are an empty string that ends in zero.
    let inserted =
        checked(unsafe { libc::syscall(libc::SYS_finit_module, c_long::from(fd), c"".as_ptr(), flags) });
    let _ = close(fd);
    inserted
}

/// Switches the machine off. Does not return, because process 1 must not end.
pub(crate) fn power_off() -> ! {
    // SAFETY: no memory is handed over.
    unsafe { libc::reboot(libc::RB_POWER_OFF) };
    loop {
        // SAFETY: waits for a signal.
        unsafe { libc::pause() };
    }
}
