//! What a kernel answered, scenario by scenario, and where two transcripts differ.
//!
//! A scenario begins with `== NAME`; every further line is one answer. On the console the transcript's lines begin with
//! `> `, notes with `# `; anything else is the kernel's own and is passed by.

/// The answers to a set of scenarios.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Transcript {
    scenarios: Vec<Scenario>,
    /// What the guest program had to complain about.
    pub(crate) troubles: Vec<String>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Scenario {
    name: String,
    lines: Vec<String>,
}

impl Transcript {
    /// From the lines of a console.
    pub(crate) fn of_console(lines: &[String]) -> Self {
        let mut transcript = Self::default();
        for line in without_firmware(lines) {
            if let Some(answer) = line.strip_prefix("> ") {
                transcript.line(answer);
            } else if line.starts_with("# trouble") {
                transcript.troubles.push(line[2..].to_owned());
            }
        }
        transcript
    }

    /// From stored answers; some have the number of the scenario file's line in front.
    pub(crate) fn of_stored(text: &str) -> Self {
        let mut transcript = Self::default();
        for line in text.lines().map(str::trim_end).filter(|line| !line.is_empty()) {
            let number = line.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(0);
            transcript.line(line.get(number..).filter(|_| number > 0).map_or(line, str::trim_start));
        }
        transcript
    }

    fn line(&mut self, line: &str) {
        if let Some(name) = line.strip_prefix("== ") {
            self.scenarios.push(Scenario { name: name.to_owned(), lines: Vec::new() });
        } else if let Some(scenario) = self.scenarios.last_mut() {
            scenario.lines.push(line.to_owned());
        }
    }

    /// How many scenarios were asked.
    pub(crate) fn len(&self) -> usize {
        self.scenarios.len()
    }

    /// As it is stored.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for scenario in &self.scenarios {
            text.push_str(&format!("== {}\n", scenario.name));
            for line in &scenario.lines {
                text.push_str(line);
                text.push('\n');
            }
        }
        text
    }
}

/// The lines without what the firmware writes into them: it has the same console, and may come in the middle of a line,
/// whose rest then stands on the next one.
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

/// Where a message of the firmware begins in `line`: `[   20.205589057,3] ...`, seconds with nine digits and a level.
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

/// What became of stored answers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Comparison {
    /// Scenarios whose every line is as stored.
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// The differing lines, `-` stored and `+` recorded, under the names of their scenarios.
    pub(crate) lines: Vec<String>,
}

impl Comparison {
    pub(crate) fn of(stored: &Transcript, recorded: &Transcript) -> Self {
        let mut comparison = Self::default();
        // Names repeat in no set, but two empty ones would; the n-th of a name is compared with the n-th.
        let mut rest: Vec<&Scenario> = recorded.scenarios.iter().collect();
        for old in &stored.scenarios {
            let place = rest.iter().position(|new| new.name == old.name);
            let lines: &[String] = match place {
                Some(place) => &rest.remove(place).lines,
                None => &[],
            };
            comparison.scenario(&old.name, &old.lines, lines, place.is_some());
        }
        for new in rest {
            comparison.scenario(&new.name, &[], &new.lines, false);
        }
        comparison
    }

    fn scenario(&mut self, name: &str, old: &[String], new: &[String], in_both: bool) {
        if in_both && old == new {
            self.passed += 1;
            return;
        }
        self.failed += 1;
        self.lines.push(format!("@@ {name}{} @@", if in_both { "" } else { " (only in one)" }));
        for (mark, text) in difference(old, new) {
            if mark != ' ' {
                self.lines.push(format!("{mark}{text}"));
            }
        }
    }
}

/// The shortest way from `old` to `new`: ` ` kept, `-` gone, `+` come. Scenarios are short, so the square of their
/// length is no matter.
fn difference<'a>(old: &'a [String], new: &'a [String]) -> Vec<(char, &'a str)> {
    // common[i][j]: the longest common part of old[i..] and new[j..]
    let mut common = vec![vec![0_usize; new.len() + 1]; old.len() + 1];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            common[i][j] = if old[i] == new[j] {
                common[i + 1][j + 1] + 1
            } else {
                common[i + 1][j].max(common[i][j + 1])
            };
        }
    }
    let (mut i, mut j, mut way) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            way.push((' ', old[i].as_str()));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            way.push(('-', old[i].as_str()));
            i += 1;
        } else {
            way.push(('+', new[j].as_str()));
            j += 1;
        }
    }
    way
}

#[cfg(test)]
mod tests {
    use super::*;

    const STORED: &str = "== one\nmap => ok lck=0\nunmap => ok lck=0\n== two\nstatus => ok lck=0 pin=0\n";

    fn console(text: &str) -> Transcript {
        Transcript::of_console(&text.lines().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn the_firmware_may_speak_in_the_middle_of_a_line() {
        let message = "[   20.205589057,3] SBE: Timer stuck, falling back to OPAL pollers.";
        let lines = [
            "> == e06 create ".to_owned() + message,
            "window sizes".to_owned(),
            message.to_owned(),
            "> v2 c0 0 => ok lck=0".to_owned(),
            "> mem A 4P => ok at=[0x1] size=[1.5,2] ".to_owned(),
        ];
        let transcript = Transcript::of_console(&lines);
        let wanted =
            "== e06 create window sizes\nv2 c0 0 => ok lck=0\nmem A 4P => ok at=[0x1] size=[1.5,2] \n";
        assert_eq!(transcript.text(), wanted);
    }

    #[test]
    fn a_console_gives_the_transcript_and_the_troubles_and_nothing_else() {
        let recorded = console(
            "firmware says hello\n# kernel 6 page 4096\n> == one\n> map => ok lck=0\nnoise\n> unmap => ok lck=0\n\
             # trouble: scenario one was killed by signal 7\n> == two\n> status => ok lck=0 pin=0\n",
        );
        assert_eq!(recorded.text(), STORED);
        assert_eq!(recorded.troubles, ["trouble: scenario one was killed by signal 7"]);
        let comparison = Comparison::of(&Transcript::of_stored(STORED), &recorded);
        assert_eq!(comparison, Comparison { passed: 2, failed: 0, lines: Vec::new() });
    }

    #[test]
    fn stored_lines_may_be_numbered() {
        let numbered =
            "== one\n003 map => ok lck=0\n004 unmap => ok lck=0\n== two\n012 status => ok lck=0 pin=0\n";
        assert_eq!(Transcript::of_stored(numbered), Transcript::of_stored(STORED));
    }

    #[test]
    fn a_changed_answer_a_lost_line_and_a_lost_scenario_fail() {
        let stored = Transcript::of_stored(STORED);
        let changed = console(
            "> == one\n> map => -EINVAL lck=0\n> unmap => ok lck=0\n> == two\n> status => ok lck=0 pin=0",
        );
        let comparison = Comparison::of(&stored, &changed);
        assert_eq!((comparison.passed, comparison.failed), (1, 1));
        assert_eq!(comparison.lines, ["@@ one @@", "-map => ok lck=0", "+map => -EINVAL lck=0"]);

        let shorter = console("> == one\n> unmap => ok lck=0\n");
        let comparison = Comparison::of(&stored, &shorter);
        assert_eq!((comparison.passed, comparison.failed), (0, 2));
        assert_eq!(
            comparison.lines,
            ["@@ one @@", "-map => ok lck=0", "@@ two (only in one) @@", "-status => ok lck=0 pin=0"]
        );

        let more = console(
            "> == one\n> map => ok lck=0\n> unmap => ok lck=0\n> == two\n> status => ok lck=0 pin=0\n> == three\n",
        );
        assert_eq!(Comparison::of(&stored, &more).failed, 1, "a scenario that nobody stored is a difference");
    }
}
