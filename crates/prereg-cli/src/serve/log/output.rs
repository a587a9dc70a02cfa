//! The output of the log: text for a terminal, text for the journal, or JSON.

use std::fmt;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::str::FromStr;

use serde::Deserialize;
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{FormatEvent, FormatFields, Writer};
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};
use tracing_subscriber::fmt::{FmtContext, MakeWriter};
use tracing_subscriber::registry::LookupSpan;

/// The format of the log.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum LogFormat {
    /// Lines of text: with time and colours on a terminal, with priorities for the journal
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// Which lines are written: a level, or levels by target, as `tracing` writes them.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct LogFilter(String);

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        EnvFilter::builder().parse(text).map(|_| Self(text.to_owned())).map_err(|error| {
            format!(
                "a log level is off, error, warn, info, debug or trace, or a list such as warn,prereg::disk=info; `{text}` is \
                 not: {error}"
            )
        })
    }
}

impl TryFrom<String> for LogFilter {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The reader of standard error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reader {
    /// A person.
    Terminal,
    /// The journal, which adds the time, and takes the priority from the begin of a line.
    Journal,
    /// A file or a pipe.
    Other,
}

impl Reader {
    /// The reader of this process's standard error.
    #[must_use]
    pub(crate) fn of_standard_error() -> Self {
        let stderr = std::io::stderr();
        if stderr.is_terminal() {
            return Self::Terminal;
        }
        let file = stderr.as_fd().try_clone_to_owned().and_then(|fd| std::fs::File::from(fd).metadata());
        let stream = std::env::var("JOURNAL_STREAM").ok();
        match (file, stream) {
            (Ok(file), Some(stream)) if stream == format!("{}:{}", file.dev(), file.ino()) => Self::Journal,
            _ => Self::Other,
        }
    }
}

/// A subscriber that writes to `writer`.
#[must_use]
pub(crate) fn dispatch<W>(format: LogFormat, filter: &LogFilter, reader: Reader, writer: W) -> Dispatch
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // The filter was parsed before.
    let filter = EnvFilter::builder().parse_lossy(&filter.0);
    // A closed standard error must not end the server: the message about it would be a panic.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).log_internal_errors(false);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).into(),
        LogFormat::Text => {
            let colours =
                reader == Reader::Terminal && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            builder.with_ansi(colours).event_format(Text(reader)).into()
        }
    }
}

/// A line of text: `TIME LEVEL target: what: why; remedy (client 3, nvme at SOCKET, process 7, user 0)`.
struct Text(Reader);

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let level = *event.metadata().level();
        match self.0 {
            Reader::Terminal => {
                SystemTime.format_time(&mut writer)?;
                writer.write_char(' ')?;
            }
            Reader::Journal => write!(writer, "<{}>", priority(level))?,
            Reader::Other => {}
        }
        if writer.has_ansi_escapes() {
            write!(writer, "\x1b[{}m{level:>5}\x1b[0m ", colour(level))?;
        } else {
            write!(writer, "{level:>5} ")?;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        writeln!(writer, "{}: {fields}", event.metadata().target())
    }
}

/// The priority of syslog(3).
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// The number of the control sequence.
fn colour(level: Level) -> u8 {
    match level {
        Level::ERROR => 31,
        Level::WARN => 33,
        Level::INFO => 32,
        _ => 34,
    }
}

/// The fields of a line, and who it is about, in the order of the sentence.
#[derive(Default)]
struct Fields {
    message: String,
    why: Option<String>,
    remedy: Option<String>,
    repeated: Option<String>,
    client: Option<String>,
    device: Option<String>,
    socket: Option<String>,
    pid: Option<String>,
    uid: Option<String>,
}

impl Fields {
    fn set(&mut self, field: &Field, value: String) {
        let place = match field.name() {
            "message" => {
                self.message = value;
                return;
            }
            "why" => &mut self.why,
            "remedy" => &mut self.remedy,
            "repeated" => &mut self.repeated,
            "client" => &mut self.client,
            "device" => &mut self.device,
            "socket" => &mut self.socket,
            "pid" => &mut self.pid,
            "uid" => &mut self.uid,
            _ => return,
        };
        *place = Some(value);
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.set(field, format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field, value.to_owned());
    }
}

impl fmt::Display for Fields {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(repeated) = &self.repeated {
            write!(f, "{repeated} more, the last: ")?;
        }
        f.write_str(&self.message)?;
        if let Some(why) = &self.why {
            write!(f, ": {why}")?;
        }
        if let Some(remedy) = &self.remedy {
            write!(f, "; {remedy}")?;
        }
        let device = match (&self.device, &self.socket) {
            (Some(device), Some(socket)) => Some(format!("{device} at {socket}")),
            (device, socket) => device.as_ref().or(socket.as_ref()).cloned(),
        };
        let who = [
            self.client.as_ref().map(|client| format!("client {client}")),
            device,
            self.pid.as_ref().map(|pid| format!("process {pid}")),
            self.uid.as_ref().map(|uid| format!("user {uid}")),
        ];
        let who: Vec<String> = who.into_iter().flatten().collect();
        if who.is_empty() { Ok(()) } else { write!(f, " ({})", who.join(", ")) }
    }
}
