//! Shows the promise of real mode: `promise [COUNT]` maps and unmaps COUNT pages (default 10^8) in a plain loop and as many in
//! a signal handler that interrupts it, and prints page faults, allocations and system calls. Fails if there is one.

use std::process::ExitCode;

use prereg::{AddressSpace, Granule, PageShift, UserAddr};
use prereg_benches::promise::{
    CountingAllocator, Tally, Target, forbid_system_calls, handled, map_and_unmap, map_in_handler,
};
use prereg_linux::Membarrier;
use prereg_sim::SimHost;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::new();

/// Pages of the registered memory: more than a cache holds the addresses of.
const PAGES: u64 = 1 << 18;

fn main() -> ExitCode {
    let count = match std::env::args().nth(1).map_or(Ok(100_000_000), |text| text.parse::<u64>()) {
        Ok(count) => count,
        Err(error) => {
            eprintln!("promise: a number of maps, please ({error})");
            return ExitCode::from(2);
        }
    };
    let host = SimHost::new(Granule::K4);
    let first = UserAddr::new(0x7f00_0000_0000);
    let memory = host.memory(first.raw(), PAGES * PageShift::K4.bytes());
    let barrier = Membarrier::shared();
    let fenced = barrier.is_none();
    let space = match barrier {
        Some(barrier) => AddressSpace::with_barrier(host, barrier),
        None => AddressSpace::new(host),
    };
    let registration = match space.register(&memory) {
        Ok(registration) => registration,
        Err(error) => {
            eprintln!("promise: {error}");
            return ExitCode::FAILURE;
        }
    };
    let target = Target { first: registration.ua(), pages: PAGES };
    let mut translator = space.translator();
    // So that it interrupts a hundred times.
    let each = (count / 100).max(1);
    map_in_handler(libc::SIGVTALRM, space.translator(), target, each);
    every_millisecond();
    let filtered = forbid_system_calls();

    let before = Tally::now(&ALLOCATOR);
    let mut refused = map_and_unmap(&mut translator, target, count);
    let mut looped = count;
    // Until the handler has had its share.
    while handled().0 < count {
        refused += map_and_unmap(&mut translator, target, each);
        looped += each;
    }
    let after = Tally::now(&ALLOCATOR);

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
    // A line that was not written is not worth a second try.
    let _ = std::io::stdout().flush();
    #[expect(unsafe_code, reason = "the destructors would make system calls")]
    // SAFETY: ends the program.
    unsafe {
        libc::_exit(code)
    }
}
