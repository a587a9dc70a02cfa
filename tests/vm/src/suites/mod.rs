//! `cargo xtask vm`: guests with real kernels in emulated machines use the devices and back ends of this workspace.
//!
//! `options` parses the command line; `artifacts` has emulators, kernels and programs, `program` and `kernel` build some of
//! them; `guest` configures and boots a machine; `case` is a case's type; `nvme`, `strangers` and `vfio` have the cases,
//! `server` runs `prereg serve` for them; `load` and `huge_pages` prepare this machine for a case. This file runs the chosen
//! cases one after the other and reports.

mod artifacts;
mod case;
mod guest;
mod huge_pages;
mod kernel;
mod load;
mod nvme;
mod options;
mod program;
mod server;
mod strangers;
mod vfio;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use self::artifacts::Artifacts;
use self::case::{Case, Failure, Stage};
use self::options::Options;
use crate::cache::Cache;
use crate::error::Error;

/// Console lines printed of a failed case; its file has all.
const SHOWN: usize = 30;

/// Runs the command; `words` follow `vm` on the command line.
pub fn command(root: &Path, words: &[String]) -> ExitCode {
    let options = match Options::parse(words) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(what) => {
            eprint!("xtask vm: {what}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    let cases = match chosen(&options) {
        Ok(cases) => cases,
        Err(name) => {
            eprintln!("xtask vm: no case {name}; --list prints them");
            return ExitCode::from(2);
        }
    };
    if options.list {
        for case in &cases {
            println!("{:9} {:26} {}", case.suite.name(), case.name, case.shows);
        }
        return ExitCode::SUCCESS;
    }
    match run(root, &options, &cases) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask vm: the artifacts are missing: {error}");
            ExitCode::from(2)
        }
    }
}

/// The cases that `options` choose; the error is an unknown name.
fn chosen(options: &Options) -> Result<Vec<Case>, String> {
    let all = [nvme::cases(), strangers::cases(), vfio::CASES.to_vec()].concat();
    let unknown = options.only.iter().find(|name| all.iter().all(|case| case.name != name.as_str()));
    if let Some(name) = unknown {
        return Err(name.clone());
    }
    let named = |case: &Case| options.only.is_empty() || options.only.iter().any(|name| name == case.name);
    Ok(all.into_iter().filter(|case| options.suites.contains(&case.suite) && named(case)).collect())
}

/// Runs `cases` and reports; returns the number of failed ones.
fn run(root: &Path, options: &Options, cases: &[Case]) -> Result<usize, Error> {
    let cache = Cache::open("vm")?;
    if options.fresh {
        println!("vm: begins with an empty cache");
        cache.clear()?;
    }
    let begin = Instant::now();
    let artifacts = Artifacts::fetch(&cache, root)?;
    println!("vm: {}", artifacts.description());
    for case in cases {
        case.requires.fetch(&artifacts)?;
    }
    let building = Instant::now();
    if let Err(error) = cases.iter().try_for_each(|case| case.requires.build(&artifacts)) {
        // This is no missing artifact but a broken workspace.
        println!("vm result: FAILED. The programs for the guests could not be built: {error}");
        return Ok(cases.len());
    }
    println!("vm: built the programs for the guests in {:.1} s", building.elapsed().as_secs_f64());
    // Concurrent runs must not share folders.
    let number = std::process::id();
    let runs = cache.folder("runs")?;
    forget_old(&runs);
    let sockets = std::env::temp_dir().join(format!("prereg-vm-{number}"));
    let (mut failed, mut skipped) = (Vec::new(), 0);
    for case in cases {
        let folder = runs.join(number.to_string()).join(case.name);
        let stage = Stage::set(&artifacts, &folder, &sockets)?;
        let started = Instant::now();
        let verdict = (case.run)(&stage);
        let seconds = started.elapsed().as_secs_f64();
        match verdict {
            Ok(seen) => {
                println!("ok     {:9} {:26} {seconds:6.1} s  {seen}", case.suite.name(), case.name);
                if !options.keep {
                    // The next run removes it if this fails.
                    let _ = fs::remove_dir_all(&folder);
                }
            }
            Err(Failure::Skipped(why)) => {
                println!("skip   {:9} {:26} {seconds:6.1} s  {why}", case.suite.name(), case.name);
                skipped += 1;
            }
            Err(failure) => {
                println!("FAILED {:9} {:26} {seconds:6.1} s", case.suite.name(), case.name);
                show(&failure, &folder);
                failed.push(case.name);
            }
        }
    }
    let _ = fs::remove_dir_all(&sockets);
    let (all, bad) = (cases.len(), failed.len());
    let verdict = if bad == 0 { "ok".to_owned() } else { format!("FAILED ({})", failed.join(", ")) };
    println!(
        "vm result: {verdict}. {} passed; {bad} failed; {skipped} skipped; finished in {:.1} s",
        all - bad - skipped,
        begin.elapsed().as_secs_f64()
    );
    Ok(bad)
}

/// Removes the folders of runs whose process has ended.
fn forget_old(runs: &Path) {
    for entry in fs::read_dir(runs).into_iter().flatten().flatten() {
        let process = Path::new("/proc").join(entry.file_name());
        if !process.exists() {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Prints the reason of a failure and the ends of the case's logs.
fn show(failure: &Failure, folder: &Path) {
    println!("    {}", failure.to_string().replace('\n', "\n    "));
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut files: Vec<PathBuf> =
        files.filter(|path| path.extension().is_some_and(|end| end == "console" || end == "log")).collect();
    files.sort();
    for file in files {
        let text = fs::read(&file).map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        let text = text.unwrap_or_else(|error| error.to_string());
        let lines: Vec<&str> = text.lines().collect();
        println!("    --- the end of {}", file.display());
        for line in &lines[lines.len().saturating_sub(SHOWN)..] {
            println!("    | {line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(line: &str) -> Result<Vec<&'static str>, String> {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        let options = Options::parse(&words).expect("right").expect("no help is asked for");
        Ok(chosen(&options)?.iter().map(|case| case.name).collect())
    }

    #[test]
    fn cases_are_chosen_by_suite_and_name() {
        let all = names("--suite all").expect("all are known");
        let unique: std::collections::BTreeSet<&&str> = all.iter().collect();
        assert_eq!(unique.len(), all.len(), "a name is enough to choose a case");
        assert_eq!(names(&format!("--only {}", all[0])).expect("known"), [all[0]]);
        assert_eq!(names("--only no-such-case"), Err("no-such-case".to_owned()));
    }
}
