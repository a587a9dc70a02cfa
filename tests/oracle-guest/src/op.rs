//! The operations of scenarios.
//!
//! `memory` and `privileges` change the calling process, `vfio` uses container and groups, the module `region` calls the
//! kernel's region functions. All words are parsed first, so a malformed line changes nothing.

mod memory;
mod privileges;
mod vfio;

use prereg_scenario::names::{Kind, Malformed};
use prereg_scenario::script::Line;
use prereg_scenario::transcript::Answer;

use crate::process::{Process, status, word};
use crate::region;

/// Performs `line`.
pub(crate) fn perform(process: &mut Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let op = line.op();
    if op.starts_with("m.") {
        return region::perform(process, line);
    }
    let asked = memory::perform(process, line)
        .or_else(|| privileges::perform(process, line))
        .or_else(|| vfio::perform(process, line));
    if let Some(answer) = asked {
        return answer;
    }
    match op {
        "let" => {
            let value = process.names.sum(word(line, 2)?)?;
            process.names.set(word(line, 1)?, Kind::Number, value);
            Ok(Answer::done())
        }
        "status" => Ok(Answer::done().with(format!("pin={}", status("VmPin")))),
        _ => Err(Malformed(format!("unknown operation '{op}'"))),
    }
}
