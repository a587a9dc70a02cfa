//! The error log (log page 01h): the latest failures, newest first.

use std::collections::VecDeque;

use crate::spec::Status;

/// One entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Failure {
    /// Submission queue and command identifier; `None` for an error of no command.
    pub(crate) command: Option<(u16, u16)>,
    /// Status of the command.
    pub(crate) status: Status,
    /// Namespace of the command.
    pub(crate) nsid: u32,
    /// First block of the command.
    pub(crate) lba: u64,
}

/// The latest failures.
#[derive(Debug, Default)]
pub(crate) struct ErrorLog {
    latest: VecDeque<(u64, Failure)>,
    count: u64,
}

impl ErrorLog {
    /// Entries that are kept.
    pub(crate) const ENTRIES: usize = 64;
    /// Bytes of an entry (figure 193).
    const BYTES: usize = 64;

    /// Adds a failure.
    pub(crate) fn push(&mut self, failure: Failure) {
        self.count += 1;
        if self.latest.len() == Self::ENTRIES {
            self.latest.pop_back();
        }
        self.latest.push_front((self.count, failure));
    }

    /// Failures since the controller was made.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The log page.
    pub(crate) fn page(&self) -> Vec<u8> {
        let mut page = vec![0; Self::ENTRIES * Self::BYTES];
        for (entry, (number, failure)) in page.chunks_exact_mut(Self::BYTES).zip(&self.latest) {
            let (sq, cid) = failure.command.unwrap_or((0xffff, 0xffff));
            entry[..8].copy_from_slice(&number.to_le_bytes());
            entry[8..10].copy_from_slice(&sq.to_le_bytes());
            entry[10..12].copy_from_slice(&cid.to_le_bytes());
            entry[12..14].copy_from_slice(&(failure.status.bits() << 1).to_le_bytes());
            // Parameter Error Location: not reported.
            entry[14..16].copy_from_slice(&0xffffu16.to_le_bytes());
            entry[16..24].copy_from_slice(&failure.lba.to_le_bytes());
            entry[24..28].copy_from_slice(&failure.nsid.to_le_bytes());
        }
        page
    }
}

#[cfg(test)]
mod tests {
    use super::{ErrorLog, Failure};
    use crate::spec::Status;

    #[test]
    fn the_newest_is_first_and_the_oldest_is_forgotten() {
        let mut log = ErrorLog::default();
        for cid in 0..70 {
            log.push(Failure { command: Some((1, cid)), status: Status::LBA_RANGE, nsid: 1, lba: 9 });
        }
        let page = log.page();
        assert_eq!(log.count(), 70);
        assert_eq!(page.len(), 4096);
        assert_eq!((page[0], page[10]), (70, 69), "number and command of the newest");
        assert_eq!(page[63 * 64], 7, "number of the oldest that is kept");
        assert_eq!(u16::from_le_bytes([page[12], page[13]]) >> 1, Status::LBA_RANGE.bits());
    }
}
