//! The results of a sequence of calls, by the kernel without checks and by the back end.

use std::sync::Arc;

use prereg::{Access, AddressSpace, BusAddr, Errno, Registration};
use prereg_linux::{GuestMemory, HostReport, RawSpaprContainer, SpaprTable, VfioHost, VfioSpaprV2};

use super::report::{NotPassed, Report, Row, StepResult, failed};

/// The result of a call as text.
type Answer = String;

/// The bus address of the mappings.
const AT: u64 = 2 << 20;

/// Runs the sequence on the back end first, because the kernel never releases one of its regions.
pub(super) fn run(device: &str, report: &mut Report) {
    let mut rows = Vec::new();
    let result = sequences(device, &mut rows);
    report.kernel_reference = rows;
    report.record("kernel reference", result);
}

fn sequences(device: &str, rows: &mut Vec<Row>) -> StepResult {
    let failure = |error: &dyn std::fmt::Display| NotPassed::Failed(error.to_string());
    let ours = ours(device).map_err(NotPassed::Failed)?;
    let memory =
        GuestMemory::memfd("answers", HostReport::probe().page_bytes).map_err(|error| failure(&error))?;
    let kernel = RawSpaprContainer::open(&VfioHost::system(), device).map_err(|error| failure(&error))?;
    let kernels = kernels(&kernel, &memory);
    rows.extend(CALLS.iter().zip(kernels).zip(&ours).map(|((call, kernel), ours)| Row {
        call: (*call).to_owned(),
        kernel,
        ours: ours.clone(),
    }));
    // Ours are fixed by the contract; the kernel's depend on its version.
    let expected = ["0", "0", "EINVAL", "EBUSY", "0", "0", "ENOENT", "0"];
    if ours.iter().zip(expected).all(|(ours, expected)| ours == expected) {
        let differ = rows.iter().filter(|row| row.kernel != row.ours).count();
        Ok(format!("{} calls, {differ} with another result from the kernel", rows.len()))
    } else {
        failed(format!("the results are {ours:?} instead of {expected:?}"))
    }
}

const CALLS: [&str; 8] = [
    "register",
    "map one page",
    "map at half a page",
    "unregister while mapped",
    "unmap",
    "unregister",
    "unregister again",
    "register and unregister again",
];

fn number(result: Result<i32, Errno>) -> Answer {
    match result {
        Ok(value) => value.to_string(),
        Err(errno) => errno.to_string(),
    }
}

fn kernels(kernel: &RawSpaprContainer, memory: &GuestMemory) -> [Answer; 8] {
    let page = 4096;
    [
        number(kernel.register(memory)),
        number(kernel.map(memory, BusAddr::new(AT), page, Access::ReadWrite)),
        number(kernel.map(memory, BusAddr::new(AT + page / 2), page, Access::ReadWrite)),
        number(kernel.unregister(memory)),
        number(kernel.unmap(BusAddr::new(AT), page)),
        number(kernel.unregister(memory)),
        number(kernel.unregister(memory)),
        format!("{} and {}", number(kernel.register(memory)), number(kernel.unregister(memory))),
    ]
}

fn ours(device: &str) -> Result<[Answer; 8], String> {
    let vfio = Arc::new(VfioSpaprV2::open(device).map_err(|error| error.to_string())?);
    let space = AddressSpace::builder(Arc::clone(&vfio)).build().map_err(|error| error.to_string())?;
    let table = vfio.default_window().map_err(|error| error.to_string())?;
    let memory = GuestMemory::memfd("ours", space.granule().bytes()).map_err(|error| error.to_string())?;
    let mut translator = space.translator();
    let mut held: Option<Registration> = None;
    let register = |held: &mut Option<Registration>| match space.register(&memory) {
        Ok(registration) => {
            *held = Some(registration);
            "0".to_owned()
        }
        Err(error) => error.errno().to_string(),
    };
    let unregister = |held: &mut Option<Registration>| match held.take().map(Registration::unregister) {
        // There is no registration.
        None => Errno::ENOENT.to_string(),
        Some(Ok(())) => "0".to_owned(),
        Some(Err(refused)) => {
            let errno = refused.errno();
            *held = Some(refused.into_inner());
            errno.to_string()
        }
    };
    let put = |translator: &mut _, table: &SpaprTable, at| match table.put(
        translator,
        BusAddr::new(at),
        memory.ua(),
        Access::ReadWrite,
    ) {
        Ok(()) => "0".to_owned(),
        Err(error) => error.errno().to_string(),
    };
    let answers = [
        register(&mut held),
        put(&mut translator, &table, AT),
        put(&mut translator, &table, AT + 2048),
        unregister(&mut held),
        match table.clear(&mut translator, BusAddr::new(AT)) {
            Ok(_) => "0".to_owned(),
            Err(error) => error.errno().to_string(),
        },
        unregister(&mut held),
        unregister(&mut held),
        match (register(&mut held), unregister(&mut held)) {
            (one, other) if one == other => one,
            (one, other) => format!("{one} and {other}"),
        },
    ];
    Ok(answers)
}
