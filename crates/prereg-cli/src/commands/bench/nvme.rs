//! `prereg bench nvme`: the cost of an I/O of the NVMe server, as a table or as JSON.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::commands::Outcome;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::serve::config::nvme::Doorbells;
use crate::units::{Bytes, Count, parse_bytes};
use prereg_benches::nvme::{Plan, Results};

const MORE: &str = "\
A driver in this process drives the queues of two servers in processes of their own, over shared memory. The disks are files, \
created in --dir and removed afterwards.

  fixed       transfers straight into the registered pages of the guest
  plain       lets the kernel pin the pages for each I/O
  pin-per-io  registers and unregisters the pages for each I/O, in this process and without a guest or a queue: the least that \
such a server would cost

CPU is the processor time of all threads of the server for one I/O: the median of the repetitions, with the least and the most in \
brackets. The last column is that time divided by the time of 'plain' in the same repetition, the median over the repetitions; \
below 1 is cheaper than 'plain'.

Example: prereg bench nvme --dir /var/tmp --json";

/// Measure the cost of one I/O of the NVMe server, next to plain I/O and to pinning for each I/O
#[derive(Debug, Args)]
#[command(after_help = MORE)]
pub struct NvmeBenchArgs {
    /// Folder of the disks (its file system affects the result)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Size of each disk, at least 1M (suffixes K, M, G)
    #[arg(long, default_value = "256M", value_parser = parse_disk)]
    size: u64,

    /// Repetitions
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    iterations: u32,

    /// I/Os of 4 KiB in a repetition; of 128 KiB a quarter of it
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(8..=10_000_000))]
    batch: u32,

    /// How doorbells arrive
    #[arg(long, value_enum, default_value_t)]
    doorbells: Doorbells,

    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn parse_disk(text: &str) -> Result<u64, String> {
    match parse_bytes(text)? {
        bytes if bytes < 1 << 20 => {
            Err("a disk has at least 1M, because I/Os of up to 128 KiB go to random places of it".to_owned())
        }
        bytes => Ok(bytes),
    }
}

/// Measures and prints.
///
/// # Errors
/// [`CommandError::Host`], [`CommandError::Interrupted`].
pub fn run(
    args: &NvmeBenchArgs,
    out: &mut impl Write,
    interrupt: &Interrupt,
) -> Result<Outcome, CommandError> {
    let program =
        std::env::current_exe().map_err(|error| CommandError::host("starting the server", error))?;
    let plan = Plan {
        folder: args.dir.clone().unwrap_or_else(std::env::temp_dir),
        disk: args.size.next_multiple_of(1 << 20),
        repetitions: args.iterations,
        batch: args.batch,
        mapped_doorbells: args.doorbells == Doorbells::Mmap,
        program,
    };
    let results = plan.measure(&interrupt.flag())?;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, &results)?;
        writeln!(out)?;
    } else {
        print(&results, out)?;
    }
    Ok(Outcome::Ok)
}

fn print(results: &Results, out: &mut impl Write) -> Result<(), CommandError> {
    writeln!(
        out,
        "{} repetitions, {}, doorbells through {}",
        results.repetitions,
        if results.direct { "O_DIRECT" } else { "through the page cache: the file system has no O_DIRECT" },
        if results.doorbell_page { "a shared page" } else { "the socket" }
    )?;
    let mut block = None;
    for row in &results.rows {
        let key = (row.operation, row.bytes, row.depth);
        if block != Some(key) {
            block = Some(key);
            writeln!(
                out,
                "\n{:<40} {:>32}",
                format!("{} {}, {} at a time", row.operation, Bytes(row.bytes), row.depth),
                "CPU over plain's"
            )?;
        }
        writeln!(
            out,
            "  {:<11} {:>9} IOPS  {:>7.1} us CPU {:<18} {:>5.2}x",
            row.candidate,
            Count(row.iops as u64).to_string(),
            row.cpu_us,
            format!("({:.1}..{:.1})", row.cpu_us_low, row.cpu_us_high),
            row.ratio_to_plain
        )?;
    }
    Ok(())
}
