//! `prereg status`: what a running server does.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Outcome;
use crate::failure::Failure;
use crate::interrupt::Interrupt;
use crate::serve::control::{self, ControlError, ask};
use crate::serve::print::print;

/// Say what a running `prereg serve` does: clients, devices, memory, and why an unmap waits
#[derive(Debug, Args)]
#[command(after_help = "Example: prereg status --json | jq '.memory.registrations'")]
pub struct StatusArgs {
    /// The server's control socket
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,

    /// Print JSON
    #[arg(long)]
    json: bool,

    /// Ask again every SECONDS, until Ctrl-C
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u32).range(1..=86400))]
    watch: Option<u32>,
}

/// Asks, and prints.
///
/// # Errors
/// [`Failure::Host`] when no server answers, [`Failure::Interrupted`] never: leaving a watch is a good end.
pub fn run(args: &StatusArgs, out: &mut impl Write, interrupt: &Interrupt) -> Result<Outcome, Failure> {
    let path = args.control.clone().or_else(control::default_path).ok_or_else(|| {
        Failure::host(
            "asking a server",
            "this user has no runtime folder (XDG_RUNTIME_DIR); name the socket with --control",
        )
    })?;
    loop {
        let status = match ask(&path) {
            Ok(status) => status,
            // A watch outlasts a busy moment.
            Err(error @ ControlError::Busy { .. }) if args.watch.is_some() && interrupt.check().is_ok() => {
                eprintln!("prereg: {error}");
                continue;
            }
            Err(error) => return Err(Failure::host("asking a server", error)),
        };
        if args.json {
            // One document a line when there are several, so that a reader can tell them apart.
            if args.watch.is_some() {
                serde_json::to_writer(&mut *out, &status)?;
            } else {
                serde_json::to_writer_pretty(&mut *out, &status)?;
            }
            writeln!(out)?;
        } else {
            if args.watch.is_some() {
                // The terminal's own words for "home, and clear what is below".
                write!(out, "\x1b[H\x1b[J")?;
            }
            print(&status, out)?;
        }
        out.flush()?;
        let Some(seconds) = args.watch else { return Ok(Outcome::Clean) };
        for _ in 0..u64::from(seconds) * 10 {
            if interrupt.check().is_err() {
                return Ok(Outcome::Clean);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}
