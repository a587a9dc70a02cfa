//! Asynchronous events (section 5.2).

use std::collections::VecDeque;

use super::queue_table::BadDoorbell;
use crate::spec::number::log;

/// An event to report to the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AsyncEvent {
    /// A doorbell of no queue was written.
    InvalidDoorbellRegister,
    /// A doorbell was written with a value out of range.
    InvalidDoorbellValue,
    /// Queue memory cannot be reached, or a disk queue failed; a reset may help.
    PersistentInternalError,
    /// The temperature crossed a threshold.
    Temperature,
    /// A namespace changed.
    NamespaceChanged,
}

impl From<BadDoorbell> for AsyncEvent {
    fn from(bad: BadDoorbell) -> Self {
        match bad {
            BadDoorbell::Register => Self::InvalidDoorbellRegister,
            BadDoorbell::Value => Self::InvalidDoorbellValue,
        }
    }
}

const ERROR: u8 = 0;
const SMART: u8 = 1;
const NOTICE: u8 = 2;

impl AsyncEvent {
    const fn kind(self) -> u8 {
        match self {
            Self::InvalidDoorbellRegister | Self::InvalidDoorbellValue | Self::PersistentInternalError => {
                ERROR
            }
            Self::Temperature => SMART,
            Self::NamespaceChanged => NOTICE,
        }
    }

    const fn information(self) -> u8 {
        match self {
            Self::InvalidDoorbellRegister | Self::NamespaceChanged => 0,
            Self::InvalidDoorbellValue | Self::Temperature => 1,
            Self::PersistentInternalError => 3,
        }
    }

    const fn log(self) -> u8 {
        match self {
            Self::InvalidDoorbellRegister | Self::InvalidDoorbellValue | Self::PersistentInternalError => {
                log::ERROR
            }
            Self::Temperature => log::SMART,
            Self::NamespaceChanged => log::CHANGED_NAMESPACES,
        }
    }

    /// Dword 0 of the completion (figure 146).
    #[must_use]
    pub const fn result(self) -> u32 {
        self.kind() as u32 | (self.information() as u32) << 8 | (self.log() as u32) << 16
    }
}

/// Pending requests, and events that wait for a request.
#[derive(Debug, Default)]
pub(crate) struct AsyncEvents {
    requests: VecDeque<u16>,
    waiting: VecDeque<AsyncEvent>,
    /// By type: one was reported and its log page was not read since.
    masked: [bool; 3],
}

impl AsyncEvents {
    /// Requests that may be pending at a time (AERL + 1).
    pub(crate) const REQUESTS: usize = 4;

    /// Adds a request; `false` when too many are pending.
    pub(crate) fn request(&mut self, cid: u16) -> bool {
        if self.requests.len() == Self::REQUESTS {
            return false;
        }
        self.requests.push_back(cid);
        true
    }

    /// Removes a request; returns whether it was pending.
    pub(crate) fn abort(&mut self, cid: u16) -> bool {
        let at = self.requests.iter().position(|waiting| *waiting == cid);
        at.is_some_and(|at| self.requests.remove(at).is_some())
    }

    /// Adds an event, unless the same one waits already.
    pub(crate) fn raise(&mut self, event: AsyncEvent) {
        if !self.waiting.contains(&event) {
            self.waiting.push_back(event);
        }
    }

    /// A log page was read: its event type may be reported again.
    pub(crate) fn log_was_read(&mut self, page: u8) {
        let kind = match page {
            log::ERROR => ERROR,
            log::SMART => SMART,
            log::CHANGED_NAMESPACES => NOTICE,
            _ => return,
        };
        self.masked[usize::from(kind)] = false;
    }

    /// The next event that can be reported, and the request it completes.
    pub(crate) fn take(&mut self) -> Option<(u16, AsyncEvent)> {
        if self.requests.is_empty() {
            return None;
        }
        let at = self.waiting.iter().position(|event| !self.masked[usize::from(event.kind())])?;
        let event = self.waiting.remove(at)?;
        self.masked[usize::from(event.kind())] = true;
        Some((self.requests.pop_front()?, event))
    }
}

#[cfg(test)]
mod tests {
    use super::{AsyncEvent, AsyncEvents};
    use crate::spec::number::log;

    #[test]
    fn an_event_waits_for_a_request_and_a_request_for_an_event() {
        let mut events = AsyncEvents::default();
        events.raise(AsyncEvent::NamespaceChanged);
        assert_eq!(events.take(), None);
        assert!(events.request(7));
        assert_eq!(events.take(), Some((7, AsyncEvent::NamespaceChanged)));
        assert!(events.request(8));
        assert_eq!(events.take(), None);
    }

    #[test]
    fn an_event_type_is_reported_again_only_after_its_log_was_read() {
        let mut events = AsyncEvents::default();
        for cid in 0..4 {
            assert!(events.request(cid));
        }
        assert!(!events.request(4), "the limit");
        events.raise(AsyncEvent::InvalidDoorbellValue);
        events.raise(AsyncEvent::InvalidDoorbellValue);
        events.raise(AsyncEvent::InvalidDoorbellRegister);
        assert_eq!(events.take(), Some((0, AsyncEvent::InvalidDoorbellValue)));
        assert_eq!(events.take(), None);
        events.raise(AsyncEvent::NamespaceChanged);
        assert_eq!(events.take(), Some((1, AsyncEvent::NamespaceChanged)), "another kind is not masked");
        events.log_was_read(log::ERROR);
        assert_eq!(events.take(), Some((2, AsyncEvent::InvalidDoorbellRegister)));
    }

    #[test]
    fn results_are_what_the_specification_says() {
        assert_eq!(AsyncEvent::NamespaceChanged.result(), 0x0004_0002);
        assert_eq!(AsyncEvent::InvalidDoorbellValue.result(), 0x0001_0100);
        assert_eq!(AsyncEvent::PersistentInternalError.result(), 0x0001_0300);
    }
}
