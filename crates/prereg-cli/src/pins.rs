//! Choosing how guest memory is pinned, and pinning it.
//!
//! [`register`] makes the back end, faults the memory in, registers it and gives back a [`Pinned`], which owns the
//! address space and the registration until [`Pinned::release`] gives all back and counts what did not come. When the
//! choice is left to us and this user may not pin that much, the pretend back end takes over, and says why.

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

use crate::failure::Failure;
use crate::interrupt::{Interrupt, Interrupted};
use crate::progress::Progress;
use crate::quantity::{Bytes, Count};

/// How to pin.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PinChoice {
    /// io-uring if this user may pin that much, else sim
    Auto,
    /// Real pins, through io_uring's registered buffers
    IoUring,
    /// Locked, but not pinned: pages may still move; for comparison
    Mlock,
    /// Pretend: nothing is pinned, addresses are invented
    Sim,
}

/// Something that pins and charges.
pub trait Host: Pin + Charge {}

impl<T: Pin + Charge + ?Sized> Host for T {}

/// Registered guest memory.
pub struct Pinned {
    /// The one registration; present until `release`.
    registration: Registration,
    space: Arc<AddressSpace>,
    host: Arc<dyn Host>,
    /// What the kernel counted before anything was registered.
    before: Option<KernelCount>,
    /// How long faulting in and registering took.
    pub took: Duration,
    /// Why this is not the back end one would wish for, and what would allow that.
    pub notice: Option<String>,
}

/// What is still held after everything was given back. It can be asked more than once.
#[derive(Clone, Debug)]
pub struct Ledger {
    space: Arc<AddressSpace>,
    before: Option<KernelCount>,
}

impl Ledger {
    /// System pages that are still pinned or charged, by our own books or by the kernel's, whichever says more.
    #[must_use]
    pub fn leaked_pages(&self) -> u64 {
        let state = self.space.snapshot();
        state.pinned_pages.max(state.charged_pages).max(self.kernel_excess_pages())
    }

    /// System pages that the kernel counts as locked or pinned above what it counted before.
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

impl Pinned {
    /// The address space.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// The back end, for pinning beside the address space.
    #[must_use]
    pub fn host(&self) -> &Arc<dyn Host> {
        &self.host
    }

    /// The registration.
    pub fn registration(&self) -> &Registration {
        &self.registration
    }

    /// Unregisters. No mapping may be left.
    ///
    /// # Errors
    /// [`Failure::Host`] when mappings are left: the unregister is refused, as it must be, and they are named.
    pub fn release(self) -> Result<Ledger, Failure> {
        let Self { registration, space, before, .. } = self;
        registration.unregister().map_err(|refused| Failure::host("unregistering guest memory", refused))?;
        Ok(Ledger { space, before })
    }
}

impl std::fmt::Debug for Pinned {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pinned").field("backend", &self.host.name()).finish_non_exhaustive()
    }
}

/// Pins `memory` in the way chosen.
///
/// # Errors
/// [`Failure::Host`] when the host refuses, [`Failure::Interrupted`]; nothing is pinned then.
pub fn register(
    memory: &GuestMemory,
    choice: PinChoice,
    interrupt: &Interrupt,
    progress: Progress,
) -> Result<Pinned, Failure> {
    let what = || format!("pinning {} of guest memory", Bytes(memory.bytes()));
    let started = Refusal::from_choice(choice, memory, interrupt, progress);
    match started {
        Ok(pinned) => Ok(pinned),
        Err(Refusal::Interrupted(interrupted)) => Err(interrupted.into()),
        Err(Refusal::Not(why)) if choice == PinChoice::Auto => {
            let mut pinned = pretend(memory)
                .map_err(|error| Failure::host("registering on the pretend back end", error))?;
            pinned.notice = Some(format!(
                "this user cannot pin {}: {why}; replaying on the pretend back end (sim) instead: nothing is pinned, \
                 addresses are invented",
                Bytes(memory.bytes())
            ));
            Ok(pinned)
        }
        Err(Refusal::Not(why)) => Err(Failure::host(what(), why)),
    }
}

/// Why a real back end did not take the memory.
enum Refusal {
    Interrupted(Interrupted),
    /// In words, with the remedy.
    Not(String),
}

impl Refusal {
    fn not(error: impl ToString) -> Self {
        Self::Not(error.to_string())
    }

    fn from_choice(
        choice: PinChoice,
        memory: &GuestMemory,
        interrupt: &Interrupt,
        progress: Progress,
    ) -> Result<Pinned, Self> {
        let real: Arc<dyn Host> = match choice {
            PinChoice::Sim => return pretend(memory).map_err(Self::Not),
            PinChoice::Auto | PinChoice::IoUring => Arc::new(IoUring::new().map_err(Self::not)?),
            PinChoice::Mlock => Arc::new(Mlock::new().map_err(Self::not)?),
        };
        may_lock(memory.bytes()).map_err(Self::Not)?;
        let before = KernelCount::now();
        let start = Instant::now();
        touch(memory, interrupt, progress)?;
        let space = Arc::new(AddressSpace::builder(Arc::clone(&real)).build().map_err(Self::not)?);
        let registration = space.register(memory).map_err(|error| Self::Not(in_words(&error)))?;
        let took = start.elapsed();
        interrupt.check().map_err(Self::Interrupted)?;
        Ok(Pinned { registration, space, host: real, before, took, notice: None })
    }
}

/// The limit on locked memory and the memory there is, before anything is touched: both refusals come in words, and
/// neither after seconds of faulting pages in.
///
/// # Errors
/// In words: what stands against it, and what would allow it.
pub fn may_lock(bytes: u64) -> Result<(), String> {
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

/// What a limit should have above the memory itself: io_uring charges its rings too.
const SPARE_KIB: u64 = 1024;

/// Faults the memory in with as many threads as there are processors, before the pin would do it with one.
fn touch(memory: &GuestMemory, interrupt: &Interrupt, progress: Progress) -> Result<(), Refusal> {
    let stage = progress.stage("touching guest memory", memory.bytes());
    let report = |done: u64, total: u64| stage.at_of(done, total);
    let flag = interrupt.flag();
    let how = Prefault {
        threads: std::thread::available_parallelism().map_or(1, usize::from),
        progress: Some(&report),
        cancel: Some(&flag),
    };
    match prefault(memory, how) {
        Ok(()) => Ok(()),
        Err(PrefaultError::Cancelled { .. }) => Err(Refusal::Interrupted(Interrupted)),
        Err(error) => Err(Refusal::not(error)),
    }
}

/// Registers on the pretend back end: the memory is real, the pins are not.
///
/// # Errors
/// In words.
fn pretend(memory: &GuestMemory) -> Result<Pinned, String> {
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
    Ok(Pinned { registration, space, host, before, took: start.elapsed(), notice: None })
}

/// A refusal with numbers that people think in.
fn in_words(error: &RegisterError) -> String {
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

/// What the addresses of a back end are called in reports.
#[must_use]
pub const fn address_word(kind: AddressKind) -> &'static str {
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
    /// All of it.
    pub total: u64,
    /// What could be had without swapping.
    pub available: u64,
}

impl HostMemory {
    /// From `/proc/meminfo`; `None` where that is missing or odd.
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
    fn the_pretend_back_end_pins_and_gives_back_in_its_books() {
        let memory = GuestMemory::memfd("pretend", 1 << 20).unwrap();
        let pinned = register(&memory, PinChoice::Sim, &Interrupt::default(), Progress::none()).unwrap();
        assert_eq!(pinned.space().snapshot().pinned_pages, 256);
        assert_eq!(pinned.notice, None);
        let ledger = pinned.release().unwrap();
        assert_eq!(ledger.space.snapshot().pinned_pages, 0);
        assert_eq!(ledger.space.snapshot().charged_pages, 0);
    }
}
