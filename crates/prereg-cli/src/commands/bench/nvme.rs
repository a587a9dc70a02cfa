//! `prereg bench nvme`: the cost of an I/O of the NVMe server, as a table or as JSON.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;

use crate::commands::Outcome;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::serve::config::nvme::Doorbells;
use crate::units::{Bytes, Count, parse_bytes};
use prereg_benches::nvme::comparison::{Comparison, Server};
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

With --server the servers run already: any vfio-user server with an NVMe controller and room for a client. The rows have IOPS, latencies, \
the processor time of the server's process for one I/O, and ratios to the first server in the same repetition.

Examples: prereg bench nvme --dir /var/tmp --json
          prereg bench nvme --server ours=/run/prereg/disk.sock --server spdk=/var/run/cntrl";

/// Measure the cost of one I/O of the NVMe server, next to plain I/O and to pinning for each I/O
#[derive(Debug, Args)]
#[command(after_help = MORE)]
pub(crate) struct NvmeBenchArgs {
    /// A running server to measure, instead of servers of its own; repeat it to compare (NAME= may be left out)
    #[arg(long, value_name = "[NAME=]SOCKET", value_parser = parse_server, conflicts_with_all = ["dir", "size", "doorbells"])]
    server: Vec<Server>,

    /// With --server: measure writes, too, which overwrites random blocks of the disks
    #[arg(long, requires = "server")]
    writes: bool,

    /// Folder of the disks (its file system affects the result)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Size of each disk, at least 1M (suffixes K, M, G)
    #[arg(long, default_value = "256M", value_parser = parse_disk)]
    size: u64,

    /// Repetitions
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=1000))]
    iterations: u32,

    /// I/Os of 4 KiB in a repetition; of 128 KiB a quarter of it, and with --server of one at a time
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

fn parse_server(text: &str) -> Result<Server, String> {
    let (name, socket) = match text.split_once('=') {
        Some(("", _)) => return Err("the name before the '=' is empty".to_owned()),
        Some((name, socket)) => (name, socket),
        None => (text, text),
    };
    if socket.is_empty() {
        return Err("the path of the socket is missing".to_owned());
    }
    Ok(Server { name: name.to_owned(), socket: socket.into() })
}

/// Measures and prints.
///
/// # Errors
/// [`CommandError::Host`], [`CommandError::Interrupted`].
pub(crate) fn run(
    args: &NvmeBenchArgs,
    out: &mut impl Write,
    interrupt: &Interrupt,
) -> Result<Outcome, CommandError> {
    if !args.server.is_empty() {
        let comparison = Comparison {
            servers: args.server.clone(),
            repetitions: args.iterations,
            batch: args.batch,
            writes: args.writes,
        };
        return compare(&comparison, args.json, out, interrupt);
    }
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

/// Measures running servers and prints.
fn compare(
    comparison: &Comparison,
    json: bool,
    out: &mut impl Write,
    interrupt: &Interrupt,
) -> Result<Outcome, CommandError> {
    let results = comparison.measure(&interrupt.flag())?;
    if json {
        serde_json::to_writer_pretty(&mut *out, &results)?;
        writeln!(out)?;
        return Ok(Outcome::Ok);
    }
    writeln!(out, "{} repetitions", results.repetitions)?;
    for (server, has_page) in comparison.servers.iter().zip(&results.doorbell_pages) {
        let doorbells = if *has_page { "a shared page" } else { "the socket" };
        writeln!(out, "  {} at {}, doorbells through {doorbells}", server.name, server.socket.display())?;
    }
    let mut block = None;
    for row in &results.rows {
        let key = (row.operation, row.bytes, row.depth);
        if block != Some(key) {
            block = Some(key);
            writeln!(
                out,
                "\n{:<32} {:>9} {:>9} {:>9} {:>9} {:>9} {:>12} {:>9}",
                format!("{} {}, {} at a time", row.operation, Bytes(row.bytes), row.depth),
                "IOPS",
                "mean us",
                "p50 us",
                "p99 us",
                "CPU us",
                "IOPS ratio",
                "CPU ratio"
            )?;
        }
        writeln!(
            out,
            "  {:<30} {:>9} {:>9.1} {:>9.1} {:>9.1} {:>9.2} {:>11.2}x {:>8.2}x",
            row.server,
            Count(row.iops as u64).to_string(),
            row.mean_us,
            row.p50_us,
            row.p99_us,
            row.cpu_us,
            row.iops_ratio,
            row.cpu_ratio
        )?;
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
