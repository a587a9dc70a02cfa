//! The transcript in the output of a guest's console.
//!
//! Transcript lines begin with `> `, notes of the guest program with `# `. All other lines are the kernel's and are dropped.

use prereg_scenario::transcript::{Block, push_line};

/// The notes that report a fault of the guest program or of a scenario.
const FAULT: &str = "# trouble";

/// A recorded transcript.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Recording {
    pub(crate) blocks: Vec<Block>,
    /// Faults that the guest program reported.
    pub(crate) faults: Vec<String>,
}

impl Recording {
    /// Reads the lines of a console.
    pub(crate) fn of_console(lines: &[String]) -> Self {
        let mut recording = Self::default();
        for line in without_firmware(lines) {
            if let Some(answer) = line.strip_prefix("> ") {
                push_line(&mut recording.blocks, answer);
            } else if line.starts_with(FAULT) {
                recording.faults.push(line[2..].to_owned());
            }
        }
        recording
    }
}

/// The lines without messages of the firmware. It has the same console and may print in the middle of a line, whose rest is then
/// on the next line.
fn without_firmware(lines: &[String]) -> Vec<String> {
    let mut whole = Vec::new();
    let mut begun = String::new();
    for line in lines {
        if let Some(at) = firmware(line) {
            begun.push_str(&line[..at]);
        } else {
            begun.push_str(line);
            whole.push(std::mem::take(&mut begun));
        }
    }
    whole.extend(Some(begun).filter(|rest| !rest.is_empty()));
    whole
}

/// The offset of a firmware message in `line`: `[   20.205589057,3] ...`, seconds with nine digits and a level.
fn firmware(line: &str) -> Option<usize> {
    line.match_indices('[').map(|(at, _)| at).find(|&at| {
        let stamp = line[at + 1..].split_once("] ").map(|(stamp, _)| stamp.trim_start());
        let parts = stamp.and_then(|stamp| stamp.split_once('.')).and_then(|(seconds, rest)| {
            let (fraction, level) = rest.split_once(',')?;
            Some([seconds, fraction, level])
        });
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        parts.is_some_and(|parts| parts[1].len() == 9 && parts.iter().all(|part| digits(part)))
    })
}

#[cfg(test)]
mod tests {
    use prereg_scenario::transcript::text;

    use super::*;

    #[test]
    fn a_firmware_message_may_split_a_line() {
        let message = "[   20.205589057,3] SBE: Timer stuck, falling back to OPAL pollers.";
        let lines = [
            "> == e06 create ".to_owned() + message,
            "window sizes".to_owned(),
            message.to_owned(),
            "> v2 c0 0 => ok lck=0".to_owned(),
            "> mem A 4P => ok at=[0x1] size=[1.5,2] ".to_owned(),
        ];
        let recording = Recording::of_console(&lines);
        let wanted =
            "== e06 create window sizes\nv2 c0 0 => ok lck=0\nmem A 4P => ok at=[0x1] size=[1.5,2] \n";
        assert_eq!(text(&recording.blocks), wanted);
    }

    #[test]
    fn a_console_gives_the_transcript_and_the_faults_and_nothing_else() {
        let lines = "firmware says hello\n# kernel 6 page 4096\n> == one\n> map => ok lck=0\nnoise\n> unmap => ok lck=0\n\
                     # trouble: scenario one was killed by signal 7\n> == two\n> status => ok lck=0 pin=0\n";
        let recording = Recording::of_console(&lines.lines().map(str::to_owned).collect::<Vec<_>>());
        let wanted = "== one\nmap => ok lck=0\nunmap => ok lck=0\n== two\nstatus => ok lck=0 pin=0\n";
        assert_eq!(text(&recording.blocks), wanted);
        assert_eq!(recording.faults, ["trouble: scenario one was killed by signal 7"]);
    }
}
