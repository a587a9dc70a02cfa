//! Operations on a process' memory, limits and privileges: `mem`, `munmap`, `mlock`, `rlimit_memlock` and their like.

use prereg::{Errno, PageShift};
use prereg_sim::{MapSpec, Protection, SimBacking};

use super::call::{Call, Fate};
use super::expression::Kind;
use super::machine::{Machine, OpenFile};
use super::transcript::Answer;

/// Where user addresses end.
const TOP: u64 = 1 << 52;
/// Mappings that a process may have.
const MOST_MAPPINGS: u64 = 65_530;
/// The part of a device that can be mapped.
const DEVICE_BYTES: u64 = 128 << 10;
/// Signals that end a process.
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

/// Performs `call` if it is one of this family.
pub(super) fn perform(call: &mut Call<'_>) -> Option<Fate> {
    let answer = match call.op() {
        "mem" if call.needs(3) => return Some(map(call)),
        "memrep" if call.needs(4) => repeat(call),
        "munmap" if call.needs(3) => unmap(call),
        "mprotect" if call.needs(4) => protect(call),
        "mlock" if call.needs(3) => lock(call, true),
        "munlock" if call.needs(3) => lock(call, false),
        "dontneed" if call.needs(3) => advise(call, false),
        "nohuge" if call.needs(3) => advise(call, true),
        "touch" if call.needs(3) => return Some(touch(call)),
        "rlimit_memlock" if call.needs(2) => limit(call),
        "setuid" if call.needs(2) => set_user(call),
        "drop_ipc_lock" => {
            call.process.may_lock = false;
            call.process.apply_limit();
            Answer::done()
        }
        "drop_sys_resource" => {
            call.process.may_raise = false;
            Answer::done()
        }
        _ => return None,
    };
    Some(Fate::Answered(answer))
}

/// `mem NAME SIZE [at= shared lazy prot= huge= file= off= fd=]`
fn map(call: &mut Call<'_>) -> Fate {
    let bytes = call.number(2);
    let at = call.option("at").unwrap_or_else(|| call.place(bytes));
    let result = try_map(call, at, bytes);
    let name = call.word(1).to_owned();
    call.process.names.set(&name, Kind::Memory(bytes), at);
    match result {
        Ok(None) => Fate::Answered(Answer::done().with(format!("at={at:#x}"))),
        Ok(Some(signal)) => Fate::Killed(signal),
        Err(errno) => Fate::Answered(Answer::failed(errno).with(format!("at={at:#x}"))),
    }
}

/// Maps; the signal is what writing every page would have brought.
fn try_map(call: &mut Call<'_>, at: u64, asked: u64) -> Result<Option<u32>, Errno> {
    let shared = call.flag("shared");
    let protection = protection(call.text("prot"));
    let page = call.process.page();
    let huge = call.option("huge").map(u64::trailing_zeros);
    let device = call.text("fd").map(str::to_owned);
    let device = device.map(|name| call.file_named(&name));
    let file = call.text("file").map(str::to_owned);
    let offset = call.option("off").unwrap_or(0);
    if asked == 0 || at % page != 0 || offset % page != 0 {
        return Err(Errno::EINVAL);
    }
    let unit = match huge {
        Some(shift) => huge_unit(call.process.shared.machine, shift, at)?,
        None => page,
    };
    let bytes = asked.checked_next_multiple_of(unit).ok_or(Errno::ENOMEM)?;
    if bytes > TOP || at > TOP - bytes {
        return Err(Errno::ENOMEM);
    }
    if device.is_none() && huge.is_none() && protection == Protection::ReadWrite && bytes > Machine::RAM {
        return Err(Errno::ENOMEM);
    }
    if !call.process.claim_slices(at, bytes, huge.is_some()) {
        return Err(Errno::EBUSY);
    }
    if call.process.host.is_any_mapped(at, bytes) {
        return Err(Errno::EEXIST);
    }
    let lazy = call.flag("lazy") || device.is_some() || protection != Protection::ReadWrite;
    let mut backing = match huge {
        Some(_) if !call.process.shared.take_huge(bytes / unit) => return Err(Errno::ENOMEM),
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
        // The file is made as long as the mapping was asked to be; what lies beyond its last page is not there.
        present = asked.saturating_sub(offset).next_multiple_of(page).min(bytes);
    }
    let host = &call.process.host;
    host.map(at, present, MapSpec { backing, protection });
    host.map(at + present, bytes - present, MapSpec { backing: SimBacking::Missing, protection });
    Ok((!lazy && present < bytes).then_some(SIGBUS))
}

/// The size of a huge page, if the machine has such pages and `at` is the start of one.
fn huge_unit(machine: Machine, shift: u32, at: u64) -> Result<u64, Errno> {
    match machine.huge_pages() {
        Some(offered) if offered.get() == shift && at & offered.mask() == 0 => Ok(offered.bytes()),
        // A guest may ask for larger ones, of which the pool has none.
        Some(_) if machine == Machine::Pseries && shift == PageShift::G1.get() => Err(Errno::ENOMEM),
        _ => Err(Errno::EINVAL),
    }
}

/// `memrep NAME TOTAL UNIT`: the same memory again and again.
fn repeat(call: &mut Call<'_>) -> Answer {
    let (total, unit) = (call.number(2), call.number(3));
    let at = call.place(total);
    let name = call.word(1).to_owned();
    call.process.names.set(&name, Kind::Memory(total), at);
    let extra = format!("at={at:#x}");
    let host = &call.process.host;
    let page = call.process.page();
    let failed = |errno| Answer::failed(errno).with(extra.clone());
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

/// A range as the memory calls take it: a page's start and whole pages, rounded up. `Err` where they refuse it.
fn range(call: &mut Call<'_>, too_far: Errno) -> Result<(u64, u64), Errno> {
    let (at, bytes) = (call.number(1), call.number(2));
    let page = call.process.page();
    if at % page != 0 {
        return Err(Errno::EINVAL);
    }
    let bytes = bytes.checked_next_multiple_of(page).filter(|bytes| at.checked_add(*bytes).is_some());
    let bytes = bytes.ok_or(too_far)?;
    if bytes > TOP || at > TOP - bytes { Err(too_far) } else { Ok((at, bytes)) }
}

fn unmap(call: &mut Call<'_>) -> Answer {
    Answer::of(range(call, Errno::EINVAL).and_then(|(at, bytes)| {
        if bytes == 0 {
            return Err(Errno::EINVAL);
        }
        call.process.host.unmap(at, bytes);
        Ok(())
    }))
}

fn protect(call: &mut Call<'_>) -> Answer {
    let allowed = protection(Some(call.word(3)));
    Answer::of(range(call, Errno::ENOMEM).and_then(|(at, bytes)| {
        let mapped = call.process.host.is_mapped(at, bytes);
        call.process.host.protect(at, bytes, allowed);
        if mapped { Ok(()) } else { Err(Errno::ENOMEM) }
    }))
}

fn lock(call: &mut Call<'_>, lock: bool) -> Answer {
    let (at, bytes) = (call.number(1), call.number(2));
    let process = &call.process;
    if lock && process.limit == Some(0) && !process.may_lock {
        return Answer::failed(Errno::EPERM);
    }
    let page = process.page();
    let length = (at % page).checked_add(bytes).and_then(|bytes| bytes.checked_next_multiple_of(page));
    let Some(end) = length.and_then(|length| (at - at % page).checked_add(length)) else {
        return Answer::failed(Errno::EINVAL);
    };
    if end > TOP {
        return Answer::failed(Errno::ENOMEM);
    }
    Answer::of(if lock { process.host.mlock(at, bytes) } else { process.host.munlock(at, bytes) })
}

/// Advice: discarding pages, or keeping small pages small. Neither changes what is registered.
fn advise(call: &mut Call<'_>, locked_may: bool) -> Answer {
    Answer::of(range(call, Errno::EINVAL).and_then(|(at, bytes)| {
        let host = &call.process.host;
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

fn touch(call: &mut Call<'_>) -> Fate {
    let (at, bytes) = (call.number(1), call.number(2));
    let inside = at.checked_add(bytes).is_some_and(|end| end <= TOP);
    if bytes == 0 || (inside && call.process.host.is_writable(at, bytes)) {
        Fate::Answered(Answer::done())
    } else {
        Fate::Killed(SIGSEGV)
    }
}

fn limit(call: &mut Call<'_>) -> Answer {
    let wanted = if call.word(1) == "inf" { None } else { Some(call.number(1)) };
    let process = &mut *call.process;
    let raises = match (process.limit, wanted) {
        (Some(now), Some(wanted)) => wanted > now,
        (Some(_), None) => true,
        (None, _) => false,
    };
    if raises && !process.may_raise {
        return Answer::failed(Errno::EPERM);
    }
    process.limit = wanted;
    process.apply_limit();
    Answer::done()
}

fn set_user(call: &mut Call<'_>) -> Answer {
    let wanted = call.number(1);
    let process = &mut *call.process;
    if process.user != 0 && wanted != process.user {
        return Answer::failed(Errno::EPERM);
    }
    process.user = wanted;
    if wanted != 0 {
        (process.may_lock, process.may_raise) = (false, false);
        process.apply_limit();
    }
    Answer::done()
}
