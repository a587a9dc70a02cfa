//! What each operation of a scenario asks the kernel.
//!
//! `memory` and `process` change the asking process, `vfio` asks through the container and the groups, `region` (in
//! the module above) calls the kernel's region functions directly. Words are all read before anything is asked, so a
//! malformed line changes nothing.

mod memory;
mod process;
mod vfio;

use crate::answer::Answer;
use crate::names::{Malformed, Value};
use crate::region;
use crate::run::{Process, status};
use crate::script::Line;

/// Asks what `line` asks.
pub(crate) fn perform(process: &mut Process<'_>, line: &Line<'_>) -> Result<Answer, Malformed> {
    let op = line.op();
    if op.starts_with("m.") {
        return region::perform(process, line);
    }
    let asked = memory::perform(process, line)
        .or_else(|| process::perform(process, line))
        .or_else(|| vfio::perform(process, line));
    if let Some(answer) = asked {
        return answer;
    }
    match op {
        "let" => {
            let value = process.names.sum(word(line, 2)?)?;
            process.names.set(word(line, 1)?, Value::Number(value));
            Ok(Answer::default())
        }
        "status" => Ok(Answer::noted(format!("pin={}", status("VmPin")))),
        _ => Err(Malformed(format!("unknown operation '{op}'"))),
    }
}

/// Word `place` of the line; 0 is the operation.
pub(crate) fn word<'a>(line: &Line<'a>, place: usize) -> Result<&'a str, Malformed> {
    line.words.get(place).copied().ok_or_else(|| Malformed(format!("word {place} is missing")))
}

/// The sum that is word `place`.
pub(crate) fn sum(process: &Process<'_>, line: &Line<'_>, place: usize) -> Result<u64, Malformed> {
    process.names.sum(word(line, place)?)
}

/// The sum of the option `key`, if it is given.
pub(crate) fn option(process: &Process<'_>, line: &Line<'_>, key: &str) -> Result<Option<u64>, Malformed> {
    line.option(key).map(|text| process.names.sum(text)).transpose()
}

/// The open file that word `place` names.
pub(crate) fn file(process: &Process<'_>, line: &Line<'_>, place: usize) -> Result<i32, Malformed> {
    process.names.file(word(line, place)?)
}
