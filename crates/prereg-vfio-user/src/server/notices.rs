//! What an operator should hear of clients that could not attach. Each is told once, with its reason, and a client that
//! tries again and again for the same reason is not told again; the rest is in the counts.

use std::collections::VecDeque;
use std::fmt;
use std::path::PathBuf;

use super::state::{Ending, RequestCounts};
use crate::refusal::SessionError;

/// A client that left without having used its device, and why it may have.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct Notice {
    /// Its number.
    pub client: u64,
    /// Its process, as it was when it connected; 0 where that is not known.
    pub pid: i32,
    /// The socket it came by.
    pub socket: Option<PathBuf>,
    /// What was refused and why, for people.
    pub reason: String,
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

/// Notices that wait to be taken, and the reasons that are known.
#[derive(Default, Debug)]
pub(crate) struct Notices {
    waiting: VecDeque<Notice>,
    known: VecDeque<(Option<PathBuf>, String)>,
}

/// Notices, or known reasons, at most.
const MOST: usize = 32;

impl Notices {
    pub(crate) fn add(&mut self, notice: Notice) {
        let reason = (notice.socket.clone(), notice.reason.clone());
        if self.known.contains(&reason) || self.waiting.len() >= MOST {
            return;
        }
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

/// Why a client that ended in this way and asked for this could not attach; `None` for one that could.
pub(crate) fn reason(ending: &Ending, requests: &RequestCounts) -> Option<String> {
    if let Ending::Broken(SessionError::TurnedAway { errno }) = ending {
        let why = match errno.raw() {
            libc::EBUSY => "another client is served; one at a time is, unless the disk is shared",
            libc::ENFILE => "as many clients are served as the limit allows",
            _ => "its VERSION was refused",
        };
        return Some(format!("{why} ({errno})"));
    }
    if let Ending::Broken(SessionError::Version { major, minor }) = ending {
        return Some(format!("it speaks version {major}.{minor} of the protocol, and 0.1 is spoken here"));
    }
    // A device that was written to was attached, whatever was refused besides.
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
    (!refused.is_empty()).then(|| format!("refused were {}", refused.join(", ")))
}

#[cfg(test)]
mod tests {
    use prereg::Errno;

    use super::*;
    use crate::server::CommandCounts;

    fn notice(client: u64, reason: &str) -> Notice {
        Notice { client, pid: 1, socket: Some("/a".into()), reason: reason.to_owned() }
    }

    #[test]
    fn each_reason_is_told_once_and_few_wait() {
        let mut notices = Notices::default();
        for client in 0..1_000_000 {
            notices.add(notice(client, "busy"));
        }
        assert_eq!(notices.take(), [notice(0, "busy")]);
        for client in 0..1000 {
            notices.add(notice(client, &format!("reason {client}")));
        }
        assert_eq!((notices.take().len(), notices.known.len()), (MOST, MOST));
    }

    #[test]
    fn a_client_that_used_its_device_could_attach() {
        let mut requests = RequestCounts::default();
        assert_eq!(reason(&Ending::Gone, &requests), None);
        let mut refused = CommandCounts::default();
        refused.refused.insert("argsz".to_owned(), 1);
        requests.commands.insert("DEVICE_GET_REGION_INFO", refused);
        let why = reason(&Ending::Gone, &requests);
        assert_eq!(why.as_deref(), Some("refused were DEVICE_GET_REGION_INFO: argsz"));
        requests.commands.entry("REGION_WRITE").or_default().performed = 1;
        assert_eq!(reason(&Ending::Gone, &requests), None);
        let turned_away = Ending::Broken(SessionError::TurnedAway { errno: Errno::EBUSY });
        assert!(reason(&turned_away, &requests).is_some_and(|why| why.contains("one at a time")));
    }
}
