//! Runs scenarios: one process per scenario, one line of transcript per operation.

use std::io::Write;

use prereg_scenario::names::Malformed;
use prereg_scenario::script::{self, Line, Script};
use prereg_scenario::transcript::{CHILD, END_OF_CHILD, parse_error};

use crate::boot::Host;
use crate::kmsg::Log;
use crate::op;
use crate::process::{Process, status};
use crate::sys::{self, End};

/// Runs every scenario of `text`.
pub(crate) fn all(text: &str, host: &Host) {
    let mut log = Log::open();
    for scenario in Script::parse(text).scenarios {
        println!("> == {}", scenario.name);
        log.skip();
        let end = forked(|| run(&mut Process::new(host), &scenario.lines));
        if let End::Signal(signal) = end {
            println!("# trouble: scenario {} was killed by signal {signal}", scenario.name);
        }
        log.print();
    }
}

/// Runs `work` in a child process and waits for its end.
fn forked(work: impl FnOnce()) -> End {
    // Buffered output would be printed by parent and child.
    let _ = std::io::stdout().flush();
    sys::fork_and_wait(|| {
        work();
        let _ = std::io::stdout().flush();
    })
}

fn run(process: &mut Process<'_>, lines: &[Line]) {
    let mut index = 0;
    while let Some(line) = lines.get(index) {
        index += 1;
        sys::quieten_console();
        if line.op() == "child" {
            let end = script::end_of_child(lines, index);
            println!("> {CHILD}");
            let ended = forked(|| run(&mut process.clone(), &lines[index..end]));
            println!("> {END_OF_CHILD} => ok lck={} exit={ended}", locked());
            index = end + 1;
            continue;
        }
        let mut line = line.clone();
        process.names.spell_page_counts(&mut line.words);
        let text = line.text();
        match op::perform(process, &line) {
            Ok(answer) => println!("> {text} => {}", answer.text(locked())),
            Err(Malformed(why)) => {
                println!("# trouble: {text}: {why}");
                println!("> {}", parse_error(&text));
            }
        }
    }
}

/// The locked memory of the calling process in KiB.
fn locked() -> i64 {
    status("VmLck")
}
