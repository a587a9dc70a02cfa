//! The results of mutants, compared with `mutants.toml`, and their tables.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fmt::Write as _;

use super::name::MutantName;
use super::policy::Accepted;

/// The result of a mutant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Verdict {
    /// A test failed; its name, if known.
    Killed(String),
    /// The tests did not end.
    TimedOut,
    /// It does not compile.
    Unviable,
    /// All tests passed.
    Survived,
    /// Not tried, or not with all of its tests, for lack of time.
    Untested,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Killed(by) => f.pad(&format!("killed by {by}")),
            Self::TimedOut => f.pad("timeout"),
            Self::Unviable => f.pad("unviable"),
            Self::Survived => f.pad("SURVIVED"),
            Self::Untested => f.pad("untested"),
        }
    }
}

/// Contradictions to the list of accepted mutants. `all` is every existing mutant, or `None` if only a part was listed.
pub(crate) fn diagnostics(
    all: Option<&BTreeSet<MutantName>>,
    results: &[(MutantName, Verdict)],
    accepted: &[Accepted],
) -> Vec<String> {
    let mut diagnostics = Vec::new();
    let mut listed = BTreeSet::new();
    for entry in accepted {
        if entry.reason.trim().is_empty() {
            diagnostics.push(format!("accepted without a reason: {}", entry.name));
        }
        if !listed.insert(&entry.name) {
            diagnostics.push(format!("accepted twice: {}", entry.name));
        }
        if all.is_some_and(|all| !all.contains(&entry.name)) {
            diagnostics.push(format!("accepted, but there is no such mutant; strike it: {}", entry.name));
        }
    }
    for (name, verdict) in results {
        match (verdict, listed.contains(name)) {
            (Verdict::Survived, false) => diagnostics.push(format!(
                "survived: {name}\n  Write a test that fails with it, or enter it with a reason:\n{}",
                name.entry()
            )),
            (Verdict::Killed(_) | Verdict::TimedOut | Verdict::Unviable, true) => {
                diagnostics.push(format!(
                    "accepted, but it does not survive any more ({verdict}); strike it: {name}"
                ));
            }
            _ => {}
        }
    }
    diagnostics
}

/// Numbers of mutants by result.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Count {
    mutants: usize,
    killed: usize,
    timeouts: usize,
    unviable: usize,
    accepted: usize,
    survivors: usize,
    untested: usize,
}

impl Count {
    /// The results for the files for which `include` is true.
    pub(crate) fn of(
        results: &[(MutantName, Verdict)],
        accepted: &[Accepted],
        include: impl Fn(&str) -> bool,
    ) -> Self {
        let listed: BTreeSet<&MutantName> = accepted.iter().map(|entry| &entry.name).collect();
        let mut count = Self::default();
        for (name, verdict) in results.iter().filter(|(name, _)| include(&name.file)) {
            count.mutants += 1;
            *match verdict {
                Verdict::Killed(_) => &mut count.killed,
                Verdict::TimedOut => &mut count.timeouts,
                Verdict::Unviable => &mut count.unviable,
                Verdict::Survived if listed.contains(name) => &mut count.accepted,
                Verdict::Survived => &mut count.survivors,
                Verdict::Untested => &mut count.untested,
            } += 1;
        }
        count
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { mutants, killed, timeouts, unviable, accepted, survivors, untested } = self;
        write!(f, "{mutants} mutants: {killed} killed, {timeouts} timeouts, {unviable} unviable, ")?;
        write!(f, "{accepted} accepted, {survivors} survivors")?;
        if *untested > 0 { write!(f, ", {untested} left out") } else { Ok(()) }
    }
}

/// A table of `results`: a row per file, and a row of sums.
pub(crate) fn table(results: &[(MutantName, Verdict)], accepted: &[Accepted]) -> String {
    let mut text = String::from(
        "| file | mutants | killed | timeouts | unviable | accepted | survivors |\n|---|--:|--:|--:|--:|--:|--:|\n",
    );
    let files: BTreeSet<&str> = results.iter().map(|(name, _)| name.file.as_str()).collect();
    let mut row = |title: &str, count: Count| {
        let Count { mutants, killed, timeouts, unviable, accepted, survivors, .. } = count;
        let _ = writeln!(
            text,
            "| {title} | {mutants} | {killed} | {timeouts} | {unviable} | {accepted} | {survivors} |"
        );
    };
    for file in files {
        row(&format!("`{file}`"), Count::of(results, accepted, |name| name == file));
    }
    row("all", Count::of(results, accepted, |_| true));
    text
}

/// Memory-order mutants by name, with the test that killed each.
pub(crate) fn list(results: &[(MutantName, Verdict)], accepted: &[Accepted]) -> String {
    let reasons: BTreeMap<&MutantName, &str> =
        accepted.iter().map(|entry| (&entry.name, entry.reason.as_str())).collect();
    let mut text = String::from("| file | mutant | result |\n|---|---|---|\n");
    for (name, verdict) in results {
        let result = match (verdict, reasons.get(name)) {
            (Verdict::Survived, Some(reason)) => format!("accepted: {reason}"),
            _ => verdict.to_string(),
        };
        let file = name.file.rsplit_once("/src/").map_or(name.file.as_str(), |(_, file)| file);
        let nth = if name.nth > 0 { format!(" #{}", name.nth) } else { String::new() };
        // A bar would end the cell.
        let mutation = name.mutation.replace('|', "\\|");
        let _ = writeln!(text, "| {file} | {mutation}{nth} | {result} |");
    }
    text
}

/// `document` with `text` between the lines `<!-- NAME: begin -->` and `<!-- NAME: end -->`; `None` if it has no such lines.
pub(crate) fn replaced(document: &str, name: &str, text: &str) -> Option<String> {
    let (begin, end) = (format!("<!-- {name}: begin -->\n"), format!("<!-- {name}: end -->"));
    let (before, rest) = document.split_once(&begin)?;
    let (_, after) = rest.split_once(&end)?;
    Some(format!("{before}{begin}{text}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(mutation: &str) -> MutantName {
        MutantName { file: "a.rs".to_owned(), mutation: mutation.to_owned(), at: "x".to_owned(), nth: 0 }
    }

    fn accepted(mutation: &str, reason: &str) -> Accepted {
        Accepted { name: name(mutation), reason: reason.to_owned() }
    }

    #[test]
    fn a_survivor_must_be_listed_and_the_list_may_not_lag_behind() {
        let all: BTreeSet<MutantName> = ["a", "b", "c"].map(name).into();
        let results = [
            (name("a"), Verdict::Survived),
            (name("b"), Verdict::Killed("tests".to_owned())),
            (name("c"), Verdict::Untested),
        ];
        assert!(diagnostics(Some(&all), &results, &[accepted("a", "no effect")]).is_empty());
        assert!(diagnostics(Some(&all), &results, &[accepted("a", "x"), accepted("c", "x")]).is_empty());
        for (list, says) in [
            (vec![], "survived"),
            (vec![accepted("a", " ")], "without a reason"),
            (vec![accepted("a", "x"), accepted("a", "y")], "twice"),
            (vec![accepted("a", "x"), accepted("b", "x")], "does not survive any more"),
            (vec![accepted("a", "x"), accepted("gone", "x")], "no such mutant"),
        ] {
            let found = diagnostics(Some(&all), &results, &list);
            assert_eq!(found.len(), 1, "{found:?}");
            assert!(found[0].contains(says), "{}", found[0]);
        }
        assert!(diagnostics(None, &results, &[accepted("a", "x"), accepted("gone", "x")]).is_empty());
    }

    #[test]
    fn every_result_is_counted_once() {
        let verdicts = [
            Verdict::Killed(String::new()),
            Verdict::TimedOut,
            Verdict::Unviable,
            Verdict::Survived,
            Verdict::Survived,
            Verdict::Untested,
        ];
        let results: Vec<_> =
            verdicts.into_iter().enumerate().map(|(n, verdict)| (name(&n.to_string()), verdict)).collect();
        let list = [accepted("3", "no effect")];
        assert_eq!(
            Count::of(&results, &list, |_| true).to_string(),
            "6 mutants: 1 killed, 1 timeouts, 1 unviable, 1 accepted, 1 survivors, 1 left out"
        );
        assert!(table(&results, &list).ends_with("| all | 6 | 1 | 1 | 1 | 1 | 1 |\n"));
    }

    #[test]
    fn text_between_marks_is_replaced() {
        let document = "# A\n<!-- r: begin -->\nold\n<!-- r: end -->\nrest\n";
        let new = replaced(document, "r", "new\n").expect("the marks are there");
        assert_eq!(new, "# A\n<!-- r: begin -->\nnew\n<!-- r: end -->\nrest\n");
        assert_eq!(replaced(document, "s", "new\n"), None);
    }
}
