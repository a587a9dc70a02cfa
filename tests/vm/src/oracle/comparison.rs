//! Differences between a stored and a recorded transcript.

use prereg_scenario::transcript::Block;

/// The result of a comparison.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Comparison {
    /// Scenarios whose lines are all equal.
    pub(crate) passed: usize,
    pub(crate) failed: usize,
    /// The differing lines under the names of their scenarios: `-` stored, `+` recorded.
    pub(crate) lines: Vec<String>,
}

impl Comparison {
    /// Compares `recorded` with `stored`.
    pub(crate) fn of(stored: &[Block], recorded: &[Block]) -> Self {
        let mut comparison = Self::default();
        // The n-th block of a name is compared with the n-th: names are unique, but there may be several empty ones.
        let mut rest: Vec<&Block> = recorded.iter().collect();
        for old in stored {
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

/// The shortest edit from `old` to `new`: ` ` kept, `-` removed, `+` added. Quadratic; scenarios are short.
fn difference<'a>(old: &'a [String], new: &'a [String]) -> Vec<(char, &'a str)> {
    // common[i][j]: length of the longest common subsequence of old[i..] and new[j..]
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
    let (mut i, mut j, mut edit) = (0, 0, Vec::new());
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i] == new[j] {
            edit.push((' ', old[i].as_str()));
            (i, j) = (i + 1, j + 1);
        } else if j == new.len() || (i < old.len() && common[i + 1][j] >= common[i][j + 1]) {
            edit.push(('-', old[i].as_str()));
            i += 1;
        } else {
            edit.push(('+', new[j].as_str()));
            j += 1;
        }
    }
    edit
}

#[cfg(test)]
mod tests {
    use prereg_scenario::transcript::parse;

    use super::*;

    const STORED: &str = "== one\nmap => ok lck=0\nunmap => ok lck=0\n== two\nstatus => ok lck=0 pin=0\n";

    fn compared(recorded: &str) -> Comparison {
        Comparison::of(&parse(STORED), &parse(recorded))
    }

    #[test]
    fn equal_transcripts_pass() {
        assert_eq!(compared(STORED), Comparison { passed: 2, failed: 0, lines: Vec::new() });
    }

    #[test]
    fn a_changed_answer_a_lost_line_and_a_lost_scenario_fail() {
        let comparison =
            compared("== one\nmap => -EINVAL lck=0\nunmap => ok lck=0\n== two\nstatus => ok lck=0 pin=0\n");
        assert_eq!((comparison.passed, comparison.failed), (1, 1));
        assert_eq!(comparison.lines, ["@@ one @@", "-map => ok lck=0", "+map => -EINVAL lck=0"]);

        let comparison = compared("== one\nunmap => ok lck=0\n");
        assert_eq!((comparison.passed, comparison.failed), (0, 2));
        assert_eq!(
            comparison.lines,
            ["@@ one @@", "-map => ok lck=0", "@@ two (only in one) @@", "-status => ok lck=0 pin=0"]
        );

        let more = STORED.to_owned() + "== three\n";
        assert_eq!(compared(&more).failed, 1, "a scenario without stored answers is a difference");
    }
}
