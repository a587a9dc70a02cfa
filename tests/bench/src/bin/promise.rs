//! Demonstrates the no-fault guarantee of mapping: `promise [COUNT]` maps and unmaps COUNT pages (default 10^8) in a loop and
//! as many in a signal handler that interrupts it, and prints page faults, allocations and system calls. Fails if there is one.
//!
//! `promise --squeezed [COUNT]` does this in a memory cgroup whose limit another process in it exceeds all the time, and prints
//! how many pages the kernel reclaimed. Skipped, with the reason, if such a cgroup cannot be made.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use prereg::{AddressSpace, Granule, PageShift, UserAddr};
use prereg_benches::guarantees::memcg_pressure::{MemoryCgroup, Pressure, enter, read_repeatedly};
use prereg_benches::guarantees::no_fault::{
    CountingAllocator, Target, ThreadCounters, forbid_system_calls, handled, lock_program, map_and_unmap,
    map_in_handler,
};
use prereg_linux::{LockedTables, Membarrier};
use prereg_sim::SimHost;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// Pages of the registered memory: more addresses than a cache holds.
const PAGES: u64 = 1 << 18;
/// Bytes of the cgroup's limit, and of the file that the other process reads.
const ROOM: u64 = 32 << 20;
const GREED: u64 = 512 << 20;
/// Runs until the other process reclaims memory during one.
const ATTEMPTS: u32 = 10;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => keep(100_000_000),
        ["--squeezed"] => under_pressure("100000000"),
        ["--squeezed", count] => under_pressure(count),
        ["--in", group, count] => {
            enter(Path::new(group)).map_err(|error| error.to_string()).and_then(|()| run_counted(count))
        }
        ["--read_repeatedly", group] => enter(Path::new(group))
            .and_then(|()| read_repeatedly(&std::env::temp_dir(), GREED))
            .map(|()| ExitCode::SUCCESS)
            .map_err(|error| error.to_string()),
        [count] => run_counted(count),
        _ => Err("usage: promise [--squeezed] [COUNT]".to_owned()),
    };
    done.unwrap_or_else(|why| {
        eprintln!("promise: {why}");
        ExitCode::FAILURE
    })
}

fn run_counted(count: &str) -> Result<ExitCode, String> {
    keep(count.parse().map_err(|error| format!("a number of maps, please ({error})"))?)
}

/// Runs in a memory cgroup with a process that exceeds its limit.
fn under_pressure(count: &str) -> Result<ExitCode, String> {
    let group = match MemoryCgroup::new(&format!("prereg-promise-{}", std::process::id()), ROOM) {
        Ok(group) => group,
        Err(why) => {
            println!("skipped: {why}");
            return Ok(ExitCode::SUCCESS);
        }
    };
    let program = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let start = |option: &str| {
        let mut command = Command::new(&program);
        command.arg(option).arg(group.folder());
        command
    };
    // The process ends when its standard input is closed.
    let mut neighbour =
        start("--read_repeatedly").stdin(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let mut outcome = ExitCode::FAILURE;
    // If the other process got no processor time, nothing was reclaimed.
    for _ in 0..ATTEMPTS {
        let (kept, before, after) = beside(&group, start("--in").arg(count))?;
        println!(
            "a group of {} MiB, with a neighbour that reads {} MiB again and again",
            ROOM >> 20,
            GREED >> 20
        );
        println!("before: {before}");
        println!("after:  {after}");
        if !kept {
            break;
        }
        if after.at_limit > before.at_limit && after.taken > before.taken {
            outcome = ExitCode::SUCCESS;
            break;
        }
        println!("the kernel took nothing away: once more");
    }
    drop(neighbour.stdin.take());
    neighbour.wait().map_err(|error| error.to_string())?;
    let swap = std::fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1);
    println!("swap: {}", if swap { "yes" } else { "none, so that pages of files alone can be taken" });
    Ok(outcome)
}

/// Runs the worker and prints its output. Returns whether it succeeded, and the cgroup's counters when mapping began and after
/// it.
fn beside(group: &MemoryCgroup, worker: &mut Command) -> Result<(bool, Pressure, Pressure), String> {
    let mut worker = worker.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let mut before = group.pressure();
    for line in worker.stdout.take().map(BufReader::new).into_iter().flat_map(BufRead::lines) {
        let line = line.map_err(|error| error.to_string())?;
        // Printed when mapping begins.
        if line.starts_with("tables:") {
            before = group.pressure();
        }
        println!("{line}");
    }
    let after = group.pressure();
    let status = worker.wait().map_err(|error| error.to_string())?;
    Ok((status.success(), before, after))
}

/// Maps and unmaps `count` pages in a loop, and as many in a handler.
fn keep(count: u64) -> Result<ExitCode, String> {
    let host = SimHost::new(Granule::K4);
    let first = UserAddr::new(0x7f00_0000_0000);
    let memory = host.memory(first.raw(), PAGES * PageShift::K4.bytes());
    let barrier = Membarrier::shared();
    let fenced = barrier.is_none();
    let mut builder = AddressSpace::builder(host).tables(LockedTables::shared());
    if let Some(barrier) = barrier {
        builder = builder.barrier(barrier);
    }
    let space = builder.build().map_err(|error| error.to_string())?;
    let registration = space.register(&memory).map_err(|error| error.to_string())?;
    let target = Target { first: registration.ua(), pages: PAGES };
    let mut translator = space.translator();
    // The handler runs a hundred times.
    let each = (count / 100).max(1);
    map_in_handler(libc::SIGVTALRM, space.translator(), target, each);
    let program = match lock_program() {
        Ok(bytes) => format!("{} KiB of the program itself", bytes >> 10),
        Err(error) => format!("not the program itself ({error})"),
    };
    let tables = space.snapshot().tables;
    let why = tables.unlocked_because.map_or_else(String::new, |why| format!(" ({why})"));
    println!("tables: {} KiB, {} KiB locked{why}; and {program}", tables.held >> 10, tables.locked >> 10);
    every_millisecond();
    let filtered = forbid_system_calls();

    let before = ThreadCounters::now(&ALLOCATOR);
    let mut refused = map_and_unmap(&mut translator, target, count);
    let mut looped = count;
    // Until the handler has done its part.
    while handled().0 < count {
        refused += map_and_unmap(&mut translator, target, each);
        looped += each;
    }
    let after = ThreadCounters::now(&ALLOCATOR);

    let (in_handler, refused_there) = handled();
    let faults = after.minor_faults - before.minor_faults + after.major_faults - before.major_faults;
    let allocations = after.allocations - before.allocations;
    println!("maps and unmaps: {looped} in a loop, {in_handler} in a signal handler that interrupted it");
    println!("refused: {}", refused + refused_there);
    println!("page faults: {faults}");
    println!("allocations: {allocations}");
    if filtered {
        println!("system calls: 0 (the filter would have ended the program at the first)");
    } else {
        println!("system calls: not counted, this kernel takes no filter");
    }
    if fenced {
        println!("every map passed a fence: this kernel has no membarrier");
    }
    let kept = refused + refused_there == 0 && faults == 0 && allocations == 0;
    exit_at_once(i32::from(!kept))
}

/// Interrupts this thread every millisecond of its own processor time.
fn every_millisecond() {
    let millisecond = libc::timeval { tv_sec: 0, tv_usec: 1000 };
    let timer = libc::itimerval { it_interval: millisecond, it_value: millisecond };
    #[expect(unsafe_code, reason = "a timer that the library has no name for")]
    // SAFETY: the timer is valid for reading; nothing is written.
    let answer = unsafe { libc::setitimer(libc::ITIMER_VIRTUAL, &raw const timer, std::ptr::null_mut()) };
    assert_eq!(answer, 0, "no timer");
}

/// Ends the program with the one call that the filter lets through.
fn exit_at_once(code: i32) -> ! {
    use std::io::Write;
    // An error of the output changes nothing.
    let _ = std::io::stdout().flush();
    #[expect(unsafe_code, reason = "the destructors would make system calls")]
    // SAFETY: ends the program.
    unsafe {
        libc::_exit(code)
    }
}
