//! Memory and openers that must be refused, with nothing left pinned.

use std::sync::Arc;

use prereg::{Errno, RegisterError};
use prereg_linux::{GuestMemory, Iommufd, KernelCount, Placement, VfioHost, VfioSpaprV2, VfioType1};

use super::backend::{Backend, BackendUnderTest};
use super::edu::Edu;
use super::report::{NotPassed, Report, StepResult, failed, skipped};
use super::unpinnable;

/// Tries each.
pub(super) fn run(
    tested: &BackendUnderTest,
    edu: Option<&Arc<Edu>>,
    device: Option<&str>,
    report: &mut Report,
) {
    let page = tested.granule().bytes();
    let size = usize::try_from(2 * page).unwrap_or(usize::MAX);
    let failure = |error: std::io::Error| error.to_string();
    let kinds = [
        ("read-only", unpinnable::read_only(size).map_err(failure), Errno::EFAULT),
        ("no access", unpinnable::no_access(size).map_err(failure), Errno::EFAULT),
        ("past the end", past_the_end(size, page), Errno::EFAULT),
    ];
    for (name, memory, errno) in kinds {
        let result = match memory {
            Ok(memory) => offer(tested, &memory, errno),
            Err(why) => failed(why),
        };
        report.record(name, result);
    }
    report.record("disk file", disk_file(tested, size));
    let registers = match edu {
        Some(edu) => offer_any(tested, &unpinnable::of_device(edu), &[Errno::EOPNOTSUPP, Errno::EFAULT]),
        None => skipped("no registers to offer"),
    };
    report.record("registers", registers);
    report.record("second opener", second_opener(tested, device));
}

/// A mapping longer than its memfd.
fn past_the_end(bytes: usize, page: u64) -> Result<GuestMemory, String> {
    let short = GuestMemory::memfd("short", page).map_err(|error| error.to_string())?;
    let descriptor = short.descriptor().ok_or("a memfd without a descriptor")?;
    let file = descriptor.try_clone_to_owned().map_err(|error| error.to_string())?;
    unpinnable::of_file(&file.into(), bytes, page).map_err(|error| error.to_string())
}

fn offer(tested: &BackendUnderTest, memory: &GuestMemory, errno: Errno) -> StepResult {
    offer_any(tested, memory, &[errno])
}

fn offer_any(tested: &BackendUnderTest, memory: &GuestMemory, expected: &[Errno]) -> StepResult {
    let before = KernelCount::now();
    let error = match tested.space.register(memory) {
        Ok(_) => return failed("it was registered"),
        Err(error) => error,
    };
    let (pinned, stuck) = tested.backend.pinned();
    if pinned != 0 || stuck != 0 || KernelCount::now() != before {
        return failed(format!("{error}; and {pinned} bytes remain pinned, {stuck} stuck"));
    }
    if expected.contains(&error.errno()) {
        Ok(format!("{}: {error}", error.errno()))
    } else {
        failed(format!("{}: {error}", error.errno()))
    }
}

/// A shared mapping of a file. Whether it can be pinned depends on the file system; nothing may remain pinned.
fn disk_file(tested: &BackendUnderTest, bytes: usize) -> StepResult {
    let Ok(place) = std::env::current_dir() else { return skipped("no current directory") };
    let path = place.join(format!(".prereg-selftest-{}", std::process::id()));
    let opened = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let Ok(file) = opened else { return skipped(format!("{} is not writable", place.display())) };
    // The file exists as long as it is mapped.
    let _ = std::fs::remove_file(&path);
    let memory = unpinnable::of_file(&file, bytes, bytes as u64)
        .map_err(|error| NotPassed::Failed(error.to_string()))?;
    match tested.space.register(&memory) {
        Ok(registration) => {
            registration.unregister().map_err(|refused| NotPassed::Failed(refused.to_string()))?;
            skipped(format!("files in {} are in memory and can be pinned", place.display()))
        }
        Err(error @ RegisterError::Pin { .. }) if error.errno() == Errno::EFAULT => {
            Ok(format!("{}: {error}", error.errno()))
        }
        Err(error) => failed(error),
    }
}

/// Opens the group or the device a second time, which must fail.
fn second_opener(tested: &BackendUnderTest, device: Option<&str>) -> StepResult {
    let Some(device) = device else { return skipped("this back end has no device") };
    let host = VfioHost::system();
    let refused = match &tested.backend {
        Backend::Type1(_) => VfioType1::open_on(&host, device).err(),
        Backend::Spapr(_) => VfioSpaprV2::open_on(&host, device).err(),
        Backend::Iommufd(_) => Iommufd::open_on(&host, device, Placement::DeviceIoas).err(),
        Backend::IoUring(_) => return skipped("this back end has no device"),
    };
    match refused {
        Some(refused) => Ok(format!("{}: {refused}", refused.errno())),
        None => failed("it was opened a second time"),
    }
}
