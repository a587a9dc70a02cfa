//! Operations on a process's memory, limits and privileges: `mem`, `munmap`, `mlock`, `rlimit_memlock` and others.

use prereg::{Errno, PageShift};
use prereg_scenario::names::Kind;
use prereg_scenario::transcript::Answer;
use prereg_sim::{MapSpec, Protection, SimBacking};

use super::machine::{Machine, OpenFile};
use super::operation::{Operation, Outcome};
use super::transcript::{answer, failed};

/// The end of user addresses.
const TOP: u64 = 1 << 52;
/// Limit of mappings per process.
const MOST_MAPPINGS: u64 = 65_530;
/// Bytes of a device that can be mapped.
const DEVICE_BYTES: u64 = 128 << 10;
/// Signals that kill a process.
const SIGBUS: u32 = 7;
const SIGSEGV: u32 = 11;

fn protection(text: Option<&str>) -> Protection {
    let Some(text) = text else { return Protection::ReadWrite };
    if text.contains('w') {
        Protection::ReadWrite
    } else if text.contains(['r', 'x']) {
        Protection::ReadOnly
    } else {
        Protection::None
    }
}

/// Performs `op` if it belongs to this family.
pub(super) fn perform(op: &mut Operation<'_>) -> Option<Outcome> {
    let answer = match op.name() {
        "mem" if op.needs(3) => return Some(map(op)),
        "memrep" if op.needs(4) => repeat(op),
        "munmap" if op.needs(3) => unmap(op),
        "mprotect" if op.needs(4) => protect(op),
        "mlock" if op.needs(3) => lock(op, true),
        "munlock" if op.needs(3) => lock(op, false),
        "dontneed" if op.needs(3) => advise(op, false),
        "nohuge" if op.needs(3) => advise(op, true),
        "touch" if op.needs(3) => return Some(touch(op)),
        "rlimit_memlock" if op.needs(2) => limit(op),
        "setuid" if op.needs(2) => set_user(op),
        "drop_ipc_lock" => {
            op.process.may_lock = false;
            op.process.apply_limit();
            Answer::done()
        }
        "drop_sys_resource" => {
            op.process.may_raise = false;
            Answer::done()
        }
        _ => return None,
    };
    Some(Outcome::Answered(answer))
}

/// `mem NAME SIZE [at= shared lazy prot= huge= file= off= fd=]`
fn map(op: &mut Operation<'_>) -> Outcome {
    let bytes = op.number(2);
    let at = op.option("at").unwrap_or_else(|| op.place(bytes));
    let result = try_map(op, at, bytes);
    let name = op.word(1);
    op.process.names.set(name, Kind::Memory(bytes), at);
    match result {
        Ok(None) => Outcome::Answered(Answer::done().with(format!("at={at:#x}"))),
        Ok(Some(signal)) => Outcome::Killed(signal),
        Err(errno) => Outcome::Answered(failed(errno).with(format!("at={at:#x}"))),
    }
}

/// Maps memory; returns the signal that writing every page would cause.
fn try_map(op: &mut Operation<'_>, at: u64, asked: u64) -> Result<Option<u32>, Errno> {
    let shared = op.flag("shared");
    let protection = protection(op.text("prot"));
    let page = op.process.page();
    let huge = op.option("huge").map(u64::trailing_zeros);
    let device = op.text("fd");
    let device = device.map(|name| op.file_named(name));
    let file = op.text("file");
    let offset = op.option("off").unwrap_or(0);
    if asked == 0 || at % page != 0 || offset % page != 0 {
        return Err(Errno::EINVAL);
    }
    let unit = match huge {
        Some(shift) => huge_unit(op.process.shared.machine, shift, at)?,
        None => page,
    };
    let bytes = asked.checked_next_multiple_of(unit).ok_or(Errno::ENOMEM)?;
    if bytes > TOP || at > TOP - bytes {
        return Err(Errno::ENOMEM);
    }
    if device.is_none() && huge.is_none() && protection == Protection::ReadWrite && bytes > Machine::RAM {
        return Err(Errno::ENOMEM);
    }
    if !op.process.claim_slices(at, bytes, huge.is_some()) {
        return Err(Errno::EBUSY);
    }
    if op.process.host.is_any_mapped(at, bytes) {
        return Err(Errno::EEXIST);
    }
    let lazy = op.flag("lazy") || device.is_some() || protection != Protection::ReadWrite;
    let mut backing = match huge {
        Some(_) if !op.process.shared.take_huge(bytes / unit) => return Err(Errno::ENOMEM),
        Some(shift) => PageShift::new(shift).map_or(SimBacking::Base, SimBacking::Huge),
        None => SimBacking::Base,
    };
    let mut present = bytes;
    if let Some(device) = device {
        match device.as_deref() {
            Some(OpenFile::Device(_)) if shared && offset == 0 && bytes <= DEVICE_BYTES => {
                backing = SimBacking::Unpinnable;
            }
            Some(OpenFile::Device(_)) => return Err(Errno::EINVAL),
            Some(_) => return Err(Errno::ENODEV),
            None => return Err(Errno::EBADF),
        }
    } else if let Some(file) = file {
        let directory = file.rsplit_once('/').map_or("", |(directory, _)| directory);
        if !matches!(directory, "" | "/tmp" | "/dev") {
            return Err(Errno::EBADF);
        }
        // The file gets the requested size of the mapping; there is nothing beyond its last page.
        present = asked.saturating_sub(offset).next_multiple_of(page).min(bytes);
    }
    let host = &op.process.host;
    host.map(at, present, MapSpec { backing, protection });
    host.map(at + present, bytes - present, MapSpec { backing: SimBacking::Missing, protection });
    Ok((!lazy && present < bytes).then_some(SIGBUS))
}

/// The size of a huge page, if the machine has such pages and `at` is aligned to one.
fn huge_unit(machine: Machine, shift: u32, at: u64) -> Result<u64, Errno> {
    match machine.huge_pages() {
        Some(offered) if offered.get() == shift && at & offered.mask() == 0 => Ok(offered.bytes()),
        // A guest may request larger pages, of which the pool has none.
        Some(_) if machine == Machine::Pseries && shift == PageShift::G1.get() => Err(Errno::ENOMEM),
        _ => Err(Errno::EINVAL),
    }
}

/// `memrep NAME TOTAL UNIT`: maps the same memory repeatedly.
fn repeat(op: &mut Operation<'_>) -> Answer {
    let (total, unit) = (op.number(2), op.number(3));
    let at = op.place(total);
    let name = op.word(1);
    op.process.names.set(name, Kind::Memory(total), at);
    let extra = format!("at={at:#x}");
    let host = &op.process.host;
    let page = op.process.page();
    let failed = |errno| failed(errno).with(extra.clone());
    if unit == 0 || (unit % page != 0 && total > unit) {
        return failed(Errno::EINVAL);
    }
    let times = total.div_ceil(unit);
    let Some(end) = times.checked_mul(unit).and_then(|bytes| at.checked_add(bytes)).filter(|&end| end <= TOP)
    else {
        return failed(Errno::ENOMEM);
    };
    if times > MOST_MAPPINGS || unit > Machine::RAM {
        return failed(Errno::ENOMEM);
    }
    if host.is_any_mapped(at, end - at) {
        return failed(Errno::EEXIST);
    }
    if times > 0 {
        host.map(at, unit, MapSpec::default());
    }
    for time in 1..times {
        host.map_alias(at + time * unit, at, unit);
    }
    Answer::done().with(extra)
}

/// A range as the memory calls define it: aligned, and rounded up to whole pages. `Err` if they refuse it.
fn range(op: &mut Operation<'_>, too_far: Errno) -> Result<(u64, u64), Errno> {
    let (at, bytes) = (op.number(1), op.number(2));
    let page = op.process.page();
    if at % page != 0 {
        return Err(Errno::EINVAL);
    }
    let bytes = bytes.checked_next_multiple_of(page).filter(|bytes| at.checked_add(*bytes).is_some());
    let bytes = bytes.ok_or(too_far)?;
    if bytes > TOP || at > TOP - bytes { Err(too_far) } else { Ok((at, bytes)) }
}

fn unmap(op: &mut Operation<'_>) -> Answer {
    answer(range(op, Errno::EINVAL).and_then(|(at, bytes)| {
        if bytes == 0 {
            return Err(Errno::EINVAL);
        }
        op.process.host.unmap(at, bytes);
        Ok(())
    }))
}

fn protect(op: &mut Operation<'_>) -> Answer {
    let allowed = protection(Some(op.word(3)));
    answer(range(op, Errno::ENOMEM).and_then(|(at, bytes)| {
        let mapped = op.process.host.is_mapped(at, bytes);
        op.process.host.protect(at, bytes, allowed);
        if mapped { Ok(()) } else { Err(Errno::ENOMEM) }
    }))
}

fn lock(op: &mut Operation<'_>, lock: bool) -> Answer {
    let (at, bytes) = (op.number(1), op.number(2));
    let process = &op.process;
    if lock && process.limit == Some(0) && !process.may_lock {
        return failed(Errno::EPERM);
    }
    let page = process.page();
    let length = (at % page).checked_add(bytes).and_then(|bytes| bytes.checked_next_multiple_of(page));
    let Some(end) = length.and_then(|length| (at - at % page).checked_add(length)) else {
        return failed(Errno::EINVAL);
    };
    if end > TOP {
        return failed(Errno::ENOMEM);
    }
    answer(if lock { process.host.mlock(at, bytes) } else { process.host.munlock(at, bytes) })
}

/// Discarding pages, or keeping small pages. Neither changes registered memory.
fn advise(op: &mut Operation<'_>, locked_may: bool) -> Answer {
    answer(range(op, Errno::EINVAL).and_then(|(at, bytes)| {
        let host = &op.process.host;
        if bytes == 0 {
            Ok(())
        } else if !host.is_mapped(at, bytes) {
            Err(Errno::ENOMEM)
        } else if !locked_may && host.is_any_locked(at, bytes) {
            Err(Errno::EINVAL)
        } else {
            Ok(())
        }
    }))
}

fn touch(op: &mut Operation<'_>) -> Outcome {
    let (at, bytes) = (op.number(1), op.number(2));
    let inside = at.checked_add(bytes).is_some_and(|end| end <= TOP);
    if bytes == 0 || (inside && op.process.host.is_writable(at, bytes)) {
        Outcome::Answered(Answer::done())
    } else {
        Outcome::Killed(SIGSEGV)
    }
}

fn limit(op: &mut Operation<'_>) -> Answer {
    let wanted = if op.word(1) == "inf" { None } else { Some(op.number(1)) };
    let process = &mut *op.process;
    let raises = match (process.limit, wanted) {
        (Some(now), Some(wanted)) => wanted > now,
        (Some(_), None) => true,
        (None, _) => false,
    };
    if raises && !process.may_raise {
        return failed(Errno::EPERM);
    }
    process.limit = wanted;
    process.apply_limit();
    Answer::done()
}

fn set_user(op: &mut Operation<'_>) -> Answer {
    let wanted = op.number(1);
    let process = &mut *op.process;
    if process.user != 0 && wanted != process.user {
        return failed(Errno::EPERM);
    }
    process.user = wanted;
    if wanted != 0 {
        (process.may_lock, process.may_raise) = (false, false);
        process.apply_limit();
    }
    Answer::done()
}
