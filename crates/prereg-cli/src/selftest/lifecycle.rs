//! The steps from register to unregister, with DMA at each, and a device that reaches nothing at the end.

use std::hint::black_box;
use std::time::Instant;

use prereg::{PageShift, Registration, Translator};
use prereg_linux::{GuestMemory, KernelCount};

use super::backend::{BackendUnderTest, Exposed, last};
use super::edu::{BUFFER_BYTES, Edu, REACH};
use super::fault_log::FaultLog;
use super::report::{NotPassed, Report, StepResult, failed, skipped};
use super::syscall_count::count_syscalls;
use crate::units::{Bytes, Count};

/// Large enough for large pages, small enough for an ordinary user's limit.
const MEMORY: u64 = 4 << 20;

/// Runs the steps in order, up to a failure on which the next ones depend.
pub(super) fn run(tested: &BackendUnderTest, edu: Option<&Edu>, maps: u64, report: &mut Report) {
    let memory = match GuestMemory::memfd("selftest", MEMORY) {
        Ok(memory) => memory,
        Err(error) => {
            report.record("memory", failed(error));
            return;
        }
    };
    let registration = match register(tested, &memory) {
        Ok((registration, text)) => {
            report.record("register", Ok(text));
            registration
        }
        Err(bad) => {
            report.record("register", Err(bad));
            return;
        }
    };
    let mut translator = tested.space.translator();
    let bytes = (2 * BUFFER_BYTES).max(2 * tested.granule().bytes());
    let exposed = match tested.expose(&mut translator, registration.ua(), bytes) {
        Ok(exposed) => exposed,
        Err(error) => {
            report.record("map", failed(error));
            return;
        }
    };
    let bus = exposed.bus();
    report.record("map", mapped_text(&exposed, bytes));
    report.record("dma", there_and_back(edu, &memory, bus, 3));
    let Some(registration) = busy(registration, &exposed, report) else { return };
    report.record("still usable", there_and_back(edu, &memory, bus, 5));
    report.record("no system calls", no_calls(tested, &mut translator, &registration, maps));

    if let Err(error) = tested.withdraw(&mut translator, exposed) {
        report.record("unmap", failed(error));
        return;
    }
    report.record("unmap", Ok("every mapping released".to_owned()));
    if tested.table().is_some() {
        // Registered, but in no table: the device must not reach it.
        report.record("unmapped", unreachable(edu, &memory, bus));
    }
    if !report.record("unregister", unregister(tested, registration)) {
        return;
    }
    report.record("unreachable", unreachable(edu, &memory, bus));
}

fn mapped_text(exposed: &Exposed, bytes: u64) -> StepResult {
    match exposed.bus() {
        Some(bus) => Ok(format!("{} at bus address {bus:#x}, {} counted", Bytes(bytes), exposed.units())),
        None => Ok(format!("{} in several places, {} counted", Bytes(bytes), exposed.units())),
    }
}

/// Bytes that the kernel counts as locked or pinned.
fn counted() -> Option<u64> {
    KernelCount::now().map(|count| count.locked + count.pinned)
}

fn register(tested: &BackendUnderTest, memory: &GuestMemory) -> Result<(Registration, String), NotPassed> {
    let (before, calls) = (counted(), tested.backend.pin_calls());
    let registration = tested.space.register(memory).map_err(|error| NotPassed::Failed(error.to_string()))?;
    let calls = tested.backend.pin_calls() - calls;
    if calls != 1 {
        return failed(format!("{calls} calls to pin {} instead of one", Bytes(MEMORY)));
    }
    let text = format!("{} pinned by one call", Bytes(MEMORY));
    match (before, counted()) {
        (Some(before), Some(after)) => match difference(before, after, tested.backend.may_be_uncounted()) {
            Some(difference) => Ok((registration, format!("{text}; the kernel counts {difference} more"))),
            None => failed(format!("{text}, but the kernel counts {before} bytes before and {after} after")),
        },
        _ => Ok((registration, text)),
    }
}

/// The kernel's count of [`MEMORY`] that was pinned, as text; `None` if it is too low.
fn difference(without: u64, with: u64, may_be_uncounted: bool) -> Option<String> {
    if may_be_uncounted && with == without {
        return Some("nothing (CAP_IPC_LOCK)".to_owned());
    }
    with.checked_sub(without).filter(|bytes| *bytes >= MEMORY).map(|bytes| Bytes(bytes).to_string())
}

fn pattern(bytes: u64, seed: u8) -> Vec<u8> {
    (0..bytes).map(|i| (i as u8).wrapping_mul(7).wrapping_add(seed)).collect()
}

/// The device, if it can address `bytes` bytes at `bus`.
fn reaching(edu: Option<&Edu>, bus: Option<u64>, bytes: u64) -> Result<(&Edu, u64), NotPassed> {
    let Some(edu) = edu else { return skipped("no device that does DMA") };
    let Some(bus) = bus else { return failed("the mapping is not contiguous on the bus") };
    if last(bus, bytes).raw() >= REACH {
        return skipped(format!("edu reaches {REACH:#x} bytes only, and the mapping is at {bus:#x}"));
    }
    Ok((edu, bus))
}

/// Copies memory to the device and back to other memory.
fn there_and_back(edu: Option<&Edu>, memory: &GuestMemory, bus: Option<u64>, seed: u8) -> StepResult {
    let (edu, bus) = reaching(edu, bus, 2 * BUFFER_BYTES)?;
    let text = pattern(BUFFER_BYTES, seed);
    let failure = |error: &dyn std::fmt::Display| NotPassed::Failed(error.to_string());
    memory.write(0, &text).map_err(|error| failure(&error))?;
    memory.write(BUFFER_BYTES, &vec![0; text.len()]).map_err(|error| failure(&error))?;
    edu.read_memory(bus, BUFFER_BYTES).map_err(NotPassed::Failed)?;
    edu.write_memory(bus + BUFFER_BYTES, BUFFER_BYTES).map_err(NotPassed::Failed)?;
    let mut back = vec![0; text.len()];
    memory.read(BUFFER_BYTES, &mut back).map_err(|error| failure(&error))?;
    match back.iter().zip(&text).position(|(one, other)| one != other) {
        None => Ok(format!("{} from {bus:#x} to the device and back are equal", Bytes(BUFFER_BYTES))),
        Some(at) => failed(format!("byte {at} is {:#x} after the copy instead of {:#x}", back[at], text[at])),
    }
}

/// Unregisters mapped memory, which must be refused.
fn busy(registration: Registration, exposed: &Exposed, report: &mut Report) -> Option<Registration> {
    match registration.unregister() {
        Ok(()) => {
            report.record("busy", failed("memory that a device can reach was unregistered"));
            None
        }
        Err(refused) => {
            let text = format!("{}: {refused}", refused.errno());
            let right = refused.errno() == prereg::Errno::EBUSY && refused.mapped() == exposed.units();
            report.record("busy", if right { Ok(text) } else { failed(text) });
            Some(refused.into_inner())
        }
    }
}

/// Maps and unmaps pages in random order; returns the number of errors.
fn map_and_unmap(translator: &mut Translator, registration: &Registration, count: u64) -> u64 {
    let (page, pages) = (PageShift::K4, registration.bytes() >> PageShift::K4.get());
    let (mut state, mut refused) = (1u64, 0);
    for _ in 0..count {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let offset = ((state >> 33) % pages) << page.get();
        let mapped = registration.ua().checked_add(offset).map(|ua| translator.map(ua, page));
        match mapped {
            Some(Ok(mapping)) => {
                black_box(mapping.hpa());
                translator.unmap(mapping);
            }
            _ => refused += 1,
        }
    }
    refused
}

/// Counts the system calls of `maps` maps and unmaps, by tracing a child.
fn no_calls(
    tested: &BackendUnderTest,
    translator: &mut Translator,
    registration: &Registration,
    maps: u64,
) -> StepResult {
    // A child without maps is subtracted.
    let mut child = |count| count_syscalls(|| u8::from(map_and_unmap(translator, registration, count) != 0));
    let (none, all) = match (child(0), child(maps)) {
        (Ok(none), Ok(all)) => (none, all),
        (Err(error), _) | (_, Err(error)) => {
            return skipped(format!("system calls cannot be counted: {error}"));
        }
    };
    let requests = tested.log.requests();
    let begin = Instant::now();
    let refused = map_and_unmap(translator, registration, maps);
    let took = begin.elapsed();
    let requests = tested.log.requests() - requests;
    let calls = all.stops.abs_diff(none.stops) / 2;
    let text = format!(
        "{} maps and unmaps: {calls} system calls, {requests} requests to the driver, {} errors; {:.1} ns each",
        Count(maps),
        refused + u64::from(all.code != 0),
        took.as_nanos() as f64 / maps.max(1) as f64
    );
    let passed = all.stops == none.stops && requests == 0 && refused == 0 && all.code == 0;
    if passed { Ok(text) } else { failed(text) }
}

fn unregister(tested: &BackendUnderTest, registration: Registration) -> StepResult {
    let before = counted();
    if let Err(refused) = registration.unregister() {
        return failed(refused);
    }
    let (pinned, stuck) = tested.backend.pinned();
    if pinned != 0 || stuck != 0 {
        return failed(format!("{pinned} bytes are still pinned, {stuck} stuck"));
    }
    match (before, counted()) {
        (Some(before), Some(after)) => match difference(after, before, tested.backend.may_be_uncounted()) {
            Some(difference) => Ok(format!("the kernel counts {difference} less")),
            None => failed(format!("the kernel counts {before} bytes before and {after} after")),
        },
        _ => Ok("the kernel's count cannot be read".to_owned()),
    }
}

/// The device writes to the old address, and no byte changes.
fn unreachable(edu: Option<&Edu>, memory: &GuestMemory, bus: Option<u64>) -> StepResult {
    let (edu, bus) = reaching(edu, bus, BUFFER_BYTES)?;
    let text = vec![0x5a; 2 * BUFFER_BYTES as usize];
    memory.write(0, &text).map_err(|error| NotPassed::Failed(error.to_string()))?;
    let mut faults = FaultLog::from_now();
    edu.write_memory(bus, BUFFER_BYTES).map_err(NotPassed::Failed)?;
    let mut back = vec![0; text.len()];
    memory.read(0, &mut back).map_err(|error| NotPassed::Failed(error.to_string()))?;
    if back != text {
        return failed(format!("the device still writes at {bus:#x}"));
    }
    let fault = faults.best().map_or("no fault in the kernel's log".to_owned(), |line| format!("\"{line}\""));
    Ok(format!("the device wrote to {bus:#x} and no byte changed; {fault}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_may_be_uncounted_but_not_miscounted() {
        assert_eq!(difference(0, MEMORY, false).as_deref(), Some("4 MiB"));
        assert_eq!(difference(0, MEMORY, true).as_deref(), Some("4 MiB"));
        assert_eq!(difference(9, 9, true).as_deref(), Some("nothing (CAP_IPC_LOCK)"));
        assert_eq!(difference(9, 9, false), None);
        assert_eq!(difference(0, MEMORY - 1, true), None);
        assert_eq!(difference(MEMORY, 0, true), None);
    }
}
