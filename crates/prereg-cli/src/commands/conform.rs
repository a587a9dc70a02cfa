//! `prereg conform`: compares prereg's containers with the recorded answers of kernels.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use prereg::Granule;
use prereg_conformance::compare::{Answers, Comparator, Difference, Verdict};
use prereg_conformance::deviations::Deviations;
use prereg_conformance::machine::Machine;
use prereg_conformance::run::run as perform;
use prereg_scenario::script::Script;

use crate::commands::Outcome;
use crate::error::CommandError;

/// Run the kernel's conformance scenarios over prereg's containers
///
/// Performs scenario files on a fake host and prints the answer to every operation, in the format of the kernel's recorded
/// answers. With --answers every line is compared: equal, explained by a deviation of the rules, after a deviation that
/// changed the state, or unexplained, which ends the program with status 1.
#[derive(Debug, Args)]
pub(crate) struct ConformArgs {
    /// Scenario files
    #[arg(required = true, value_name = "FILE.scn")]
    scenarios: Vec<PathBuf>,
    /// Recorded answers of a kernel
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Page size of the host
    #[arg(long, value_enum, default_value = "4k")]
    page_size: PageSize,
    /// Machine [default: the one that a file's first comment names, or powernv9]
    #[arg(long, value_enum)]
    machine: Option<MachineArg>,
    /// Deviations to use instead of those built in
    #[arg(long, value_name = "FILE.toml")]
    deviations: Option<PathBuf>,
    /// Print the totals as JSON (needs --answers)
    #[arg(long, requires = "answers")]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum PageSize {
    /// 4 KiB
    #[value(name = "4k")]
    K4,
    /// 64 KiB
    #[value(name = "64k")]
    K64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum MachineArg {
    /// Bare-metal POWER9: four groups, no huge pages for user memory
    #[value(name = "powernv9")]
    PowerNv9,
    /// Bare-metal POWER8: three groups, 16 MiB huge pages
    #[value(name = "powernv8")]
    PowerNv8,
    /// A guest of a POWER hypervisor: three groups, 2 MiB huge pages
    Pseries,
}

impl From<MachineArg> for Machine {
    fn from(machine: MachineArg) -> Self {
        match machine {
            MachineArg::PowerNv9 => Self::PowerNv9,
            MachineArg::PowerNv8 => Self::PowerNv8,
            MachineArg::Pseries => Self::Pseries,
        }
    }
}

fn read(path: &Path) -> Result<String, CommandError> {
    let failed =
        |why: &dyn ToString| CommandError::host(format!("reading {}", path.display()), why.to_string());
    let bytes = fs::read(path).map_err(|error| failed(&error))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Performs the scenarios, and compares the answers if recorded ones are given.
///
/// # Errors
/// [`CommandError`] if a file cannot be read or the deviations are malformed.
pub(crate) fn run(args: &ConformArgs, out: &mut impl Write) -> Result<Outcome, CommandError> {
    let deviations = match &args.deviations {
        Some(path) => Deviations::parse(&read(path)?)
            .map_err(|error| CommandError::host(format!("reading {}", path.display()), error))?,
        None => Deviations::parse(Deviations::BUILT_IN)
            .map_err(|error| CommandError::host("reading the deviations built in", error))?,
    };
    let answers = args.answers.as_deref().map(read).transpose()?;
    let mut comparator = answers.map(|text| Comparator::new(&deviations, Answers::parse(&text)));
    let granule = match args.page_size {
        PageSize::K4 => Granule::K4,
        PageSize::K64 => Granule::K64,
    };
    let mut outcome = Outcome::Ok;
    for path in &args.scenarios {
        let script = Script::parse(&read(path)?);
        let machine = args.machine.map_or_else(|| Machine::of_script(&script), Machine::from);
        for scenario in &script.scenarios {
            let transcript = perform(scenario, machine, granule)?;
            if let Some(left) = &transcript.leak {
                outcome = Outcome::Mismatch;
                if !args.json {
                    writeln!(
                        out,
                        "{}: not released at the end of {}: {left}",
                        path.display(),
                        scenario.name
                    )?;
                }
            }
            match &mut comparator {
                None => write!(out, "{transcript}")?,
                Some(comparator) => {
                    let differences = comparator.compare(&transcript);
                    if !args.json {
                        print_differences(out, path, &scenario.name, &differences)?;
                    }
                }
            }
        }
    }
    let Some(comparator) = comparator else { return Ok(outcome) };
    let totals = &comparator.totals;
    if args.json {
        serde_json::to_writer_pretty(&mut *out, totals)?;
        writeln!(out)?;
    } else {
        if comparator.unused() > 0 {
            writeln!(out, "{} recorded scenarios were not run", comparator.unused())?;
        }
        writeln!(out, "scenarios        {:7}", totals.scenarios)?;
        writeln!(out, "lines            {:7}", totals.lines)?;
        writeln!(out, "equal            {:7}", totals.equal)?;
        writeln!(out, "explained        {:7}", totals.explained.values().sum::<u64>())?;
        for (rule, lines) in &totals.explained {
            writeln!(out, "  {rule:28} {lines:7}")?;
        }
        writeln!(out, "after deviation  {:7}", totals.after_deviation)?;
        writeln!(out, "unexplained      {:7}", totals.unexplained)?;
    }
    Ok(if totals.unexplained > 0 { Outcome::Mismatch } else { outcome })
}

fn print_differences(
    out: &mut impl Write,
    path: &Path,
    scenario: &str,
    differences: &[Difference],
) -> Result<(), CommandError> {
    for difference in differences {
        let verdict = match &difference.verdict {
            Verdict::Equal => continue,
            Verdict::Explained(rule) => format!("explained by {rule}"),
            Verdict::AfterDeviation => "after a deviation".to_owned(),
            Verdict::Unexplained => "UNEXPLAINED".to_owned(),
        };
        writeln!(out, "{}:{}: {scenario}: {verdict}", path.display(), difference.number)?;
        writeln!(out, "  kernel {}", difference.kernel.as_deref().unwrap_or("(no line)"))?;
        writeln!(out, "  ours   {}", difference.ours.as_deref().unwrap_or("(no line)"))?;
    }
    Ok(())
}
