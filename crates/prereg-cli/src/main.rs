//! The program `prereg`. Everything it does is in the library of this package.

use std::process::ExitCode;

fn main() -> ExitCode {
    prereg_cli::cli::run(std::env::args_os())
}
