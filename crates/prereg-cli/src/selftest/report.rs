//! The report of a self test: a line for each step, with prereg's counts beside the kernel's.

use std::io::{self, Write};

use serde::Serialize;

/// The verdict of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// The guarantee holds.
    Passed,
    /// It does not.
    Failed,
    /// Not tested.
    Skipped,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Step {
    /// A short name.
    pub name: &'static str,
    /// Its verdict.
    pub verdict: Verdict,
    /// The result, or the reason for the verdict.
    pub text: String,
}

/// One call with both results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Row {
    /// The call.
    pub call: String,
    /// The kernel's result.
    pub kernel: String,
    /// The back end's result.
    pub ours: String,
}

/// The whole report.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    /// The back end.
    pub backend: &'static str,
    /// The device, if there is one.
    pub device: Option<String>,
    /// `uname -r`.
    pub kernel: String,
    /// The host's page size.
    pub page_bytes: u64,
    /// Whether no step failed.
    pub passed: bool,
    /// The steps, in order.
    pub steps: Vec<Step>,
    /// The kernel's results beside ours, on request.
    pub kernel_reference: Vec<Row>,
    /// Every ioctl, on request.
    pub ioctls: Vec<String>,
}

/// The reason why a step did not pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum NotPassed {
    /// It failed.
    Failed(String),
    /// It cannot be tested here.
    Skipped(String),
}

/// The result of a step.
pub(crate) type StepResult = Result<String, NotPassed>;

/// A step that failed.
pub(crate) fn failed<T>(text: impl ToString) -> Result<T, NotPassed> {
    Err(NotPassed::Failed(text.to_string()))
}

/// A step that cannot be tested here.
pub(crate) fn skipped<T>(text: impl ToString) -> Result<T, NotPassed> {
    Err(NotPassed::Skipped(text.to_string()))
}

impl Report {
    /// An empty report.
    #[must_use]
    pub(crate) fn new(backend: &'static str, device: Option<String>, page_bytes: u64) -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            backend,
            device,
            kernel: kernel.trim().to_owned(),
            page_bytes,
            passed: true,
            steps: Vec::new(),
            kernel_reference: Vec::new(),
            ioctls: Vec::new(),
        }
    }

    /// Adds a step; `true` if it passed.
    pub(crate) fn record(&mut self, name: &'static str, result: StepResult) -> bool {
        let (verdict, text) = match result {
            Ok(text) => (Verdict::Passed, text),
            Err(NotPassed::Failed(text)) => (Verdict::Failed, text),
            Err(NotPassed::Skipped(text)) => (Verdict::Skipped, text),
        };
        self.passed &= verdict != Verdict::Failed;
        self.steps.push(Step { name, verdict, text });
        verdict == Verdict::Passed
    }

    /// Prints the report as text.
    ///
    /// # Errors
    /// If `out` cannot be written.
    pub(crate) fn print(&self, out: &mut impl Write) -> io::Result<()> {
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
            writeln!(out, "{mark:<8}{name:<18}{text}")?;
        }
        if !self.kernel_reference.is_empty() {
            self.print_kernel_reference(out)?;
        }
        if !self.ioctls.is_empty() {
            writeln!(out, "\nIoctls")?;
            for line in &self.ioctls {
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

    fn print_kernel_reference(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "\nResults of the kernel and of the back end")?;
        let width = |text: fn(&Row) -> &String, least: usize| {
            self.kernel_reference.iter().map(|row| text(row).len()).fold(least, usize::max) + 2
        };
        let (call, kernel) = (width(|row| &row.call, 4), width(|row| &row.kernel, 6));
        writeln!(out, "  {:<call$}{:<kernel$}ours", "call", "kernel")?;
        for row in &self.kernel_reference {
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
        assert!(report.record("register", Ok("1 call".into())));
        assert!(!report.record("dma", skipped("no edu")));
        assert!(report.passed);
        assert!(!report.record("busy", failed("unregistered")));
        assert!(!report.passed);
        report.kernel_reference.push(Row {
            call: "unregister".into(),
            kernel: "0".into(),
            ours: "EBUSY".into(),
        });
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
