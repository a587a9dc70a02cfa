//! Notices about clients that could not attach, for the operator. A reason is reported once for a socket; other reasons are
//! limited in number and rate, because clients can cause them. The counts have all of them.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::state::{DisconnectReason, RequestCounts};
use crate::request_error::SessionError;

/// A client that left without using its device, and the likely reason.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Notice {
    /// The client's number.
    pub client: u64,
    /// Its process when it connected; 0 if unknown.
    pub pid: i32,
    /// The socket it connected to.
    pub socket: Option<PathBuf>,
    /// The refused requests and their reasons, as text.
    pub reason: String,
    /// Nothing was refused, but the device has no mappable region, which the client may need.
    pub is_unmappable: bool,
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "client {} (process {}", self.client, self.pid)?;
        if let Some(socket) = &self.socket {
            write!(f, ", {}", socket.display())?;
        }
        write!(f, ") could not attach: {}", self.reason)
    }
}

/// Notices to be taken, and recent reasons.
#[derive(Default, Debug)]
pub(crate) struct Notices {
    waiting: VecDeque<Notice>,
    known: VecDeque<(Option<PathBuf>, String)>,
    /// The time of the next notice at the long-term rate; those of a burst come before.
    due: Option<Instant>,
}

/// Notices, and recent reasons, at most.
const MOST: usize = 32;
/// Interval of notices at the long-term rate.
const PACE: Duration = Duration::from_secs(60);
/// Notices in excess of that rate.
const BURST: u32 = 16;

impl Notices {
    pub(crate) fn add(&mut self, notice: Notice, now: Instant) {
        let reason = (notice.socket.clone(), notice.reason.clone());
        let due = self.due.map_or(now, |due| due.max(now));
        let is_too_many = due.saturating_duration_since(now) >= PACE * BURST;
        if self.known.contains(&reason) || self.waiting.len() >= MOST || is_too_many {
            return;
        }
        self.due = Some(due + PACE);
        if self.known.len() >= MOST {
            self.known.pop_front();
        }
        self.known.push_back(reason);
        self.waiting.push_back(notice);
    }

    pub(crate) fn take(&mut self) -> Vec<Notice> {
        self.waiting.drain(..).collect()
    }
}

/// The reason why a client could not attach; `None` if it could. `is_mappable`: it has seen how to map a region.
pub(crate) fn reason(
    ending: &DisconnectReason,
    requests: &RequestCounts,
    is_mappable: bool,
) -> Option<String> {
    if let DisconnectReason::Broken(SessionError::Rejected { errno }) = ending {
        let why = match errno.raw() {
            libc::EBUSY => "another client is served; one at a time is, unless the disk is shared",
            libc::ENFILE => "as many clients are attached as `max_clients` allows, 64 by default; raise it",
            _ => "its VERSION was refused",
        };
        return Some(format!("{why} ({errno})"));
    }
    if let DisconnectReason::Broken(SessionError::Version { major, minor }) = ending {
        return Some(format!("it speaks version {major}.{minor} of the protocol, and 0.1 is spoken here"));
    }
    // A device that was written to was attached, whatever else was refused.
    let has_written = ["REGION_WRITE", "REGION_WRITE_MULTI"]
        .iter()
        .any(|name| requests.commands.get(name).is_some_and(|counts| counts.performed > 0));
    if has_written {
        return None;
    }
    let refused: Vec<String> = requests
        .commands
        .iter()
        .flat_map(|(name, counts)| counts.refused.keys().map(move |reason| format!("{name}: {reason}")))
        .take(4)
        .collect();
    if !refused.is_empty() {
        return Some(format!("refused were {}", refused.join(", ")));
    }
    let has_looked = requests.commands.get("DEVICE_GET_REGION_INFO").is_some_and(|info| info.performed > 0);
    (*ending == DisconnectReason::Gone && has_looked && !is_mappable).then(|| UNMAPPABLE.to_owned())
}

/// The reason for clients that need doorbells in mapped memory.
pub(crate) const UNMAPPABLE: &str = "it left after it read the regions, none of which can be mapped; some clients need one, such as SPDK's NVMe initiator";

#[cfg(test)]
mod tests {
    use prereg::Errno;

    use super::*;
    use crate::server::CommandCounts;

    fn notice(client: u64, reason: &str) -> Notice {
        Notice { client, pid: 1, socket: Some("/a".into()), reason: reason.to_owned(), is_unmappable: false }
    }

    #[test]
    fn each_reason_is_reported_once_and_few_wait() {
        let (mut notices, now) = (Notices::default(), Instant::now());
        for client in 0..1_000_000 {
            notices.add(notice(client, "busy"), now);
        }
        assert_eq!(notices.take(), [notice(0, "busy")]);
    }

    #[test]
    fn a_client_that_is_refused_for_ever_new_reasons_does_not_fill_the_log() {
        let (mut notices, mut now) = (Notices::default(), Instant::now());
        let add = |notices: &mut Notices, now: Instant| {
            (0..1000).for_each(|at| notices.add(notice(at, &format!("reason {at} at {now:?}")), now));
            notices.take().len()
        };
        assert_eq!(add(&mut notices, now), BURST as usize);
        for _ in 0..100 {
            now += PACE;
            assert_eq!(add(&mut notices, now), 1);
        }
        assert!(notices.known.len() <= MOST);
    }

    #[test]
    fn a_client_that_leaves_a_device_without_a_mappable_region_may_have_needed_one() {
        let mut requests = RequestCounts::default();
        assert_eq!(reason(&DisconnectReason::Gone, &requests, false), None, "it did not look");
        requests.commands.entry("DEVICE_GET_REGION_INFO").or_default().performed = 1;
        assert_eq!(reason(&DisconnectReason::Gone, &requests, true), None);
        assert_eq!(reason(&DisconnectReason::Stopped, &requests, false), None);
        assert_eq!(reason(&DisconnectReason::Gone, &requests, false).as_deref(), Some(UNMAPPABLE));
        requests.commands.entry("REGION_WRITE").or_default().performed = 1;
        assert_eq!(reason(&DisconnectReason::Gone, &requests, false), None);
    }

    #[test]
    fn a_client_that_used_its_device_could_attach() {
        let mut requests = RequestCounts::default();
        assert_eq!(reason(&DisconnectReason::Gone, &requests, true), None);
        let mut refused = CommandCounts::default();
        refused.refused.insert("argsz".to_owned(), 1);
        requests.commands.insert("DEVICE_GET_REGION_INFO", refused);
        let why = reason(&DisconnectReason::Gone, &requests, true);
        assert_eq!(why.as_deref(), Some("refused were DEVICE_GET_REGION_INFO: argsz"));
        requests.commands.entry("REGION_WRITE").or_default().performed = 1;
        assert_eq!(reason(&DisconnectReason::Gone, &requests, true), None);
        let turned_away = DisconnectReason::Broken(SessionError::Rejected { errno: Errno::EBUSY });
        assert!(reason(&turned_away, &requests, false).is_some_and(|why| why.contains("one at a time")));
    }
}
