//! From register to unregister, with DMA at every turn, and a device that reaches nothing in the end.

use std::hint::black_box;
use std::time::Instant;

use prereg::{PageShift, Registration, Translator};
use prereg_linux::{GuestMemory, KernelCount};

use super::edu::{BUFFER_BYTES, Edu, REACH};
use super::faults::FaultLog;
use super::report::{Bad, Report, Said, failed, skipped};
use super::rig::{Exposed, Rig, last};
use super::traced::traced;
use crate::quantity::{Bytes, Count};

/// Large enough for large pages, small enough for an ordinary user's limit.
const MEMORY: u64 = 4 << 20;

/// Notes the steps in order; what builds on a failed one is not tried.
pub(super) fn run(rig: &Rig, edu: Option<&Edu>, maps: u64, report: &mut Report) {
    let memory = match GuestMemory::memfd("selftest", MEMORY) {
        Ok(memory) => memory,
        Err(error) => {
            report.note("memory", failed(error));
            return;
        }
    };
    let registration = match register(rig, &memory) {
        Ok((registration, text)) => {
            report.note("register", Ok(text));
            registration
        }
        Err(bad) => {
            report.note("register", Err(bad));
            return;
        }
    };
    let mut translator = rig.space.translator();
    let bytes = (2 * BUFFER_BYTES).max(2 * rig.granule().bytes());
    let exposed = match rig.expose(&mut translator, registration.ua(), bytes) {
        Ok(exposed) => exposed,
        Err(error) => {
            report.note("map", failed(error));
            return;
        }
    };
    let bus = exposed.bus();
    report.note("map", mapped_text(&exposed, bytes));
    report.note("dma", there_and_back(edu, &memory, bus, 3));
    let Some(registration) = busy(registration, &exposed, report) else { return };
    report.note("still usable", there_and_back(edu, &memory, bus, 5));
    report.note("no calls", no_calls(rig, &mut translator, &registration, maps));

    if let Err(error) = rig.withdraw(&mut translator, exposed) {
        report.note("unmap", failed(error));
        return;
    }
    report.note("unmap", Ok("every mapping given back".to_owned()));
    if rig.table().is_some() {
        // Registered, but in no table: the device must not reach it any more.
        report.note("out of table", unreachable(edu, &memory, bus));
    }
    if !report.note("unregister", unregister(rig, registration)) {
        return;
    }
    report.note("out of reach", unreachable(edu, &memory, bus));
}

fn mapped_text(exposed: &Exposed, bytes: u64) -> Said {
    match exposed.bus() {
        Some(bus) => Ok(format!("{} at bus address {bus:#x}, {} counted", Bytes(bytes), exposed.units())),
        None => Ok(format!("{} in several places, {} counted", Bytes(bytes), exposed.units())),
    }
}

/// Bytes that the kernel counts as locked or pinned.
fn counted() -> Option<u64> {
    KernelCount::now().map(|count| count.locked + count.pinned)
}

fn register(rig: &Rig, memory: &GuestMemory) -> Result<(Registration, String), Bad> {
    let (before, calls) = (counted(), rig.backend.pin_calls());
    let registration = rig.space.register(memory).map_err(|error| Bad::Failed(error.to_string()))?;
    let calls = rig.backend.pin_calls() - calls;
    if calls != 1 {
        return failed(format!("{calls} calls to pin {}, not one", Bytes(MEMORY)));
    }
    let text = format!("{} pinned by one call", Bytes(MEMORY));
    match (before, counted()) {
        (Some(before), Some(after)) => match difference(before, after, rig.backend.may_be_uncounted()) {
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

/// The device, if it reaches `bytes` bytes at `bus`.
fn reaching(edu: Option<&Edu>, bus: Option<u64>, bytes: u64) -> Result<(&Edu, u64), Bad> {
    let Some(edu) = edu else { return skipped("no device that does DMA") };
    let Some(bus) = bus else { return failed("the mapping has no one bus address") };
    if last(bus, bytes).raw() >= REACH {
        return skipped(format!("edu reaches {REACH:#x} bytes only, and the mapping is at {bus:#x}"));
    }
    Ok((edu, bus))
}

/// Memory to device and back into other memory.
fn there_and_back(edu: Option<&Edu>, memory: &GuestMemory, bus: Option<u64>, seed: u8) -> Said {
    let (edu, bus) = reaching(edu, bus, 2 * BUFFER_BYTES)?;
    let text = pattern(BUFFER_BYTES, seed);
    let words = |error: &dyn std::fmt::Display| Bad::Failed(error.to_string());
    memory.write(0, &text).map_err(|error| words(&error))?;
    memory.write(BUFFER_BYTES, &vec![0; text.len()]).map_err(|error| words(&error))?;
    edu.read_memory(bus, BUFFER_BYTES).map_err(Bad::Failed)?;
    edu.write_memory(bus + BUFFER_BYTES, BUFFER_BYTES).map_err(Bad::Failed)?;
    let mut back = vec![0; text.len()];
    memory.read(BUFFER_BYTES, &mut back).map_err(|error| words(&error))?;
    match back.iter().zip(&text).position(|(one, other)| one != other) {
        None => Ok(format!("{} from {bus:#x} to the device and back, all equal", Bytes(BUFFER_BYTES))),
        Some(at) => failed(format!("byte {at} came back as {:#x}, not {:#x}", back[at], text[at])),
    }
}

/// The registration, which must have been refused to go.
fn busy(registration: Registration, exposed: &Exposed, report: &mut Report) -> Option<Registration> {
    match registration.unregister() {
        Ok(()) => {
            report.note("busy", failed("memory that a device can reach was unregistered"));
            None
        }
        Err(refused) => {
            let text = format!("{}: {refused}", refused.errno());
            let right = refused.errno() == prereg::Errno::EBUSY && refused.mapped() == exposed.units();
            report.note("busy", if right { Ok(text) } else { failed(text) });
            Some(refused.into_inner())
        }
    }
}

/// Maps and unmaps pages in an order that caches do not like; answers how many were refused.
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

/// Counts the system calls of many maps: a child that stops at each one does none, and then all of them.
fn no_calls(rig: &Rig, translator: &mut Translator, registration: &Registration, maps: u64) -> Said {
    // Twice the same child but for the maps, so that what it does besides cancels out.
    let mut child = |count| traced(|| u8::from(map_and_unmap(translator, registration, count) != 0));
    let (none, all) = match (child(0), child(maps)) {
        (Ok(none), Ok(all)) => (none, all),
        (Err(error), _) | (_, Err(error)) => {
            return skipped(format!("system calls cannot be counted: {error}"));
        }
    };
    let requests = rig.log.requests();
    let begin = Instant::now();
    let refused = map_and_unmap(translator, registration, maps);
    let took = begin.elapsed();
    let requests = rig.log.requests() - requests;
    let calls = all.stops.abs_diff(none.stops) / 2;
    let text = format!(
        "{} maps and unmaps: {calls} system calls, {requests} requests to the driver, {} refused; {:.1} ns each",
        Count(maps),
        refused + u64::from(all.code != 0),
        took.as_nanos() as f64 / maps.max(1) as f64
    );
    let clean = all.stops == none.stops && requests == 0 && refused == 0 && all.code == 0;
    if clean { Ok(text) } else { failed(text) }
}

fn unregister(rig: &Rig, registration: Registration) -> Said {
    let before = counted();
    if let Err(refused) = registration.unregister() {
        return failed(refused);
    }
    let (pinned, stuck) = rig.backend.pinned();
    if pinned != 0 || stuck != 0 {
        return failed(format!("{pinned} bytes are pinned still, {stuck} stuck"));
    }
    match (before, counted()) {
        (Some(before), Some(after)) => match difference(after, before, rig.backend.may_be_uncounted()) {
            Some(difference) => Ok(format!("the kernel counts {difference} less")),
            None => failed(format!("the kernel counts {before} bytes before and {after} after")),
        },
        _ => Ok("the kernel's count cannot be read".to_owned()),
    }
}

/// The device writes where the memory was, and nothing changes.
fn unreachable(edu: Option<&Edu>, memory: &GuestMemory, bus: Option<u64>) -> Said {
    let (edu, bus) = reaching(edu, bus, BUFFER_BYTES)?;
    let text = vec![0x5a; 2 * BUFFER_BYTES as usize];
    memory.write(0, &text).map_err(|error| Bad::Failed(error.to_string()))?;
    let mut faults = FaultLog::from_now();
    edu.write_memory(bus, BUFFER_BYTES).map_err(Bad::Failed)?;
    let mut back = vec![0; text.len()];
    memory.read(0, &mut back).map_err(|error| Bad::Failed(error.to_string()))?;
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
