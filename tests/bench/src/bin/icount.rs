//! Instructions per operation, counted by callgrind: a measure that other load on the machine cannot change.
//!
//! Without arguments this program runs itself under valgrind, twice for each operation with two run lengths, and prints the
//! cost of one operation: the difference of the two runs without the loop's own instructions. `--check` makes it fail when an
//! operation costs more than its goal. `--child` runs the counted loop.

use std::process::{Command, ExitCode};
use std::sync::Arc;

use prereg::{AddressSpace, Granule, HeapTables};
use prereg_benches::guarantees::SoleThread;
use prereg_benches::hot_path::candidate::{Case, Nothing, Workload};
use prereg_benches::hot_path::host::InventedHost;
use prereg_benches::hot_path::layout::{Layout, Pattern, Shape};
use prereg_benches::hot_path::prereg::{Prereg, PreregBurst, PreregLists};
use prereg_benches::hot_path::roofline::Roofline;
use prereg_sim::SimHost;

/// User address of the first region.
const BASE: u64 = 0x7f00_0000_0000;
/// Bytes registered.
const SIZE: u64 = 64 << 20;
/// Operations of the short and the long run.
const LENGTHS: [u64; 2] = [20_000, 120_000];

/// A counted operation.
struct Count {
    candidate: &'static str,
    case: Case,
    pattern: Pattern,
    layout: Layout,
    regions: u64,
    /// Upper limit of instructions.
    goal: Option<f64>,
}

const fn ours(case: Case, pattern: Pattern, layout: Layout, regions: u64, goal: f64) -> Count {
    Count { candidate: "prereg", case, pattern, layout, regions, goal: Some(goal) }
}

/// One burst for the whole run.
const fn burst(pattern: Pattern, layout: Layout, regions: u64, goal: f64) -> Count {
    Count { candidate: "prereg-burst", case: Case::MapUnmap, pattern, layout, regions, goal: Some(goal) }
}

const fn limit(case: Case, pattern: Pattern, layout: Layout, regions: u64) -> Count {
    Count { candidate: "limit", case, pattern, layout, regions, goal: None }
}

/// An operation on lists of 512 pages, as one H_PUT_TCE_INDIRECT carries: mapped at once, or page by page.
const fn list(candidate: &'static str, regions: u64, goal: Option<f64>) -> Count {
    let (pattern, layout) = (Pattern::Random, Layout::Scattered);
    Count { candidate, case: Case::MapUnmap, pattern, layout, regions, goal }
}

const COUNTS: [Count; 22] = [
    ours(Case::MapUnmap, Pattern::Sequential, Layout::Scattered, 1, 30.0),
    ours(Case::MapUnmap, Pattern::Random, Layout::Scattered, 1, 30.0),
    ours(Case::MapUnmap, Pattern::Random, Layout::Scattered, 64, 30.0),
    ours(Case::MapUnmap, Pattern::Random, Layout::Scattered, 4096, 30.0),
    ours(Case::MapUnmap, Pattern::Dependent, Layout::Scattered, 64, 30.0),
    ours(Case::MapUnmap, Pattern::Random, Layout::Contiguous, 64, 30.0),
    burst(Pattern::Sequential, Layout::Scattered, 1, 24.0),
    burst(Pattern::Random, Layout::Scattered, 1, 25.0),
    burst(Pattern::Random, Layout::Scattered, 64, 25.0),
    burst(Pattern::Random, Layout::Scattered, 4096, 25.0),
    burst(Pattern::Dependent, Layout::Scattered, 64, 25.0),
    burst(Pattern::Random, Layout::Contiguous, 64, 25.0),
    list("prereg-list", 1, Some(108.0)),
    list("prereg-each", 1, None),
    list("prereg-list", 64, Some(132.0)),
    list("prereg-each", 64, None),
    limit(Case::MapUnmap, Pattern::Random, Layout::Scattered, 64),
    limit(Case::MapUnmap, Pattern::Sequential, Layout::Scattered, 1),
    ours(Case::Translate, Pattern::Random, Layout::Scattered, 64, 20.0),
    limit(Case::Translate, Pattern::Random, Layout::Scattered, 64),
    ours(Case::Range, Pattern::Random, Layout::Scattered, 64, 1200.0),
    ours(Case::Range, Pattern::Random, Layout::Contiguous, 64, 256.0),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--child", index, candidate, length] => child(index, candidate, length, SIZE),
        // For other sizes by hand: `valgrind --tool=callgrind --cache-sim=yes icount --child 2 prereg 100000 4096`.
        ["--child", index, candidate, length, mib] => {
            child(index, candidate, length, mib.parse::<u64>().map_or(SIZE, |mib| mib << 20))
        }
        [] => parent(false),
        ["--check"] => parent(true),
        _ => {
            eprintln!("usage: icount [--check]");
            ExitCode::from(2)
        }
    }
}

/// Runs the counted loop.
fn child(index: &str, candidate: &str, length: &str, size: u64) -> ExitCode {
    let (Ok(index), Ok(length)) = (index.parse::<usize>(), length.parse::<u64>()) else {
        return ExitCode::from(2);
    };
    let Some(count) = COUNTS.get(index) else { return ExitCode::from(2) };
    let shape = Shape { size, regions: count.regions, layout: count.layout };
    let space = AddressSpace::builder(InventedHost::new(count.layout, None))
        .barrier(Arc::new(SoleThread::alone()))
        .build();
    let space = match space {
        Ok(space) => space,
        Err(error) => {
            eprintln!("icount: {error}");
            return ExitCode::FAILURE;
        }
    };
    let pages = SimHost::new(Granule::K4);
    let mut hosts = Vec::new();
    let mut held = Vec::new();
    for region in 0..shape.regions {
        let memory = pages.memory(BASE + shape.region_offset(region), shape.region_bytes());
        match space.register(&memory) {
            Ok(registration) => {
                registration.visit_runs(|_, host, bytes| {
                    hosts.extend((0..bytes).step_by(4096).map(|offset| host.raw() + offset));
                });
                held.push(registration);
            }
            Err(error) => {
                eprintln!("icount: {error}");
                return ExitCode::FAILURE;
            }
        }
    }
    let mut candidate: Box<dyn Workload> = match candidate {
        "prereg" => Box::new(Prereg(space.translator())),
        "prereg-burst" => Box::new(PreregBurst(space.translator())),
        "prereg-list" | "prereg-each" => {
            Box::new(PreregLists::new(space.translator(), candidate == "prereg-list"))
        }
        "limit" => Box::new(Roofline::new(shape, BASE, &hosts, Arc::new(HeapTables::new()))),
        _ => Box::new(Nothing),
    };
    candidate.pass(count.case, count.pattern, shape.addresses(BASE), shape.range_bytes(), length);
    ExitCode::SUCCESS
}

/// Runs the children and prints.
fn parent(check: bool) -> ExitCode {
    println!(
        "{:<12} {:<10} {:<11} {:<11} {:>7} {:>13} {:>6}",
        "subject", "case", "pattern", "layout", "regions", "instructions", "goal"
    );
    let mut missed = false;
    for (index, count) in COUNTS.iter().enumerate() {
        let (whole, empty) = match (per_operation(index, count.candidate), per_operation(index, "loop")) {
            (Ok(whole), Ok(empty)) => (whole, empty),
            (Err(why), _) | (_, Err(why)) => {
                eprintln!("icount: {why}");
                return ExitCode::from(2);
            }
        };
        // As it is printed.
        let instructions = ((whole - empty) * 10.0).round() / 10.0;
        let over = count.goal.is_some_and(|goal| instructions > goal);
        missed |= over;
        println!(
            "{:<12} {:<10} {:<11} {:<11} {:>7} {:>13.1} {:>6}{}",
            count.candidate,
            count.case.name(),
            count.pattern.name(),
            count.layout.name(),
            count.regions,
            instructions,
            count.goal.map_or(String::new(), |goal| goal.to_string()),
            if over { "  over" } else { "" }
        );
    }
    if check && missed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Instructions of one operation, including the loop.
fn per_operation(index: usize, candidate: &str) -> Result<f64, String> {
    let [short, long] = LENGTHS;
    let (few, many) = (instructions(index, candidate, short)?, instructions(index, candidate, long)?);
    Ok((many as f64 - few as f64) / (long - short) as f64)
}

/// Instructions of a whole run.
fn instructions(index: usize, candidate: &str, length: u64) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--child", &index.to_string(), candidate, &length.to_string()])
        .output()
        .map_err(|error| format!("valgrind cannot be run ({error}); install it"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said.lines().find_map(|line| line.split_once("Collected :"));
    let count = collected.and_then(|(_, number)| number.trim().parse().ok());
    count.ok_or_else(|| format!("valgrind did not say what it counted:\n{said}"))
}
