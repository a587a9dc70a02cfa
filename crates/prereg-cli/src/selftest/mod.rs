//! `prereg selftest`: tests each guarantee of the library on this host, with a real device if there is one.
//!
//! `backend` opens a back end with its device; `edu` drives the device. The tests: `lifecycle` from register to unregister,
//! `call_count` of calls to the kernel, `refusals` of memory that cannot be pinned, `limits` of an ordinary user, `iommufd_staging`, and
//! `kernel_reference`, which calls the kernel without checks. `syscall_count`, `unprivileged` and `unpinnable` have the unsafe code.

mod backend;
mod call_count;
mod edu;
mod fault_log;
mod iommufd_staging;
mod kernel_reference;
mod lifecycle;
mod limits;
mod refusals;
pub(crate) mod report;
mod syscall_count;
mod unpinnable;
mod unprivileged;

use std::sync::Arc;

use prereg_linux::KernelCount;

use crate::error::CommandError;
use backend::{Backend, BackendUnderTest};
use edu::Edu;
use report::{NotPassed, Report, StepResult, failed, skipped};

pub(crate) use backend::BackendChoice;

/// Options of the self test.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// The back end.
    pub backend: BackendChoice,
    /// The device, as `/sys/bus/pci/devices` names it.
    pub device: Option<String>,
    /// Bytes to register as one large region.
    pub bytes: u64,
    /// Maps and unmaps whose system calls are counted.
    pub maps: u64,
    /// Whether the kernel is also called without the back end's checks.
    pub kernel_reference: bool,
    /// Whether every ioctl is part of the report.
    pub trace_ioctls: bool,
}

/// Runs all tests.
///
/// # Errors
/// [`CommandError::Host`] if the back end cannot be opened, with the remedy.
pub(crate) fn run(options: &Options) -> Result<Report, CommandError> {
    let choice = options.backend;
    let what = || match &options.device {
        Some(device) => format!("opening {} for {device}", choice.name()),
        None => format!("opening {}", choice.name()),
    };
    let before = KernelCount::now();
    let tested = BackendUnderTest::open(choice, options.device.as_deref())
        .map_err(|why| CommandError::host(what(), why))?;
    let mut report = Report::new(choice.name(), options.device.clone(), tested.granule().bytes());
    let edu = driver(&tested, &mut report);
    report.record("limits", Ok(tested.backend.limits()));

    lifecycle::run(&tested, edu.as_deref(), options.maps, &mut report);
    report.record("large region", call_count::one_large_region(&tested, options.bytes));
    call_count::entries(&tested, &mut report);
    report.record("device removal", call_count::survives_removal(&tested, options.device.as_deref()));
    refusals::run(&tested, edu.as_ref(), options.device.as_deref(), &mut report);
    report.record("ordinary user", limits::ordinary_user(&tested));
    report.record("nothing left", nothing_left(&tested, before));

    drop(edu);
    let log = tested.close();
    let device = options.device.as_deref().unwrap_or_default();
    if choice == BackendChoice::Iommufd {
        report.record("staging IOAS", iommufd_staging::run(device));
    }
    if options.kernel_reference && choice == BackendChoice::VfioSpaprV2 {
        kernel_reference::run(device, &mut report);
    }
    if options.trace_ioctls {
        report.ioctls = log.lines();
    }
    Ok(report)
}

/// The driver of the device, if it is an edu.
fn driver(tested: &BackendUnderTest, report: &mut Report) -> Option<Arc<Edu>> {
    let Some(device) = &tested.device else {
        report.record("device", skipped("this back end uses none; no DMA is done"));
        return None;
    };
    let mut opened = None;
    let result: StepResult = match device.identity() {
        Err(error) => failed(error),
        Ok(identity) if identity != edu::IDENTITY => skipped(format!(
            "there is no driver for {:04x}:{:04x}, so no DMA is done (QEMU's edu, 1234:11e8, has one)",
            identity.0, identity.1
        )),
        Ok(_) => Edu::open(device).map_err(NotPassed::Failed).map(|edu| {
            let text = format!("edu, {}", edu.byte_order());
            opened = Some(Arc::new(edu));
            text
        }),
    };
    report.record("device", result);
    opened
}

/// The counts of the address space and of the kernel are as before.
fn nothing_left(tested: &BackendUnderTest, before: Option<KernelCount>) -> StepResult {
    let (pinned, stuck) = tested.backend.pinned();
    let state = tested.space.snapshot();
    if pinned != 0 || stuck != 0 || state.pinned_pages != 0 || state.charged_pages != 0 {
        return failed(format!(
            "{pinned} bytes pinned, {stuck} stuck, {} pages pinned or charged in the address space",
            state.pinned_pages.max(state.charged_pages)
        ));
    }
    // The tables of a window are charged until the container closes.
    let tables = matches!(tested.backend, Backend::Spapr(_));
    match (before, KernelCount::now()) {
        (Some(before), Some(now))
            if !tables && (now.locked > before.locked || now.pinned > before.pinned) =>
        {
            failed(format!("the kernel counts {now:?}, and {before:?} before"))
        }
        (Some(_), Some(now)) => Ok(format!(
            "no page pinned or charged; the kernel counts {} bytes locked and {} pinned{}",
            now.locked,
            now.pinned,
            if tables && now.locked > 0 { ", the window's tables" } else { "" }
        )),
        _ => Ok("no page pinned or charged; the kernel's count cannot be read".to_owned()),
    }
}
