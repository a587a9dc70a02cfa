//! Process 1 of the oracle's guest: asks the running kernel what the scenarios ask, and prints what it says.
//!
//! `boot` makes the kernel ready and lists the device groups; `script` is the text of the scenarios; `run` takes one
//! scenario after the other, each in a fresh process and so in a fresh address space; `op` is what each operation does;
//! `sys` is the edge to the kernel, the only file that says `unsafe`. Whoever started the machine reads the console:
//! a line that begins with `> ` belongs to the transcript, one with `# ` is a note, and the last one is [`END`].
//!
//! Nothing here may give up: a scenario that kills its process is noted, and the next one starts.

mod boot;
mod kmsg;
mod op;
mod process;
mod region;
mod run;
mod sys;

/// The line after which the machine may be switched off.
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
