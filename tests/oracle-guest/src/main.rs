//! Process 1 of the oracle's guest: performs the scenarios on the running kernel and prints its answers.
//!
//! `boot` prepares the kernel and lists the device groups; `run` performs the scenarios, each in a new process and so in a new
//! address space; `process` is the state of such a process; `op` performs operations, `region` those of the kernel's region
//! functions; `kmsg` reads the kernel's log; `sys` has the system calls and is the only file with `unsafe`. The console is the
//! output: a line that begins with `> ` belongs to the transcript, one with `# ` is a note, and the last one is [`END`].
//!
//! The program never gives up: if a scenario kills its process, this is noted, and the next one starts.

mod boot;
mod kmsg;
mod op;
mod process;
mod region;
mod run;
mod sys;

/// The last line.
const END: &str = "# end of the transcript";

fn main() {
    let host = boot::boot();
    match std::fs::read_to_string("/scenarios") {
        Ok(text) => run::all(&text, &host),
        Err(error) => println!("# trouble: no scenarios: {error}"),
    }
    println!("{END}");
    sys::power_off();
}
