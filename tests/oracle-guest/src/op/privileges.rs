//! The privileges of the calling process: its limit of locked memory, its capabilities, its user.

use prereg_scenario::names::Malformed;
use prereg_scenario::script::Line;
use prereg_scenario::transcript::Answer;

use crate::process::{Process, word};
use crate::sys;

/// Linux's numbers; `libc` has none.
const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_RESOURCE: u32 = 24;

pub(crate) fn perform(process: &Process<'_>, line: &Line) -> Option<Result<Answer, Malformed>> {
    Some(match line.op() {
        "rlimit_memlock" => limit(process, line),
        "drop_ipc_lock" => drop_capability(CAP_IPC_LOCK),
        "drop_sys_resource" => drop_capability(CAP_SYS_RESOURCE),
        "setuid" => process.sum(line, 1).map(|user| sys::set_user(user).into()),
        _ => return None,
    })
}

fn limit(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let limit = match word(line, 1)? {
        "inf" => libc::RLIM_INFINITY,
        text => process.names.sum(text)?,
    };
    Ok(sys::limit_locked_memory(limit).into())
}

fn drop_capability(capability: u32) -> Result<Answer, Malformed> {
    // The following lines show a failure.
    let _ = sys::drop_capability(capability);
    Ok(Answer::done())
}
