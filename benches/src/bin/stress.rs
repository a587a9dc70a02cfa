//! `stress [--seconds N]` (default 180): registers, unregisters, maps and unmaps at random on all processors for so long, and
//! checks that every address was right and that the books balance.

use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let seconds = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => Ok(180),
        ["--seconds", seconds] => seconds.parse::<u64>(),
        _ => "".parse(),
    };
    let Ok(seconds) = seconds else {
        eprintln!("usage: stress [--seconds N]");
        return ExitCode::from(2);
    };
    let report = prereg_benches::stress::run(Duration::from_secs(seconds));
    let (registering, mapping) = report.threads;
    println!("{seconds} s, {registering} threads that register, {mapping} that map");
    println!("registered {}, given up {}, refused {}", report.registered, report.given_up, report.refused);
    println!("mapped {}, missed {}, entries changed {}", report.mapped, report.missed, report.entries);
    println!("translators that came and went: {}", report.translators);
    println!("fence on all threads: {}", if report.fenced { "membarrier" } else { "none, a fence each map" });
    println!("balanced: nothing registered, pinned, charged or mapped is left, and no memory of tables");
    ExitCode::SUCCESS
}
