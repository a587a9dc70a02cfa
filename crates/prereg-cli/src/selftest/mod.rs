//! `prereg selftest`: what an operator runs to trust a host. Every promise of the library is kept before his eyes, with a real
//! device where there is one.
//!
//! `rig` opens a back end with its device; `edu` drives the device; `main_line` goes from register to unregister and on to a
//! device that reaches nothing any more; `scale` counts calls; `refusals` offers what must be refused; `limits` is an ordinary
//! user's day; `held` is iommufd's other way; `answers` asks the kernel without care. `traced`, `unprivileged` and `odd_memory` hold the unsafe code.

mod answers;
mod edu;
mod faults;
mod held;
mod limits;
mod main_line;
mod odd_memory;
mod refusals;
pub mod report;
mod rig;
mod scale;
mod traced;
mod unprivileged;

use std::sync::Arc;

use prereg_linux::KernelCount;

use crate::failure::Failure;
use edu::Edu;
use report::{Bad, Report, Said, failed, skipped};
use rig::{Backend, Rig};

pub use rig::BackendChoice;

/// What to try.
#[derive(Clone, Debug)]
pub struct Options {
    /// The back end.
    pub backend: BackendChoice,
    /// The device, as `/sys/bus/pci/devices` names it.
    pub device: Option<String>,
    /// Bytes to register as one large region.
    pub bytes: u64,
    /// Maps and unmaps whose system calls are counted.
    pub maps: u64,
    /// Whether the kernel is asked what it would answer itself, where that differs.
    pub ask_kernel: bool,
    /// Whether every exchange with the kernel is part of the report.
    pub exchanges: bool,
}

/// Tries everything.
///
/// # Errors
/// [`Failure::Host`] when the back end cannot be opened, with what to do about it.
pub fn run(options: &Options) -> Result<Report, Failure> {
    let choice = options.backend;
    let what = || match &options.device {
        Some(device) => format!("opening {} for {device}", choice.name()),
        None => format!("opening {}", choice.name()),
    };
    let before = KernelCount::now();
    let rig = Rig::open(choice, options.device.as_deref()).map_err(|why| Failure::host(what(), why))?;
    let mut report = Report::new(choice.name(), options.device.clone(), rig.granule().bytes());
    let edu = driver(&rig, &mut report);
    report.note("limits", Ok(rig.backend.limits()));

    main_line::run(&rig, edu.as_deref(), options.maps, &mut report);
    report.note("large region", scale::one_large_region(&rig, options.bytes));
    scale::entries(&rig, &mut report);
    report.note("survival", scale::outlives_device(&rig, options.device.as_deref()));
    refusals::run(&rig, edu.as_ref(), options.device.as_deref(), &mut report);
    report.note("user", limits::ordinary_user(&rig));
    report.note("nothing left", nothing_left(&rig, before));

    drop(edu);
    let log = rig.close();
    let device = options.device.as_deref().unwrap_or_default();
    if choice == BackendChoice::Iommufd {
        report.note("held", held::run(device));
    }
    if options.ask_kernel && choice == BackendChoice::VfioSpaprV2 {
        answers::run(device, &mut report);
    }
    if options.exchanges {
        report.exchanges = log.lines();
    }
    Ok(report)
}

/// The driver of the device, if there is one for it here.
fn driver(rig: &Rig, report: &mut Report) -> Option<Arc<Edu>> {
    let Some(device) = &rig.device else {
        report.note("device", skipped("this back end has none; no DMA is tried"));
        return None;
    };
    let mut opened = None;
    let said: Said = match device.identity() {
        Err(error) => failed(error),
        Ok(identity) if identity != edu::IDENTITY => skipped(format!(
            "{:04x}:{:04x} has no driver in here, so no DMA is tried (QEMU's edu, 1234:11e8, has one)",
            identity.0, identity.1
        )),
        Ok(_) => Edu::open(device).map_err(Bad::Failed).map(|edu| {
            let text = format!("edu, may do DMA, {}", edu.byte_order());
            opened = Some(Arc::new(edu));
            text
        }),
    };
    report.note("device", said);
    opened
}

/// Our books and the kernel's are as they were.
fn nothing_left(rig: &Rig, before: Option<KernelCount>) -> Said {
    let (pinned, stuck) = rig.backend.pinned();
    let state = rig.space.snapshot();
    if pinned != 0 || stuck != 0 || state.pinned_pages != 0 || state.charged_pages != 0 {
        return failed(format!(
            "{pinned} bytes pinned, {stuck} stuck, {} pages in the books",
            state.pinned_pages.max(state.charged_pages)
        ));
    }
    // The tables of a window are charged until the container closes.
    let tables = matches!(rig.backend, Backend::Spapr(_));
    match (before, KernelCount::now()) {
        (Some(before), Some(now))
            if !tables && (now.locked > before.locked || now.pinned > before.pinned) =>
        {
            failed(format!("the kernel counts {now:?}, and {before:?} before"))
        }
        (Some(_), Some(now)) => Ok(format!(
            "books empty; the kernel counts {} bytes locked and {} pinned{}",
            now.locked,
            now.pinned,
            if tables && now.locked > 0 { ", the window's tables" } else { "" }
        )),
        _ => Ok("books empty; the kernel's count cannot be read".to_owned()),
    }
}
