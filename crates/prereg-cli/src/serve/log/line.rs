//! The lines of the log: an event as a sentence with reason and remedy.

use prereg::Errno;
use prereg_nvme::controller::NvmeEvent;
use prereg_nvme::disk::DiskFault;
use prereg_vfio_user::server::{
    AttachFailure, DisconnectReason, Event, EventSource, MapMemoryError, MemoryEvent,
};
use tracing::{Level, field};

use super::observed::{AnyEvent, DiskEvent, Observed};
use crate::units::{Bytes, Number};

/// Reasons and remedies that depend on the configuration of the server.
pub(crate) trait Remedies: Send + Sync {
    /// The reason for which memory was refused, with the limit, and the remedy.
    fn memory(&self, error: &MapMemoryError) -> (String, Option<String>);

    /// The remedy for a client that needs mappable doorbells on this socket.
    fn doorbells(&self, source: &EventSource) -> Option<String>;
}

/// The subject of a line: its target is `prereg::` and the name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Topic {
    Server,
    Client,
    Memory,
    Nvme,
    Disk,
}

/// A line of the log without its source.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    level: Level,
    topic: Topic,
    what: String,
    why: Option<String>,
    remedy: Option<String>,
}

/// How many events of a kind are written before they are counted.
const FAILURES: u32 = 1;
const ROUTINE: u32 = 8;

impl Line {
    pub(super) fn info(topic: Topic, what: impl Into<String>) -> Self {
        Self { level: Level::INFO, topic, what: what.into(), why: None, remedy: None }
    }

    pub(super) fn warn(topic: Topic, what: impl Into<String>) -> Self {
        Self { level: Level::WARN, ..Self::info(topic, what) }
    }

    fn error(topic: Topic, what: impl Into<String>) -> Self {
        Self { level: Level::ERROR, ..Self::info(topic, what) }
    }

    fn because(mut self, why: impl ToString) -> Self {
        self.why = Some(why.to_string());
        self
    }

    fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    /// Writes the line to the current subscriber; `repeated`: how often the event occurred since the last line, if it was
    /// counted.
    pub(super) fn write(&self, source: &EventSource, repeated: u64) {
        macro_rules! write_at {
            ($target:literal) => {
                match self.level {
                    Level::ERROR => write_at!($target, Level::ERROR),
                    Level::WARN => write_at!($target, Level::WARN),
                    Level::INFO => write_at!($target, Level::INFO),
                    _ => write_at!($target, Level::DEBUG),
                }
            };
            ($target:literal, $level:expr) => {
                tracing::event!(
                    target: $target,
                    $level,
                    message = self.what,
                    why = self.why.as_deref(),
                    remedy = self.remedy.as_deref(),
                    repeated = (repeated > 0).then_some(repeated),
                    client = source.client,
                    device = (!source.device.is_empty()).then_some(source.device.as_str()),
                    socket = source.socket.as_ref().map(|path| field::display(path.display())),
                    pid = source.client.map(|_| source.pid),
                    uid = source.client.map(|_| source.uid),
                )
            };
        }
        match self.topic {
            Topic::Server => write_at!("prereg::server"),
            Topic::Client => write_at!("prereg::client"),
            Topic::Memory => write_at!("prereg::memory"),
            Topic::Nvme => write_at!("prereg::nvme"),
            Topic::Disk => write_at!("prereg::disk"),
        }
    }
}

impl AnyEvent {
    /// The kind and the detail by which events are counted, and how many are written before.
    pub(super) fn kind(&self) -> (&'static str, &'static str, u32) {
        match self {
            Self::Server(event) => match event {
                Event::Connected => ("connected", "", ROUTINE),
                Event::Disconnected { reason, .. } => ("disconnected", reason.name(), ROUTINE),
                Event::NotAttached { .. } => ("not attached", "", FAILURES),
                Event::TooManyClients { .. } => ("too many clients", "", FAILURES),
                Event::AcceptFailed { .. } => ("accept failed", "", FAILURES),
                Event::RequestRefused { command, error } => (command, error.name(), FAILURES),
                Event::RequestFailed { command, .. } => (command, "failed", FAILURES),
                Event::Memory(MemoryEvent::MapRefused { .. }) => ("map refused", "", FAILURES),
                Event::Memory(MemoryEvent::UnmapRefused { .. }) => ("unmap refused", "", FAILURES),
                Event::Memory(MemoryEvent::PinFailed { .. }) => ("pin failed", "", FAILURES),
                Event::Memory(MemoryEvent::BackgroundEnded { .. }) => ("background ended", "", FAILURES),
                Event::Reset => ("device reset", "", ROUTINE),
                _ => ("other", "", FAILURES),
            },
            Self::Nvme(event) => match event {
                NvmeEvent::Enabled => ("enabled", "", ROUTINE),
                NvmeEvent::Reset => ("controller reset", "", ROUTINE),
                NvmeEvent::ShutDown => ("shut down", "", ROUTINE),
                NvmeEvent::Fatal { cause } => ("fatal", cause, FAILURES),
                NvmeEvent::DiskFailed { command, .. } => ("disk failed", command.name(), FAILURES),
                NvmeEvent::DiskQueueFailed { .. } => ("disk queue failed", "", FAILURES),
                _ => ("other", "", FAILURES),
            },
            Self::Disk(DiskEvent::Resized { .. }) => ("resized", "", ROUTINE),
            Self::Disk(DiskEvent::SizeUnknown { .. }) => ("size unknown", "", FAILURES),
        }
    }
}

impl Observed {
    /// The line about the event.
    pub(super) fn line(&self, remedies: &dyn Remedies) -> Line {
        match &self.event {
            AnyEvent::Server(event) => server_line(event, &self.source, remedies),
            AnyEvent::Nvme(event) => nvme_line(event),
            AnyEvent::Disk(event) => disk_line(event),
        }
    }
}

fn server_line(event: &Event, source: &EventSource, remedies: &dyn Remedies) -> Line {
    match event {
        Event::Connected => Line::info(Topic::Client, "client connected"),
        Event::Disconnected { reason, served } => disconnected(*reason, *served),
        Event::NotAttached { failure } => {
            let line = Line::warn(Topic::Client, "client could not attach").because(failure);
            let remedy = match failure {
                AttachFailure::Unmappable => remedies.doorbells(source),
                AttachFailure::Busy => {
                    Some("stop the guest that has the device, or serve it another one".to_owned())
                }
                _ => None,
            };
            Line { remedy, ..line }
        }
        Event::TooManyClients { limit } => Line::warn(Topic::Client, "client rejected")
            .because(format!("{} connected, as many as the server takes", Number(*limit as u64, "client")))
            .remedy("raise --max-clients (`max-clients` of the configuration)"),
        Event::AcceptFailed { errno } => accept_failed(*errno),
        Event::RequestRefused { command, error } => {
            Line::warn(Topic::Client, format!("message refused: {command}")).because(error)
        }
        Event::RequestFailed { command, errno } => {
            Line::warn(Topic::Client, format!("request failed: {command}")).because(errno)
        }
        Event::Memory(event) => memory_line(event, remedies),
        Event::Reset => Line::info(Topic::Client, "device reset by the client"),
        other => Line::info(Topic::Server, format!("{other:?}")),
    }
}

fn memory_line(event: &MemoryEvent, remedies: &dyn Remedies) -> Line {
    let explained = |line: Line, error: &MapMemoryError| {
        let (why, remedy) = remedies.memory(error);
        Line { remedy, ..line.because(why) }
    };
    match event {
        MemoryEvent::MapRefused { iova, bytes, error } => {
            let what = format!("DMA_MAP of {} at {iova} refused: the device cannot reach it", Bytes(*bytes));
            explained(Line::warn(Topic::Memory, what), error)
        }
        MemoryEvent::UnmapRefused { iova, bytes, error } => {
            let what = format!("DMA_UNMAP of {} at {iova} refused: it stays mapped", Bytes(*bytes));
            Line::warn(Topic::Memory, what).because(error)
        }
        MemoryEvent::PinFailed { error } => {
            let what = "mapped memory could not be pinned: accesses of the device to it fail";
            explained(Line::error(Topic::Memory, what), error)
        }
        MemoryEvent::BackgroundEnded { error } => {
            let what = "pinning in the background ended early: the rest is pinned when the device reaches it";
            explained(Line::warn(Topic::Memory, what), error)
        }
        other => Line::info(Topic::Memory, format!("{other:?}")),
    }
}

fn disconnected(reason: DisconnectReason, served: bool) -> Line {
    let what = "client disconnected";
    let line = match reason {
        // A connection that asked for nothing, such as a probe of the socket.
        DisconnectReason::Gone | DisconnectReason::Stalled if !served => {
            Line { level: Level::DEBUG, ..Line::info(Topic::Client, what) }
        }
        DisconnectReason::Gone | DisconnectReason::Stopped => Line::info(Topic::Client, what),
        DisconnectReason::Panicked => Line::error(Topic::Client, what).remedy(
            "this is a fault of prereg: please report it with the message of the panic; start the guest again",
        ),
        _ => Line::warn(Topic::Client, what),
    };
    line.because(reason)
}

fn accept_failed(errno: Errno) -> Line {
    let line = Line::error(Topic::Server, "no client can be accepted; tried again").because(errno);
    match errno.raw() {
        libc::EMFILE => {
            line.remedy("raise the limit on open descriptors (`ulimit -n`, LimitNOFILE= of the unit)")
        }
        libc::ENFILE => line.remedy("raise the host's limit on open files, fs.file-max"),
        libc::ENOMEM | libc::ENOBUFS => {
            line.remedy("free memory of the host or of the server's control group")
        }
        libc::EAGAIN => line.remedy("raise the limit on threads (`ulimit -u`, TasksMax= of the unit)"),
        _ => line,
    }
}

fn nvme_line(event: &NvmeEvent) -> Line {
    match event {
        NvmeEvent::Enabled => Line::info(Topic::Nvme, "controller enabled by the guest"),
        NvmeEvent::Reset => Line::info(Topic::Nvme, "controller disabled by the guest"),
        NvmeEvent::ShutDown => {
            Line::info(Topic::Nvme, "controller shut down by the guest; its data are durable")
        }
        NvmeEvent::Fatal { cause } => {
            Line::error(Topic::Nvme, "controller failed, until the guest resets it").because(cause)
        }
        NvmeEvent::DiskFailed { nsid, command, lba, fault, status } => {
            let place = if *nsid == 0 { "all namespaces".to_owned() } else { format!("namespace {nsid}") };
            let what = format!(
                "{} of {place} at block {lba} failed; the guest gets {} (status type {:x}h, code {:02x}h)",
                command.name(),
                status.name().unwrap_or("an error"),
                status.kind(),
                status.code()
            );
            disk_failed(what, fault)
        }
        NvmeEvent::DiskQueueFailed { error } => {
            Line::error(Topic::Disk, "disk queue failed: commands fail until the guest resets the controller")
                .because(error)
        }
        other => Line::info(Topic::Nvme, format!("{other:?}")),
    }
}

fn disk_line(event: &DiskEvent) -> Line {
    match event {
        DiskEvent::Resized { nsid, bytes } => {
            let what = format!("namespace {nsid} has a new size of {}; its guest was told", Bytes(*bytes));
            Line::info(Topic::Disk, what)
        }
        DiskEvent::SizeUnknown { error } => {
            Line::warn(Topic::Disk, "the size of a disk cannot be read; it keeps the size that it has")
                .because(error)
        }
    }
}

fn disk_failed(what: String, fault: &DiskFault) -> Line {
    let system = std::io::Error::from_raw_os_error(fault.errno().raw());
    let line = Line::error(Topic::Disk, what).because(format!("{fault} ({system})"));
    match fault {
        DiskFault::NoSpace => {
            line.remedy("free space on the file system of the disk, or grow it; the guest may retry")
        }
        DiskFault::Io(errno) if errno.raw() == libc::EFBIG => {
            line.remedy("raise the limit on file sizes (`ulimit -f`, LimitFSIZE= of the unit)")
        }
        DiskFault::Io(_) => line.remedy("see the kernel's log for the device below the disk"),
        DiskFault::Lost(_) => line.remedy("check the device below the disk, then restart the server"),
        _ => line,
    }
}
