//! `prereg completions`: completion scripts for shells.

use std::io::{self, Write};

use clap::{Args, Command};
use clap_complete::Shell;

use super::Outcome;

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(
    after_help = "Example: prereg completions bash > ~/.local/share/bash-completion/completions/prereg"
)]
pub(crate) struct CompletionsArgs {
    /// Shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Writes the script that completes `program`.
///
/// # Errors
/// If `out` cannot be written.
pub(crate) fn run(args: &CompletionsArgs, mut program: Command, out: &mut impl Write) -> io::Result<Outcome> {
    // Into memory first: the generator panics if its output fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut program, "prereg", &mut script);
    out.write_all(&script)?;
    Ok(Outcome::Ok)
}
