//! `core-stress [--seconds N] [--threads N] [--seed N]` (default 180 s, all processors, at least 4 threads): random
//! operations of several threads on one address space, every address compared with the truth.

use std::process::ExitCode;
use std::time::Duration;

use prereg_core_model::stress::{Plan, Until, run};

fn main() -> ExitCode {
    let processors = std::thread::available_parallelism().map_or(2, std::num::NonZero::get);
    let (mut seconds, mut threads, mut seed) = (180, processors.max(4) as u64, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().and_then(|value| value.parse::<u64>().ok());
        match (name.as_str(), value) {
            ("--seconds", Some(value)) => seconds = value,
            ("--threads", Some(value)) => threads = value,
            ("--seed", Some(value)) => seed = value,
            _ => {
                eprintln!("usage: core-stress [--seconds N] [--threads N] [--seed N]");
                return ExitCode::from(2);
            }
        }
    }
    let until = Until::Time(Duration::from_secs(seconds));
    let report = run(Plan { threads: threads as usize, until, seed });
    println!("{seconds} s, {threads} threads, seed {seed}");
    println!("addresses checked {}, operations {}", report.addresses, report.operations);
    println!(
        "ranges pinned {}, unregisters refused {}, maps missed {}",
        report.pins, report.refused, report.missed
    );
    println!("retired regions kept, at most {}", report.retired);
    println!("fence on all threads: {}", if report.fenced { "membarrier" } else { "none, a fence each map" });
    println!("balanced: nothing registered, pinned, charged or mapped is left, and no memory of tables");
    ExitCode::SUCCESS
}
