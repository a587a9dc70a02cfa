//! `prereg man`: one manual page for all commands, from the source of `--help`.

use std::io::{self, Write};

use clap::{Args, Command};
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use super::Outcome;

/// Print the manual page
#[derive(Debug, Args)]
#[command(after_help = "Example: prereg man > ~/.local/share/man/man1/prereg.1")]
pub(crate) struct ManArgs {}

/// Writes the manual page of `program` and its commands.
///
/// # Errors
/// If `out` cannot be written.
pub(crate) fn run(mut program: Command, out: &mut impl Write) -> io::Result<Outcome> {
    program.build();
    let page = Man::new(program.clone());
    page.render_title(out)?;
    page.render_name_section(out)?;
    page.render_synopsis_section(out)?;
    page.render_description_section(out)?;
    page.render_options_section(out)?;
    commands(&program, out)?;
    exit_status(out)?;
    after_help(&program, "SH", out)?;
    page.render_version_section(out)?;
    Ok(Outcome::Ok)
}

/// The sections of each command with their headings one level down, then those of its subcommands.
fn commands(parent: &Command, out: &mut impl Write) -> io::Result<()> {
    for command in
        parent.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help")
    {
        let name = command.get_bin_name().unwrap_or(command.get_name());
        Roff::default().control("SH", [name.to_uppercase().as_str()]).to_writer(out)?;
        let page = Man::new(command.clone());
        let mut sections = Vec::new();
        page.render_synopsis_section(&mut sections)?;
        page.render_description_section(&mut sections)?;
        page.render_options_section(&mut sections)?;
        for line in sections.split_inclusive(|&byte| byte == b'\n') {
            match line.strip_prefix(b".SH ") {
                Some(heading) => {
                    out.write_all(b".SS ")?;
                    out.write_all(heading)?;
                }
                // The page has its preamble already.
                None if line.starts_with(b".ie ") || line.starts_with(b".el ") => {}
                None => out.write_all(line)?,
            }
        }
        after_help(command, "SS", out)?;
        commands(command, out)?;
    }
    Ok(())
}

/// The text after the options, in sections: notes and examples. The exit status has a section of the page.
fn after_help(command: &Command, heading: &str, out: &mut impl Write) -> io::Result<()> {
    let Some(text) = command.get_after_help().map(ToString::to_string) else { return Ok(()) };
    for part in text.split("\n\n").map(str::trim).filter(|part| !part.starts_with("Exit status:")) {
        let mut roff = Roff::default();
        let examples = part.strip_prefix("Examples:\n").or_else(|| part.strip_prefix("Example: "));
        match examples {
            Some(examples) => {
                roff.control(heading, ["EXAMPLES"]).control("nf", []);
                roff.text(
                    examples.lines().map(|line| roman(format!("{}\n", line.trim()))).collect::<Vec<_>>(),
                );
                roff.control("fi", []);
            }
            None => {
                roff.control(heading, ["NOTES"]).text([roman(part)]);
            }
        }
        roff.to_writer(out)?;
    }
    Ok(())
}

fn exit_status(out: &mut impl Write) -> io::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in [
        ("0", "Success."),
        (
            "1",
            "A mismatch, a leak, a failed step of the self test, or a check (`serve --check`, `doctor --guest`) that fails.",
        ),
        ("2", "Bad arguments, a bad file, or an error of the host. Nothing is left pinned."),
        ("130", "Interrupted. Everything is released."),
    ] {
        roff.control("TP", []).text([roman(code)]).text([roman(meaning)]);
    }
    roff.to_writer(out)
}
