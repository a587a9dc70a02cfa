//! Running scenarios: a process for each, a line of the transcript for each operation.

use std::fs;
use std::io::Write;

use crate::answer::{Answer, Errno};
use crate::boot::Host;
use crate::kmsg::Log;
use crate::names::{Malformed, Names};
use crate::op;
use crate::script::{self, Line};
use crate::sys::{self, End};

/// Where anonymous memory of a scenario begins unless it says otherwise: far from the program, and always the same.
const FIRST_MEMORY: u64 = 0x2_0000_0000;

/// What one process of a scenario carries from line to line; a child gets a copy.
#[derive(Clone, Debug)]
pub(crate) struct Process<'a> {
    pub(crate) host: &'a Host,
    pub(crate) names: Names,
    /// Where the next memory goes.
    pub(crate) next_memory: u64,
    /// Pages of the memory that was mapped last.
    pub(crate) last_pages: u64,
    /// The door to the kernel's own region calls, once it was opened.
    pub(crate) door: Option<i32>,
}

/// Runs every scenario of `text`.
pub(crate) fn all(text: &str, host: &Host) {
    let mut log = Log::open();
    for scenario in script::scenarios(text) {
        println!("> == {}", scenario.name);
        log.skip();
        let end = forked(|| {
            let names = Names::new(host.page);
            Process { host, names, next_memory: FIRST_MEMORY, last_pages: 0, door: None }
                .run(&scenario.lines);
        });
        if let End::Signal(signal) = end {
            println!("# trouble: scenario {} was killed by signal {signal}", scenario.name);
        }
        log.print();
    }
}

/// Runs `work` in a process of its own and waits for its end.
fn forked(work: impl FnOnce()) -> End {
    // What is buffered would be printed by both.
    let _ = std::io::stdout().flush();
    sys::fork_and_wait(|| {
        work();
        let _ = std::io::stdout().flush();
    })
}

impl Process<'_> {
    fn run(&mut self, lines: &[Line<'_>]) {
        let mut place = 0;
        while let Some(line) = lines.get(place) {
            place += 1;
            sys::quieten_console();
            if line.op() == "child" {
                let end = script::end_of_child(lines, place);
                println!("> child {{");
                let ended = forked(|| self.clone().run(&lines[place..end]));
                println!("> }} endchild => ok lck={} exit={ended}", locked());
                place = end + 1;
                continue;
            }
            let spelled = self.spell_pages(line);
            let spelled = spelled.as_deref().and_then(Line::parse);
            let line = spelled.as_ref().unwrap_or(line);
            match op::perform(self, line) {
                Ok(answer) => println!("> {} => {}", line.text(), with_lock(&answer)),
                Err(Malformed(why)) => {
                    println!("# trouble: {}: {why}", line.text());
                    println!("> {} => PARSE_ERROR", line.text());
                }
            }
        }
    }
}

impl Process<'_> {
    /// A region call with the pages of the last memory for the word `N`, if it has one: the number depends on the page,
    /// and the transcript is to show it. A scenario that gives the name another meaning keeps it.
    fn spell_pages(&self, line: &Line<'_>) -> Option<String> {
        if !line.op().starts_with("m.") || !line.says("N") || self.names.sum("N").is_ok() {
            return None;
        }
        let pages = self.last_pages.to_string();
        let text = line.text();
        Some(
            text.split(' ').map(|word| if word == "N" { &pages } else { word }).collect::<Vec<_>>().join(" "),
        )
    }
}

fn with_lock(answer: &Answer) -> String {
    let mut text = match answer.code {
        0 => "ok".to_owned(),
        code if code < 0 => format!("-{}", Errno::of_code(code)),
        code => code.to_string(),
    };
    text.push_str(&format!(" lck={}", locked()));
    for note in &answer.notes {
        text.push(' ');
        text.push_str(note);
    }
    text
}

/// KiB that are charged as locked to this process.
fn locked() -> i64 {
    status("VmLck")
}

/// A number of this process's status, -1 when there is none.
pub(crate) fn status(key: &str) -> i64 {
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(-1)
}
