//! The command line: the tree of commands, from which help, completions and the manual page are made, and its dispatch.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::Outcome;
use crate::commands::bench::hot_path::{self, HotPathArgs};
use crate::commands::bench::nvme::{self, NvmeBenchArgs};
use crate::commands::bench::registration::{self, RegistrationArgs};
use crate::commands::completions::{self, CompletionsArgs};
use crate::commands::conform::{self, ConformArgs};
use crate::commands::doctor::{self, DoctorArgs};
use crate::commands::man::{self, ManArgs};
use crate::commands::replay::{self, ReplayArgs};
use crate::commands::selftest::{self, SelftestArgs};
use crate::commands::serve::{self, ServeArgs};
use crate::commands::status::{self, StatusArgs};
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

const EXAMPLES: &str = "\
Examples:
  prereg doctor                          the limits and back ends of this host and user
  prereg replay nvme4k.tce.zst           the maps of a real guest over memory that is pinned once
  prereg replay --compare *.tce.zst      and the time of pinning at every map
  prereg serve nvme --socket S --disk F  an NVMe disk for a guest, over vfio-user
  prereg bench registration              the time of registering, and of the raw system calls
  prereg bench hot-path --quick          the time of mapping, the machine's limit, and other implementations

Exit status: 0 success, 1 a mismatch, a leak or a failed check, 2 bad input or an error of the host, 130 interrupted.";

/// Pin memory once, map it for DMA a million times
///
/// prereg registers memory for DMA ahead of time: each page is pinned and its host address stored once, and mapping it for
/// a device is then a lookup and a counter. This program serves NVMe disks to guests, replays traces of real guests, reports
/// what a host allows, and measures the costs.
#[derive(Debug, Parser)]
#[command(name = "prereg", version, after_help = EXAMPLES, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Replay(ReplayArgs),
    Conform(ConformArgs),
    Serve(ServeArgs),
    Status(StatusArgs),
    Doctor(DoctorArgs),
    Selftest(SelftestArgs),
    #[command(subcommand, about = "Measure what this host can do", arg_required_else_help = true)]
    Bench(Benchmarks),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

#[derive(Debug, Subcommand)]
enum Benchmarks {
    Registration(RegistrationArgs),
    HotPath(HotPathArgs),
    Nvme(NvmeBenchArgs),
}

/// Parses `arguments` (the first is the program's name), runs the command and returns the exit code.
///
/// Results go to standard output; messages and progress to standard error.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are errors with code 0. If printing fails, nothing else can be done.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // A write beyond RLIMIT_FSIZE must fail, not end the server.
    prereg_nvme::disk::ignore_file_size_signal();
    let mut out = io::stdout().lock();
    let result = dispatch(cli.command, &mut out).and_then(|outcome| {
        out.flush()?;
        Ok(outcome)
    });
    match result {
        Ok(Outcome::Ok) => ExitCode::SUCCESS,
        Ok(Outcome::Mismatch) => ExitCode::from(1),
        Err(error) => {
            if !error.is_closed_pipe() {
                // If this fails too, there is no other output.
                let _ = writeln!(io::stderr(), "prereg: {error}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(command: Command, out: &mut impl Write) -> Result<Outcome, CommandError> {
    match command {
        Command::Replay(args) => replay::run(&args, out, &interrupt()?, Progress::on_terminal()),
        Command::Conform(args) => conform::run(&args, out),
        Command::Doctor(args) => doctor::run(&args, out),
        Command::Selftest(args) => selftest::run(&args, out),
        Command::Bench(Benchmarks::Registration(args)) => {
            registration::run(&args, out, &interrupt()?, Progress::on_terminal())
        }
        Command::Bench(Benchmarks::HotPath(args)) => {
            hot_path::run(&args, out, &interrupt()?, Progress::on_terminal())
        }
        Command::Bench(Benchmarks::Nvme(args)) => nvme::run(&args, out, &interrupt()?),
        Command::Serve(args) => serve::run(&args, out, &Interrupt::for_server().map_err(no_signals)?),
        Command::Status(args) => status::run(&args, out, &interrupt()?),
        Command::Completions(args) => Ok(completions::run(&args, Cli::command(), out)?),
        Command::Man(ManArgs {}) => Ok(man::run(Cli::command(), out)?),
    }
}

fn interrupt() -> Result<Interrupt, CommandError> {
    Interrupt::on_signals().map_err(no_signals)
}

fn no_signals(error: io::Error) -> CommandError {
    CommandError::host("listening for Ctrl-C", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
