//! Calls to the kernel: one for a region of any size, one for each change of a table, none when a device leaves.

use std::time::Instant;

use prereg::{Access, BusAddr, Translator, UserAddr};
use prereg_linux::{GuestMemory, HostReport, KernelCount, SpaprTable};

use super::backend::{Backend, BackendUnderTest};
use super::report::{NotPassed, Report, StepResult, failed, skipped};
use crate::units::Bytes;

/// Registers one large region, by one call.
pub(super) fn one_large_region(tested: &BackendUnderTest, wanted: u64) -> StepResult {
    const UNIT: u64 = 2 << 20;
    let host = HostReport::probe();
    // The rest of the limit, which locked and pinned pages share on some back ends.
    let in_use = host.memlock.counted.map_or(0, |counted| counted.locked + counted.pinned);
    let allowed = host.memlock.allowance().map_or(u64::MAX, |bytes| bytes.saturating_sub(in_use));
    let room = host.memory_available.map_or(u64::MAX, |bytes| bytes / 10 * 8);
    let bytes = wanted.min(allowed).min(room) / UNIT * UNIT;
    if bytes == 0 {
        return skipped("too little memory, or too low a limit on locked memory, for a large region");
    }
    let memory = GuestMemory::anonymous_thp(bytes).map_err(|error| NotPassed::Failed(error.to_string()))?;
    let calls = tested.backend.pin_calls();
    let begin = Instant::now();
    let registration =
        tested.space.register(&memory).map_err(|error| NotPassed::Failed(error.to_string()))?;
    let took = begin.elapsed();
    let calls = tested.backend.pin_calls() - calls;
    let mut runs = 0;
    registration.visit_runs(|_, _, _| runs += 1);
    registration.unregister().map_err(|refused| NotPassed::Failed(refused.to_string()))?;
    let less = if bytes < wanted { format!(" ({} requested)", Bytes(wanted)) } else { String::new() };
    let pieces = match &tested.backend {
        // Its bus addresses are those of table entries.
        Backend::Spapr(_) => String::new(),
        _ if runs == 1 => ", contiguous".to_owned(),
        _ => format!(", in {runs} contiguous runs"),
    };
    let text = format!(
        "{}{less} registered by {} in {:.0} ms{pieces}",
        Bytes(bytes),
        if calls == 1 { "one call".to_owned() } else { format!("{calls} calls") },
        took.as_secs_f64() * 1e3
    );
    // A region larger than each I/O range takes a call for each piece; io_uring's addresses are physical.
    let one_per_piece = matches!(tested.backend, Backend::IoUring(_)) || calls == runs.max(1);
    if calls >= 1 && one_per_piece { Ok(text) } else { failed(text) }
}

/// Changes of a window's table: one call to the kernel for each.
pub(super) fn entries(tested: &BackendUnderTest, report: &mut Report) {
    if let Some(table) = tested.table() {
        report.record("entries", try_entries(tested, table));
    }
}

fn try_entries(tested: &BackendUnderTest, table: &SpaprTable) -> StepResult {
    const PAGES: u64 = 512;
    let failure = |error: &dyn std::fmt::Display| NotPassed::Failed(error.to_string());
    let page = table.shift().bytes();
    let memory = GuestMemory::memfd("entries", (PAGES * page).max(tested.granule().bytes()))
        .map_err(|error| failure(&error))?;
    let registration = tested.space.register(&memory).map_err(|error| failure(&error))?;
    let mut translator = tested.space.translator();
    let at = |index: u64| BusAddr::new(table.start().raw() + index * page);
    let ua = |index: u64| UserAddr::new(registration.ua().raw() + index * page);
    let reversed: Vec<_> = (0..4).rev().map(ua).collect();

    type Call<'a> = Box<dyn Fn(&mut Translator) -> Result<(), String> + 'a>;
    let put = |index, from, pages| -> Call<'_> {
        Box::new(move |t| {
            table.put_run(t, at(index), ua(from), pages, Access::ReadWrite).map_err(|error| error.to_string())
        })
    };
    let stuff = |index, pages, live| -> Call<'_> {
        Box::new(move |t| match table.stuff(t, at(index), pages) {
            Ok(cleared) if cleared == live => Ok(()),
            Ok(cleared) => Err(format!("{cleared} entries were live, not {live}")),
            Err(error) => Err(error.to_string()),
        })
    };
    let calls: [(&str, usize, Call<'_>); 8] = [
        ("put", 1, put(0, 0, 1)),
        ("put over it", 1, put(0, 1, 1)),
        ("put 512 in a run", 1, put(0, 0, PAGES)),
        (
            "put 4 that are not contiguous",
            4,
            Box::new(|t| {
                table.put_list(t, at(8), &reversed, Access::Read).map_err(|error| error.to_string())
            }),
        ),
        ("stuff 512", 1, stuff(0, PAGES, PAGES)),
        ("stuff nothing", 0, stuff(0, PAGES, 0)),
        ("put past the window, refused", 0, Box::new(|t| refused(table, t, ua(0)))),
        ("translate 512", 0, Box::new(|t| translate(t, ua(0), table))),
    ];
    let mut counts = Vec::new();
    for (name, most, call) in calls {
        let before = tested.log.requests();
        call(&mut translator).map_err(|why| NotPassed::Failed(format!("{name}: {why}")))?;
        let calls = tested.log.requests() - before;
        if calls > most {
            return failed(format!("{name}: {calls} calls to the kernel instead of at most {most}"));
        }
        counts.push(format!("{name}: {calls}"));
    }
    registration.unregister().map_err(|refused| failure(&refused))?;
    Ok(format!("calls to the kernel: {}", counts.join("; ")))
}

/// A run beyond the end of the window, which the kernel does not check: it would crash.
fn refused(table: &SpaprTable, translator: &mut Translator, ua: UserAddr) -> Result<(), String> {
    let last = BusAddr::new(table.start().raw() + table.bytes() - table.shift().bytes());
    match table.put_run(translator, last, ua, 2, Access::ReadWrite) {
        Err(error) if error.errno() == prereg::Errno::EINVAL => Ok(()),
        Err(error) => Err(error.to_string()),
        Ok(()) => Err("it was mapped".to_owned()),
    }
}

fn translate(translator: &mut Translator, ua: UserAddr, table: &SpaprTable) -> Result<(), String> {
    for index in 0..512 {
        let page = UserAddr::new(ua.raw() + index * table.shift().bytes());
        let mapping = translator.map(page, table.shift()).map_err(|error| error.to_string())?;
        translator.unmap(mapping);
    }
    Ok(())
}

/// Registered memory stays pinned when its last device is removed.
pub(super) fn survives_removal(tested: &BackendUnderTest, device: Option<&str>) -> StepResult {
    const BYTES: u64 = 1 << 20;
    let failure = |error: &dyn std::fmt::Display| NotPassed::Failed(error.to_string());
    let Some(device) = device else { return skipped("this back end has no device") };
    let memory = GuestMemory::memfd("removal", BYTES).map_err(|error| failure(&error))?;
    let registration = tested.space.register(&memory).map_err(|error| failure(&error))?;
    let before = KernelCount::now();
    let text = match &tested.backend {
        Backend::Iommufd(iommufd) if iommufd.state().pins_without_device => {
            iommufd.remove_device(device).map_err(|error| failure(&error))?;
            if KernelCount::now() != before {
                return failed("the pins ended with the device");
            }
            iommufd.add_device(device).map_err(|error| failure(&error))?;
            "the last device was removed and added again; memory stayed pinned".to_owned()
        }
        Backend::Iommufd(iommufd) => match iommufd.remove_device(device) {
            Err(refused) => format!("{}: {refused}", refused.errno()),
            Ok(()) => return failed("the last device was removed with memory registered"),
        },
        Backend::Type1(vfio) => match vfio.remove_group_of(device) {
            Err(refused) if refused.errno() == prereg::Errno::EBUSY => {
                format!("{}: {refused}", refused.errno())
            }
            Err(refused) => return failed(refused),
            Ok(()) => return failed("the last group was removed with memory registered"),
        },
        Backend::Spapr(_) | Backend::IoUring(_) => {
            "memory is registered with the process, not with a device".to_owned()
        }
    };
    registration.unregister().map_err(|refused| failure(&refused))?;
    Ok(text)
}
