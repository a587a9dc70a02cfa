//! `cargo xtask oracle`: real kernels answer the conformance scenarios again, and the answers are compared with the stored
//! ones.
//!
//! The answers in `conformance/answers` come from real kernels. This records them anew from Debian kernels with 4 KiB and 64
//! KiB pages under an emulator and shows every changed line. `options` parses the command line; `scenario_set` finds scenarios
//! with stored answers; `kernel` fetches kernels, headers and tools; `guest` builds the guest program and `kmod` its kernel
//! module; `machine` configures the emulator; `recording` reads the console; `comparison` shows the differences. Nothing
//! outside of the user's cache changes.

mod comparison;
mod guest;
pub(crate) mod kernel;
mod kmod;
mod machine;
mod options;
pub(crate) mod page_size;
mod recording;
mod scenario_set;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use prereg_scenario::transcript;

use self::comparison::Comparison;
use self::kernel::DistroKernel;
use self::options::Options;
use self::recording::Recording;
use self::scenario_set::ScenarioSet;
use crate::cache::Cache;
use crate::error::Error;
use crate::machine::cpio::Archive;
use crate::machine::run::Run;

/// Differing lines printed per set; the recorded file has all.
const SHOWN: usize = 60;

/// Time limit of a set. Most take less than half a minute on an idle machine.
const LIMIT: Duration = Duration::from_secs(900);

/// The last line of the guest program.
const END_MARK: &str = "# end of the transcript";

/// Runs the command; `words` follow `oracle` on the command line.
pub fn command(root: &Path, words: &[String]) -> ExitCode {
    let options = match Options::parse(words) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print!("{}", options::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(what) => {
            eprint!("xtask oracle: {what}\n{}", options::USAGE);
            return ExitCode::from(2);
        }
    };
    match ask_again(root, &options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask oracle: {error}");
            ExitCode::from(2)
        }
    }
}

/// Records and compares the chosen sets; true if all answers are as stored.
fn ask_again(root: &Path, options: &Options) -> Result<bool, Error> {
    let sets = scenario_set::find(root, options)?;
    let cache = Cache::open("oracle")?;
    if options.fresh {
        println!("oracle: begins with an empty cache");
        cache.clear()?;
    }
    let kernel = DistroKernel::fetch(&cache)?;
    println!("oracle: kernels {}", kernel.version());
    let source = root.join("conformance/oracle");
    let program = guest::build(&root.join("tests/oracle-guest"), &cache, &kernel)?;
    let recorded = cache.folder("recorded")?;
    let (mut passed, mut failed) = (0_usize, 0_usize);
    for set in &sets {
        let door = kmod::build(&source.join("module"), &cache, &kernel, set.page_size)?;
        let image = initramfs(set, &kernel, &program, &door)?;
        let (recording, took) = match record(set, &cache, &kernel, &image) {
            Ok(recorded) => recorded,
            // This set has failed as a whole; the others are still compared.
            Err(error) => {
                println!("{set}: NOT recorded: {error}");
                failed += 1;
                continue;
            }
        };
        let file = recorded.join(format!("{set}.txt"));
        fs::write(&file, transcript::text(&recording.blocks)).map_err(Error::file(&file))?;
        for fault in &recording.faults {
            println!("    {fault}");
        }
        let Some(answers) = &set.answers else {
            println!(
                "{set}: {} scenarios, nothing stored to compare with: {}",
                recording.blocks.len(),
                file.display()
            );
            continue;
        };
        let stored = fs::read_to_string(answers).map_err(Error::file(answers))?;
        let comparison = Comparison::of(&transcript::parse(&stored), &recording.blocks);
        let verdict = if comparison.failed == 0 { "as stored" } else { "NOT as stored" };
        println!(
            "{set}: {verdict}: {} scenarios equal, {} not, {:.0} s",
            comparison.passed,
            comparison.failed,
            took.as_secs_f64()
        );
        if comparison.failed > 0 {
            show(&comparison, answers, &file);
        }
        passed += comparison.passed;
        failed += comparison.failed;
    }
    println!("{passed} passed, {failed} failed");
    Ok(failed == 0)
}

fn show(comparison: &Comparison, answers: &Path, recorded: &Path) {
    println!("--- {}\n+++ {}", answers.display(), recorded.display());
    for line in comparison.lines.iter().take(SHOWN) {
        println!("{line}");
    }
    if let Some(more) = comparison.lines.len().checked_sub(SHOWN + 1) {
        println!("... {} lines more", more + 1);
    }
}

/// The guest's file system: the guest program, the modules, the scenarios.
fn initramfs(
    set: &ScenarioSet,
    kernel: &DistroKernel,
    program: &Path,
    door: &Path,
) -> Result<Vec<u8>, Error> {
    let read = |path: &PathBuf| fs::read(path).map_err(Error::file(path));
    let mut archive = Archive::new();
    archive.folder("dev");
    archive.folder("modules");
    for module in kernel.modules(set.page_size)? {
        let name = module.file_name().unwrap_or_default().to_string_lossy().into_owned();
        archive.file(&format!("modules/{name}"), &read(&module)?);
    }
    archive.file("modules/mm_iommu_test.ko", &read(&door.to_owned())?);
    archive.file("scenarios", &read(&set.scenarios)?);
    archive.file("init", &read(&program.to_owned())?);
    Ok(archive.finish())
}

/// Boots the machine of `set` and records its answers.
fn record(
    set: &ScenarioSet,
    cache: &Cache,
    kernel: &DistroKernel,
    image: &[u8],
) -> Result<(Recording, Duration), Error> {
    let folder = cache.folder("runs")?;
    let initramfs = folder.join(format!("{set}.cpio"));
    fs::write(&initramfs, image).map_err(Error::file(&initramfs))?;
    let run = Run {
        program: "qemu-system-ppc64",
        arguments: set.machine.arguments(&kernel.image(set.page_size)?, &initramfs),
        end_mark: END_MARK,
        limit: LIMIT,
        console: folder.join(format!("{set}.console")),
    };
    let finished = run.go(kernel.tools())?;
    fs::remove_file(&initramfs).map_err(Error::file(&initramfs))?;
    Ok((Recording::of_console(&finished.lines), finished.took))
}
