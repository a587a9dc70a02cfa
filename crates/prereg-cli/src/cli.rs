//! The command line: the one tree that help, completions and the manual page are made from, and where it leads.

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::Outcome;
use crate::commands::completions::{self, CompletionsArgs};
use crate::commands::conform::{self, ConformArgs};
use crate::commands::doctor::{self, DoctorArgs};
use crate::commands::hot_path::{self, HotPathArgs};
use crate::commands::man::{self, ManArgs};
use crate::commands::nvme_bench::{self, NvmeBenchArgs};
use crate::commands::registration::{self, RegistrationArgs};
use crate::commands::replay::{self, ReplayArgs};
use crate::commands::selftest::{self, SelftestArgs};
use crate::commands::serve::{self, ServeArgs};
use crate::commands::status::{self, StatusArgs};
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::progress::Progress;

const EXAMPLES: &str = "\
Examples:
  prereg doctor                          what this host and this user allow
  prereg replay nvme4k.tce.zst           a real guest's maps over memory that is pinned once
  prereg replay --compare *.tce.zst      next to pinning at every map
  prereg serve nvme --socket S --disk F  an NVMe disk for a guest, over vfio-user
  prereg bench registration              what registering costs, next to the raw calls
  prereg bench hot-path --quick          what mapping costs, next to the machine's limit and to others

Exit status: 0 all well, 1 a mismatch or a leak, 2 bad input or a refusing host, 130 interrupted.";

/// Pin memory once, map it for DMA a million times
///
/// prereg registers memory for DMA ahead of time: every page is pinned and its host address stored once, and mapping it
/// for a device is then a look-up and a count. This program shows that on real guests' traces, says what a host allows,
/// and measures what registering costs.
#[derive(Debug, Parser)]
#[command(name = "prereg", version, after_help = EXAMPLES, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Commands,
}

#[derive(Debug, Subcommand)]
enum Commands {
    Replay(ReplayArgs),
    Conform(ConformArgs),
    Serve(ServeArgs),
    Status(StatusArgs),
    Doctor(DoctorArgs),
    Selftest(SelftestArgs),
    #[command(subcommand, about = "Measure what this host can do", arg_required_else_help = true)]
    Bench(Benches),
    Completions(CompletionsArgs),
    Man(ManArgs),
}

#[derive(Debug, Subcommand)]
enum Benches {
    Registration(RegistrationArgs),
    HotPath(HotPathArgs),
    Nvme(NvmeBenchArgs),
}

/// The whole program: parses `arguments` (the first is the program's name), runs the command and says how to exit.
///
/// Results go to standard output; messages and progress to standard error.
pub fn run(arguments: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version are "errors" with code 0; whether they can be printed changes nothing.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    // A file size limit below a disk's size must fail that write, not end every guest.
    prereg_nvme::disk::ignore_file_size_signal();
    let mut out = io::stdout().lock();
    let result = dispatch(cli.command, &mut out).and_then(|outcome| {
        out.flush()?;
        Ok(outcome)
    });
    match result {
        Ok(Outcome::Clean) => ExitCode::SUCCESS,
        Ok(Outcome::Wrong) => ExitCode::from(1),
        Err(failure) => {
            if !failure.is_closed_pipe() {
                // Nobody is left to tell when this fails too.
                let _ = writeln!(io::stderr(), "prereg: {failure}");
            }
            ExitCode::from(failure.exit_code())
        }
    }
}

fn dispatch(command: Commands, out: &mut impl Write) -> Result<Outcome, Failure> {
    match command {
        Commands::Replay(args) => replay::run(&args, out, &interrupt()?, Progress::on_terminal()),
        Commands::Conform(args) => conform::run(&args, out),
        Commands::Doctor(args) => doctor::run(&args, out),
        Commands::Selftest(args) => selftest::run(&args, out),
        Commands::Bench(Benches::Registration(args)) => {
            registration::run(&args, out, &interrupt()?, Progress::on_terminal())
        }
        Commands::Bench(Benches::HotPath(args)) => {
            hot_path::run(&args, out, &interrupt()?, Progress::on_terminal())
        }
        Commands::Bench(Benches::Nvme(args)) => nvme_bench::run(&args, out, &interrupt()?),
        Commands::Serve(args) => serve::run(&args, out, &interrupt()?),
        Commands::Status(args) => status::run(&args, out, &interrupt()?),
        Commands::Completions(args) => Ok(completions::run(&args, Cli::command(), out)?),
        Commands::Man(ManArgs {}) => Ok(man::run(Cli::command(), out)?),
    }
}

fn interrupt() -> Result<Interrupt, Failure> {
    Interrupt::on_signals().map_err(|error| Failure::host("listening for Ctrl-C", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }
}
