//! What the self test found: one line a step, and the kernel's answers beside ours.

use std::io::{self, Write};

use serde::Serialize;

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// As it must be.
    Passed,
    /// Not as it must be.
    Failed,
    /// Not done, for a reason.
    Skipped,
}

/// One thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// A short name.
    pub name: &'static str,
    /// How it ended.
    pub verdict: Verdict,
    /// What was seen, or why it was not done.
    pub text: String,
}

/// One call, answered twice.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// The call.
    pub call: String,
    /// What the kernel said.
    pub kernel: String,
    /// What we said.
    pub ours: String,
}

/// All that was found.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The back end.
    pub backend: &'static str,
    /// The device, if there was one.
    pub device: Option<String>,
    /// `uname -r`.
    pub kernel: String,
    /// The system page in bytes.
    pub page_bytes: u64,
    /// Whether nothing failed.
    pub passed: bool,
    /// What was tried, in order.
    pub steps: Vec<Step>,
    /// The kernel's own answers beside ours, when they were asked for.
    pub side_by_side: Vec<Row>,
    /// Every exchange with the kernel, when they were asked for.
    pub exchanges: Vec<String>,
}

/// Why a step is not passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It failed.
    Failed(String),
    /// It could not be done here.
    Skipped(String),
}

/// What a step says.
pub type Said = Result<String, Bad>;

/// A step that failed.
pub fn failed<T>(text: impl ToString) -> Result<T, Bad> {
    Err(Bad::Failed(text.to_string()))
}

/// A step that could not be done here.
pub fn skipped<T>(text: impl ToString) -> Result<T, Bad> {
    Err(Bad::Skipped(text.to_string()))
}

impl Report {
    /// An empty report.
    #[must_use]
    pub fn new(backend: &'static str, device: Option<String>, page_bytes: u64) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            backend,
            device,
            kernel: kernel.trim().to_owned(),
            page_bytes,
            passed: true,
            steps: Vec::new(),
            side_by_side: Vec::new(),
            exchanges: Vec::new(),
        }
    }

    /// Notes what a step said; `true` when it passed.
    pub fn note(&mut self, name: &'static str, said: Said) -> bool {
        let (verdict, text) = match said {
            Ok(text) => (Verdict::Passed, text),
            Err(Bad::Failed(text)) => (Verdict::Failed, text),
            Err(Bad::Skipped(text)) => (Verdict::Skipped, text),
        };
        self.passed &= verdict != Verdict::Failed;
        self.steps.push(Step { name, verdict, text });
        verdict == Verdict::Passed
    }

    /// Prints it for people.
    ///
    /// # Errors
    /// When `out` cannot be written.
    pub fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let device = self.device.as_deref().map_or(String::new(), |device| format!(" on {device}"));
        writeln!(
            out,
            "prereg selftest: {}{device}, Linux {}, pages of {} bytes\n",
            self.backend, self.kernel, self.page_bytes
        )?;
        for Step { name, verdict, text } in &self.steps {
            let mark = match verdict {
                Verdict::Passed => "ok",
                Verdict::Failed => "FAILED",
                Verdict::Skipped => "skipped",
            };
            writeln!(out, "{mark:<8}{name:<14}{text}")?;
        }
        if !self.side_by_side.is_empty() {
            self.print_side_by_side(out)?;
        }
        if !self.exchanges.is_empty() {
            writeln!(out, "\nExchanges with the kernel")?;
            for line in &self.exchanges {
                writeln!(out, "{line}")?;
            }
        }
        let count = |wanted| self.steps.iter().filter(|step| step.verdict == wanted).count();
        writeln!(
            out,
            "\n{}: {} passed, {} failed, {} skipped",
            if self.passed { "PASSED" } else { "FAILED" },
            count(Verdict::Passed),
            count(Verdict::Failed),
            count(Verdict::Skipped)
        )
    }

    fn print_side_by_side(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\nThe kernel's own answers beside ours")?;
        let width = |text: fn(&Row) -> &String, least: usize| {
            self.side_by_side.iter().map(|row| text(row).len()).fold(least, usize::max) + 2
        };
        let (call, kernel) = (width(|row| &row.call, 4), width(|row| &row.kernel, 6));
        writeln!(out, "  {:<call$}{:<kernel$}ours", "call", "kernel")?;
        for row in &self.side_by_side {
            writeln!(out, "  {:<call$}{:<kernel$}{}", row.call, row.kernel, row.ours)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_step_fails_the_report_and_a_skipped_one_does_not() {
        let mut report = Report::new("vfio-type1", Some("0000:00:04.0".into()), 4096);
        assert!(report.note("register", Ok("1 call".into())));
        assert!(!report.note("dma", skipped("no edu")));
        assert!(report.passed);
        assert!(!report.note("busy", failed("unregistered")));
        assert!(!report.passed);
        report.side_by_side.push(Row { call: "unregister".into(), kernel: "0".into(), ours: "EBUSY".into() });
        let mut out = Vec::new();
        report.print(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(
            text.contains("on 0000:00:04.0") && text.contains("FAILED: 1 passed, 1 failed, 1 skipped"),
            "{text}"
        );
        assert!(text.contains("  unregister  0       EBUSY"), "{text}");
    }
}
