//! Guest operations beyond a shell script: I/O from large memory, numbered blocks, NVMe commands, and an NVMe driver in user
//! space.
//!
//! `passthrough` sends NVMe commands to a controller; `pattern` defines the contents of numbered blocks; `disk` writes and
//! reads them through a block device or file; `vfio` opens a device and maps memory for it; `nvme` drives it. Lines that begin
//! with `@@` are marks for the test outside of the guest.

mod disk;
mod error;
mod nvme;
mod passthrough;
mod pattern;
mod vfio;

use std::path::Path;
use std::process::ExitCode;

const USAGE: &str = "\
usage: guest-tool fill FILE MIB CHUNK SEED    writes MIB MiB from memory in pieces of CHUNK KiB, reads them back, compares
       guest-tool blocks FILE SEED            writes numbered blocks and flushes, under load, until it is killed
       guest-tool verify FILE COUNT SEED      verifies the first COUNT numbered blocks
       guest-tool errors CONTROLLER           prints the number of entries that the error log ever had
       guest-tool statuses CONTROLLER DISK    sends commands, many of them invalid, and prints the status of each
       guest-tool nested ADDRESS MAPS         drives the NVMe controller at a PCI address over VFIO
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let number = |word: &str| word.parse::<u64>().map_err(|error| format!("{word}: {error}"));
    let result = match words[..] {
        ["fill", file, mib, chunk, seed] => number(mib).and_then(|mib| {
            let chunk = usize::try_from(number(chunk)? * 1024).map_err(|error| error.to_string())?;
            disk::fill(Path::new(file), mib, chunk, number(seed)?)
        }),
        ["blocks", file, seed] => number(seed).and_then(|seed| disk::blocks(Path::new(file), seed)),
        ["verify", file, count, seed] => {
            number(count).and_then(|count| disk::verify(Path::new(file), count, number(seed)?))
        }
        ["errors", controller] => passthrough::errors(Path::new(controller)).map(|count| count.to_string()),
        ["statuses", controller, namespace] => {
            passthrough::statuses(Path::new(controller), Path::new(namespace))
        }
        ["nested", address, maps] => number(maps).and_then(|maps| nvme::drive(address, maps)),
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("guest-tool: {error}");
            ExitCode::FAILURE
        }
    }
}
