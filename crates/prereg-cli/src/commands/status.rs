//! `prereg status`: prints the state of a running server.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Outcome;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::serve::control::{self, ControlError, query};
use crate::serve::print::print;

/// Print the state of a running `prereg serve`: clients, devices, memory, pending unmaps
#[derive(Debug, Args)]
#[command(after_help = "Example: prereg status --json | jq '.memory.registrations'")]
pub struct StatusArgs {
    /// Control socket of the server
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Repeat every SECONDS, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    watch: Option<u32>,
}

/// Queries and prints.
///
/// # Errors
/// [`CommandError::Host`] if no server answers. An interrupted watch is no error.
pub fn run(args: &StatusArgs, out: &mut impl Write, interrupt: &Interrupt) -> Result<Outcome, CommandError> {
    let path = args.control.clone().or_else(control::default_path).ok_or_else(|| {
        CommandError::host(
            "querying the server",
            "this user has no runtime folder (XDG_RUNTIME_DIR); name the socket with --control",
        )
    })?;
    loop {
        let status = match query(&path) {
            Ok(status) => status,
            // A watch retries.
            Err(error @ ControlError::Busy { .. }) if args.watch.is_some() && interrupt.check().is_ok() => {
                eprintln!("prereg: {error}");
                continue;
            }
            Err(error) => return Err(CommandError::host("querying the server", error)),
        };
        if args.json {
            // One document per line if there are several.
            if args.watch.is_some() {
                serde_json::to_writer(&mut *out, &status)?;
            } else {
                serde_json::to_writer_pretty(&mut *out, &status)?;
            }
            writeln!(out)?;
        } else {
            if args.watch.is_some() {
                // Control sequences: cursor to the top left, clear to the end.
                write!(out, "\x1b[H\x1b[J")?;
            }
            print(&status, out)?;
        }
        out.flush()?;
        let Some(seconds) = args.watch else { return Ok(Outcome::Ok) };
        for _ in 0..u64::from(seconds) * 10 {
            if interrupt.check().is_err() {
                return Ok(Outcome::Ok);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
