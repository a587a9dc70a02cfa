//! The pin back ends of `replay`.
//!
//! [`register`] opens the back end, prefaults the memory and registers it. The [`RegisteredMemory`] owns the address space and
//! the registration until [`RegisteredMemory::release`], which returns a [`LeakCheck`]. If the back end is not chosen and this user
//! may not pin that much, the simulated one is used, with a notice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use prereg::{
    AddressKind, AddressSpace, Charge, ChargeError, Granule, Pin, PinError, RegisterError, Registration,
};

use prereg_linux::{
    GuestMemory, IoUring, KernelCount, Membarrier, MemlockAccount, Mlock, Pagemap, Prefault, PrefaultError,
    prefault,
};
use prereg_sim::SimHost;

use crate::error::CommandError;
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;
use crate::units::{Bytes, Count};

/// A pin back end of `replay`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ReplayBackend {
    /// io-uring if this user may pin that much, otherwise sim
    Auto,
    /// Pins by registered buffers of io_uring
    IoUring,
    /// Locked, but not pinned: pages may move; for comparison
    Mlock,
    /// Simulated: nothing is pinned, addresses are invented
    Sim,
}

/// A back end that pins and charges.
pub trait Host: Pin + Charge {}

impl<T: Pin + Charge + ?Sized> Host for T {}

/// Registered guest memory.
pub struct RegisteredMemory {
    registration: Registration,
    space: Arc<AddressSpace>,
    host: Arc<dyn Host>,
    /// The kernel's count before the registration.
    before: Option<KernelCount>,
    /// Duration of prefault and registration.
    pub took: Duration,
    /// The reason and remedy if the simulated back end replaces another one.
    pub notice: Option<String>,
}

/// Finds pins and charges that remain after the release.
#[derive(Clone, Debug)]
pub struct LeakCheck {
    space: Arc<AddressSpace>,
    before: Option<KernelCount>,
}

impl LeakCheck {
    /// System pages that are still pinned or charged, by the address space's count or the kernel's, whichever is larger.
    #[must_use]
    pub fn leaked_pages(&self) -> u64 {
        let state = self.space.snapshot();
        state.pinned_pages.max(state.charged_pages).max(self.kernel_excess_pages())
    }

    /// System pages that the kernel counts as locked or pinned in excess of the count before the registration.
    #[must_use]
    pub fn kernel_excess_pages(&self) -> u64 {
        match (self.before, KernelCount::now()) {
            (Some(before), Some(now)) => {
                let excess =
                    now.pinned.saturating_sub(before.pinned) + now.locked.saturating_sub(before.locked);
                excess.div_ceil(self.space.granule().bytes())
            }
            _ => 0,
        }
    }
}

impl RegisteredMemory {
    /// The address space.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// The back end, for pins without the address space.
    #[must_use]
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    /// The registration.
    pub fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Unregisters.
    ///
    /// # Errors
    /// [`CommandError::Host`] if mappings are live; the message names them.
    pub fn release(self) -> Result<LeakCheck, CommandError> {
        let Self { registration, space, before, .. } = self;
        registration
            .unregister()
            .map_err(|refused| CommandError::host("unregistering guest memory", refused))?;
        Ok(LeakCheck { space, before })
    }
}

impl std::fmt::Debug for RegisteredMemory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegisteredMemory").field("backend", &self.host.name()).finish_non_exhaustive()
    }
}

/// Registers `memory` on a back end.
///
/// # Errors
/// [`CommandError::Host`] if the host refuses, [`CommandError::Interrupted`]; nothing is pinned then.
pub fn register(
    memory: &GuestMemory,
    choice: ReplayBackend,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<RegisteredMemory, CommandError> {
    let what = || format!("pinning {} of guest memory", Bytes(memory.bytes()));
    let started = RegisterFailure::from_choice(choice, memory, interrupt, progress);
    match started {
        Ok(pinned) => Ok(pinned),
        Err(RegisterFailure::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(RegisterFailure::Host(why)) if choice == ReplayBackend::Auto => {
            let mut pinned = register_simulated(memory)
                .map_err(|error| CommandError::host("registering on the simulated back end", error))?;
            pinned.notice = Some(format!(
                "this user cannot pin {}: {why}; replaying on the simulated back end (sim): nothing is pinned, addresses \
                 are invented",
                Bytes(memory.bytes())
            ));
            Ok(pinned)
        }
        Err(RegisterFailure::Host(why)) => Err(CommandError::host(what(), why)),
    }
}

/// Errors of registering on a back end.
enum RegisterFailure {
    Interrupted(Interrupted),
    /// The reason, with the remedy.
    Host(String),
}

impl RegisterFailure {
    fn host(error: impl ToString) -> Self {
        Self::Host(error.to_string())
    }

    fn from_choice(
        choice: ReplayBackend,
        memory: &GuestMemory,
        interrupt: &Interrupt,
        progress: Progress,
    ) -> Result<RegisteredMemory, Self> {
        let host: Arc<dyn Host> = match choice {
            ReplayBackend::Sim => return register_simulated(memory).map_err(Self::Host),
            ReplayBackend::Auto | ReplayBackend::IoUring => Arc::new(IoUring::new().map_err(Self::host)?),
            ReplayBackend::Mlock => Arc::new(Mlock::new().map_err(Self::host)?),
        };
        check_lockable(memory.bytes()).map_err(Self::Host)?;
        let before = KernelCount::now();
        let start = Instant::now();
        prefault_memory(memory, interrupt, progress)?;
        let space = Arc::new(AddressSpace::builder(Arc::clone(&host)).build().map_err(Self::host)?);
        let registration = space.register(memory).map_err(|error| Self::Host(message(&error)))?;
        let took = start.elapsed();
        interrupt.check().map_err(Self::Interrupted)?;
        Ok(RegisteredMemory { registration, space, host, before, took, notice: None })
    }
}

/// Checks the limit on locked memory and the available memory before any page is touched, which takes seconds.
///
/// # Errors
/// The reason and the remedy.
pub fn check_lockable(bytes: u64) -> Result<(), String> {
    let granule = Pagemap::open().map_or(Granule::K4, |map| map.granule());
    let limit = MemlockAccount::with_current_privilege(granule).limit();
    if let Some(limit) = limit.map(|pages| pages << granule.shift().get()) {
        if bytes > limit {
            return Err(format!(
                "its locked-memory limit is {} ({} of {} pages); to allow it, raise RLIMIT_MEMLOCK (ulimit -l {}, or \
                 LimitMEMLOCK={}M in its unit) or give it CAP_IPC_LOCK (run as root)",
                Bytes(limit),
                Count(limit >> granule.shift().get()),
                Count(bytes >> granule.shift().get()),
                bytes / 1024 + SPARE_KIB,
                bytes.div_ceil(1 << 20) + SPARE_KIB / 1024,
            ));
        }
    }
    let available = HostMemory::now().map_or(u64::MAX, |memory| memory.available);
    if bytes > available {
        return Err(format!(
            "this host has {} of memory available; to allow it, free some or run on a larger host",
            Bytes(available)
        ));
    }
    Ok(())
}

/// Addition to a suggested limit, because io_uring charges its rings too.
const SPARE_KIB: u64 = 1024;

/// Prefaults the memory with a thread for each processor; the pin would do it with one.
fn prefault_memory(
    memory: &GuestMemory,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<(), RegisterFailure> {
    let bar = progress.bar("touching guest memory", memory.bytes());
    let report = |done: u64, total: u64| bar.position_of(done, total);
    let flag = interrupt.flag();
    let how = Prefault {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        progress: Some(&report),
        cancel: Some(&flag),
    };
    match prefault(memory, how) {
        Ok(()) => Ok(()),
        Err(PrefaultError::Cancelled { .. }) => Err(RegisterFailure::Interrupted(Interrupted)),
        Err(error) => Err(RegisterFailure::host(error)),
    }
}

/// Registers on the simulated back end; the memory is real.
///
/// # Errors
/// The reason.
fn register_simulated(memory: &GuestMemory) -> Result<RegisteredMemory, String> {
    let sim = SimHost::new(Granule::K4);
    sim.memory(memory.ua().raw(), memory.bytes());
    let host: Arc<dyn Host> = Arc::new(sim);
    let before = KernelCount::now();
    let start = Instant::now();
    let mut builder = AddressSpace::builder(Arc::clone(&host));
    if let Some(barrier) = Membarrier::shared() {
        builder = builder.barrier(barrier);
    }
    let space = Arc::new(builder.build().map_err(|error| error.to_string())?);
    let registration = space.register(memory).map_err(|error| error.to_string())?;
    Ok(RegisteredMemory { registration, space, host, before, took: start.elapsed(), notice: None })
}

/// The message of `error`, with sizes in readable units.
fn message(error: &RegisterError) -> String {
    match error {
        RegisterError::Pin { error: PinError::Limit { need, used, limit }, .. } => format!(
            "its locked-memory limit is {}, {} of it in use and {} needed; to allow it, raise RLIMIT_MEMLOCK (ulimit -l) \
             or give it CAP_IPC_LOCK (run as root)",
            Bytes(*limit),
            Bytes(*used),
            Bytes(*need)
        ),
        RegisterError::Charge { error: ChargeError::OverLimit { need, charged, limit }, .. } => format!(
            "its locked-memory limit is {} pages, {} of them in use and {} needed; to allow it, raise RLIMIT_MEMLOCK \
             (ulimit -l) or give it CAP_IPC_LOCK (run as root)",
            Count(*limit),
            Count(*charged),
            Count(*need)
        ),
        other => other.to_string(),
    }
}

/// The name of an address kind in reports.
#[must_use]
pub const fn address_kind_name(kind: AddressKind) -> &'static str {
    match kind {
        AddressKind::Physical => "physical",
        AddressKind::Iova => "iova",
        AddressKind::SlotOffset => "slot-offset",
        AddressKind::Device => "device",
        AddressKind::User => "user",
        AddressKind::Invented => "invented",
        _ => "other",
    }
}

/// The host's memory, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// Total.
    pub total: u64,
    /// Available without swapping.
    pub available: u64,
}

impl HostMemory {
    /// From `/proc/meminfo`; `None` if it is missing or malformed.
    #[must_use]
    pub fn now() -> Option<Self> {
        Self::parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
        };
        Some(Self { total: bytes("MemTotal")?, available: bytes("MemAvailable")? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_memory_is_read_in_bytes() {
        let text = "MemTotal:       24685684 kB\nMemFree: 1 kB\nMemAvailable:   22000000 kB\n";
        let memory = HostMemory::parse(text).unwrap();
        assert_eq!(memory, HostMemory { total: 24_685_684 * 1024, available: 22_000_000 * 1024 });
        for bad in
            ["", "MemTotal: 1 kB\n", "MemTotal: x kB\nMemAvailable: 1 kB\n", "MemTotal: 1\nMemAvailable: 1\n"]
        {
            assert_eq!(HostMemory::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn the_simulated_back_end_counts_pins_and_releases() {
        let memory = GuestMemory::memfd("simulated", 1 << 20).unwrap();
        let pinned = register(&memory, ReplayBackend::Sim, &Interrupt::default(), Progress::none()).unwrap();
        assert_eq!(pinned.space().snapshot().pinned_pages, 256);
        assert_eq!(pinned.notice, None);
        let check = pinned.release().unwrap();
        assert_eq!(check.space.snapshot().pinned_pages, 0);
        assert_eq!(check.space.snapshot().charged_pages, 0);
    }
}
