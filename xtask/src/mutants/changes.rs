//! The lines of a checkout that changed since a commit.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::process::Command;

use super::error::Error;
use super::process;

/// A difference as git prints it, and the changed lines of the new text by file.
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) diff: String,
    lines: BTreeMap<String, Vec<Range<usize>>>,
}

impl Changes {
    /// The changes of `checkout`, including uncommitted ones, since the commit `base`.
    ///
    /// # Errors
    /// git's message, for example that there is no such commit.
    pub(crate) fn since(checkout: &Path, base: &str) -> Result<Self, Error> {
        let mut git = Command::new("git");
        git.arg("-C").arg(checkout);
        git.args([
            "diff",
            "--no-color",
            "--no-ext-diff",
            "--src-prefix=a/",
            "--dst-prefix=b/",
            "--unified=0",
        ]);
        Ok(Self::of(process::output(git.args([base, "--", "*.rs"]))?))
    }

    fn of(diff: String) -> Self {
        let mut lines: BTreeMap<String, Vec<Range<usize>>> = BTreeMap::new();
        let mut file = None;
        for line in diff.lines() {
            if let Some(name) = line.strip_prefix("+++ ") {
                file = name.strip_prefix("b/").map(str::to_owned);
            } else if let (Some(file), Some(range)) = (&file, hunk(line)) {
                lines.entry(file.clone()).or_default().push(range);
            }
        }
        Self { diff, lines }
    }

    /// Whether a line of `file`, from 1, has changed.
    pub(crate) fn touches(&self, file: &str, line: usize) -> bool {
        self.lines.get(file).is_some_and(|ranges| ranges.iter().any(|range| range.contains(&line)))
    }

    /// Whether any line of `file` has changed.
    pub(crate) fn touch_file(&self, file: &str) -> bool {
        self.lines.contains_key(file)
    }
}

/// The new lines in the header of a hunk: `@@ -1,2 +3,4 @@`.
fn hunk(line: &str) -> Option<Range<usize>> {
    let new = line.strip_prefix("@@ -")?.split(' ').nth(1)?.strip_prefix('+')?;
    let (first, count) = new.split_once(',').unwrap_or((new, "1"));
    let (first, count): (usize, usize) = (first.parse().ok()?, count.parse().ok()?);
    Some(first..first + count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_new_text_are_read_from_the_heads_of_hunks() {
        let diff = "diff --git a/x.rs b/x.rs\n--- a/x.rs\n+++ b/x.rs\n@@ -1 +1,2 @@ fn f() {\n-a\n+b\n+c\n\
                    @@ -9,2 +10,0 @@\n-d\n-e\n--- a/gone.rs\n+++ /dev/null\n@@ -1 +0,0 @@\n-x\n";
        let changes = Changes::of(diff.to_owned());
        let touched: Vec<usize> = (0..20).filter(|&line| changes.touches("x.rs", line)).collect();
        assert_eq!(touched, [1, 2]);
        assert!(changes.touch_file("x.rs") && !changes.touch_file("gone.rs"));
    }
}
