//! What must be refused, with a message that helps and nothing left behind.

use std::sync::Arc;

use prereg::{Errno, RegisterError};
use prereg_linux::{GuestMemory, Iommufd, KernelCount, Placement, VfioHost, VfioSpaprV2, VfioType1};

use super::edu::Edu;
use super::odd_memory;
use super::report::{Bad, Report, Said, failed, skipped};
use super::rig::{Backend, Rig};

/// Offers one after the other.
pub(super) fn run(rig: &Rig, edu: Option<&Arc<Edu>>, device: Option<&str>, report: &mut Report) {
    let page = rig.granule().bytes();
    let size = usize::try_from(2 * page).unwrap_or(usize::MAX);
    let words = |error: std::io::Error| error.to_string();
    let kinds = [
        ("read-only", odd_memory::read_only(size).map_err(words), Errno::EFAULT),
        ("no access", odd_memory::no_access(size).map_err(words), Errno::EFAULT),
        ("past the end", past_the_end(size, page), Errno::EFAULT),
    ];
    for (name, memory, errno) in kinds {
        let said = match memory {
            Ok(memory) => offer(rig, &memory, errno),
            Err(why) => failed(why),
        };
        report.note(name, said);
    }
    report.note("disk file", disk_file(rig, size));
    let registers = match edu {
        Some(edu) => offer_any(rig, &odd_memory::of_device(edu), &[Errno::EOPNOTSUPP, Errno::EFAULT]),
        None => skipped("no registers to offer"),
    };
    report.note("registers", registers);
    report.note("second opener", second_opener(rig, device));
}

/// A memfd that is shorter than what is mapped of it.
fn past_the_end(bytes: usize, page: u64) -> Result<GuestMemory, String> {
    let short = GuestMemory::memfd("short", page).map_err(|error| error.to_string())?;
    let descriptor = short.descriptor().ok_or("a memfd without a descriptor")?;
    let file = descriptor.try_clone_to_owned().map_err(|error| error.to_string())?;
    odd_memory::of_file(&file.into(), bytes, page).map_err(|error| error.to_string())
}

fn offer(rig: &Rig, memory: &GuestMemory, errno: Errno) -> Said {
    offer_any(rig, memory, &[errno])
}

fn offer_any(rig: &Rig, memory: &GuestMemory, expected: &[Errno]) -> Said {
    let before = KernelCount::now();
    let error = match rig.space.register(memory) {
        Ok(_) => return failed("it was registered"),
        Err(error) => error,
    };
    let (pinned, stuck) = rig.backend.pinned();
    if pinned != 0 || stuck != 0 || KernelCount::now() != before {
        return failed(format!("{error}; and {pinned} bytes stay pinned, {stuck} stuck"));
    }
    if expected.contains(&error.errno()) {
        Ok(format!("{}: {error}", error.errno()))
    } else {
        failed(format!("{}: {error}", error.errno()))
    }
}

/// A shared mapping of a file. Whether it can be pinned is the file system's matter; either way nothing may stay.
fn disk_file(rig: &Rig, bytes: usize) -> Said {
    let Ok(place) = std::env::current_dir() else { return skipped("no current directory") };
    let path = place.join(format!(".prereg-selftest-{}", std::process::id()));
    let opened = std::fs::File::options().read(true).write(true).create_new(true).open(&path);
    let Ok(file) = opened else { return skipped(format!("{} cannot be written", place.display())) };
    // The name goes; the file stays as long as it is mapped.
    let _ = std::fs::remove_file(&path);
    let memory =
        odd_memory::of_file(&file, bytes, bytes as u64).map_err(|error| Bad::Failed(error.to_string()))?;
    match rig.space.register(&memory) {
        Ok(registration) => {
            registration.unregister().map_err(|refused| Bad::Failed(refused.to_string()))?;
            skipped(format!("files in {} lie in memory and can be pinned", place.display()))
        }
        Err(error @ RegisterError::Pin { .. }) if error.errno() == Errno::EFAULT => {
            Ok(format!("{}: {error}", error.errno()))
        }
        Err(error) => failed(error),
    }
}

/// The group, or the device, is ours: nobody else may open it.
fn second_opener(rig: &Rig, device: Option<&str>) -> Said {
    let Some(device) = device else { return skipped("this back end has no device") };
    let host = VfioHost::system();
    let refused = match &rig.backend {
        Backend::Type1(_) => VfioType1::open_on(&host, device).err(),
        Backend::Spapr(_) => VfioSpaprV2::open_on(&host, device).err(),
        Backend::Iommufd(_) => Iommufd::open_on(&host, device, Placement::DeviceIoas).err(),
        Backend::IoUring(_) => return skipped("this back end has no device"),
    };
    match refused {
        Some(refused) => Ok(format!("{}: {refused}", refused.errno())),
        None => failed("a second opener got it too"),
    }
}
