//! `prereg status`: prints the state of a running server.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::Outcome;
use crate::error::CommandError;
use crate::interrupt::Interrupt;
use crate::serve::advert::advertised;
use crate::serve::control::{self, ControlError, query};
use crate::serve::print::print;
use crate::serve::status::Status;

/// Print the state of a running `prereg serve`: clients, devices, memory, pending unmaps
#[derive(Debug, Args)]
#[command(after_help = "Example: prereg status --json | jq '.memory.registrations'")]
pub(crate) struct StatusArgs {
    /// Control socket of the server [default: every server of this host]
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
pub(crate) fn run(
    args: &StatusArgs,
    out: &mut impl Write,
    interrupt: &Interrupt,
) -> Result<Outcome, CommandError> {
    loop {
        if args.watch.is_some() && !args.json {
            // Control sequences: cursor to the top left, clear to the end.
            write!(out, "\x1b[H\x1b[J")?;
        }
        match print_servers(args, out)? {
            None => {}
            // A watch retries.
            Some(error @ ControlError::Busy { .. }) if args.watch.is_some() && interrupt.check().is_ok() => {
                eprintln!("prereg: {error}");
                continue;
            }
            Some(error) => return Err(CommandError::host("querying the server", error)),
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

/// Prints the status of the named server, or of every server of this host. Returns an error if none answered.
fn print_servers(args: &StatusArgs, out: &mut impl Write) -> Result<Option<ControlError>, CommandError> {
    let usual = control::default_path();
    let paths = match &args.control {
        Some(path) => [path.clone()].into(),
        None => {
            let mut paths = advertised();
            // Of a server that could not advertise.
            paths.extend(usual.clone().filter(|path| path.exists()));
            paths
        }
    };
    let several = paths.len() > 1;
    let (mut answered, mut failed) = (0, None);
    for path in &paths {
        match query(path) {
            Ok(status) => {
                if several && !args.json {
                    let space = if answered > 0 { "\n" } else { "" };
                    writeln!(out, "{space}Server at {}", path.display())?;
                }
                print_one(args, &status, out)?;
                answered += 1;
            }
            Err(error) => {
                if let Some(before) = failed.replace(error) {
                    eprintln!("prereg: {before}");
                }
            }
        }
    }
    match (failed, answered) {
        (None, 0) => {
            let usual = usual
                .map_or(String::new(), |path| format!(" (its usual control socket is {})", path.display()));
            let why = format!(
                "no prereg serve answers on this host{usual}; start one, or name its control socket with --control"
            );
            Err(CommandError::host("querying the servers", why))
        }
        (failed, 0) => Ok(failed),
        (failed, _) => {
            // Such as that of another user.
            failed.into_iter().for_each(|error| eprintln!("prereg: {error}"));
            Ok(None)
        }
    }
}

fn print_one(args: &StatusArgs, status: &Status, out: &mut impl Write) -> Result<(), CommandError> {
    if !args.json {
        return Ok(print(status, out)?);
    }
    // One document per line if there are several.
    if args.watch.is_some() {
        serde_json::to_writer(&mut *out, status)?;
    } else {
        serde_json::to_writer_pretty(&mut *out, status)?;
    }
    Ok(writeln!(out)?)
}
