//! Memory that is registered when a device first uses it, or in the background before that.

use std::sync::{Arc, Weak};

use prereg::Errno;
use prereg_iommu::iova::{LocalSegment, MemoryProvider, ProviderError};
use prereg_linux::{DataExtents, FileStat, SharedError};

use super::background::Job;
use super::client::Client;
use super::error::MapMemoryError;
use super::file::{File, Promise};

/// What is left to pin of one mapping. It does not keep the mapping.
#[derive(Debug)]
pub(super) struct PinJob {
    supply: Weak<FileSupply>,
    /// The number of its client.
    client: u64,
    /// Where in its file to go on, and where to stop.
    at: u64,
    end: u64,
    data: KnownData,
}

/// The stretch of a file with pages that was found last. A file without holes is one stretch: the kernel walks it to its end to
/// find that out, which is not to be done once a piece.
#[derive(Debug, Default)]
struct KnownData {
    first: u64,
    end: u64,
}

/// The memory behind one DMA_MAP: a range of a file.
#[derive(Debug)]
pub(super) struct FileSupply {
    pub(super) client: Arc<Client>,
    pub(super) file: Arc<File>,
    /// The file as it was when it was mapped.
    pub(super) facts: FileStat,
    /// Where the mapping begins in it.
    pub(super) offset: u64,
    /// All of the mapping's pieces are charged. `None`: each is when it is registered.
    pub(super) promise: Option<Promise>,
}

impl FileSupply {
    fn pieces(&self, first: u64, end: u64) -> Result<Vec<LocalSegment>, MapMemoryError> {
        loop {
            let extending = self.file.lock().ok_or(MapMemoryError::Disconnected)?;
            if extending.covers(first, end) {
                return Ok(extending.pieces(first, end));
            }
            drop(extending);
            let is_promised = self.promise.is_some();
            let promise = self.client.register(&self.file, self.facts.bytes, (first, end), is_promised)?;
            let extending = self.file.lock().ok_or(MapMemoryError::Disconnected)?;
            // Under the promise nothing of it is released for want of memory, but it may be found stale.
            let found = extending.covers(first, end).then(|| extending.pieces(first, end));
            drop(extending);
            drop(promise);
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }
}

impl MemoryProvider for FileSupply {
    fn provide(&self, offset: u64, bytes: u64) -> Result<Vec<LocalSegment>, ProviderError> {
        // The mapping was proved to lie inside the file, and the access inside the mapping.
        let first = self.offset + offset;
        self.pieces(first, first + bytes).map_err(|error| {
            self.client.pin_failed(&error);
            ProviderError { errno: error.errno() }
        })
    }
}

impl KnownData {
    /// The first stretch with pages at `at` or behind it. `find` is asked for it where it is not known.
    fn next(
        &mut self,
        at: u64,
        find: &mut impl FnMut(u64) -> Result<Option<(u64, u64)>, SharedError>,
    ) -> Result<Option<(u64, u64)>, SharedError> {
        if at < self.first || at >= self.end {
            let Some((first, end)) = find(at)? else { return Ok(None) };
            (self.first, self.end) = (first, end);
        }
        Ok(Some((at.max(self.first), self.end)))
    }

    /// The next piece at `at` or behind it, before `end`, that has a page, and whether at least half of it has. `None` when
    /// nothing has pages any more.
    fn next_piece(
        &mut self,
        (at, end): (u64, u64),
        piece: u64,
        find: &mut impl FnMut(u64) -> Result<Option<(u64, u64)>, SharedError>,
    ) -> Result<Option<(u64, u64, bool)>, SharedError> {
        let Some((data, _)) = self.next(at, find)?.filter(|(data, _)| *data < end) else { return Ok(None) };
        let from = data - data % piece;
        let to = from.saturating_add(piece).min(end);
        let (mut at, mut missing) = (from, (to - from) / 2);
        while missing > 0 && at < to {
            let Some((data, until)) = self.next(at, find)?.filter(|(data, _)| *data < to) else { break };
            missing = missing.saturating_sub(until.min(to) - data);
            at = until;
        }
        Ok(Some((from, to, missing == 0)))
    }
}

impl PinJob {
    /// All of `[first, end)` of a mapping's file.
    pub(super) fn new(supply: &Arc<FileSupply>, first: u64, end: u64) -> Self {
        let (client, data) = (supply.client.number(), KnownData::default());
        Self { supply: Arc::downgrade(supply), client, at: first, end, data }
    }

    /// Goes on to the next piece that has pages; returns its start and end if at least half of it has pages, and an empty range if
    /// fewer have. `None` when no page is left.
    fn next_piece(&mut self, file: &File, piece: u64) -> Result<Option<(u64, u64)>, SharedError> {
        let to = self.at.saturating_add(piece).min(self.end);
        if file.lock().is_some_and(|extending| extending.covers(self.at, to)) {
            self.at = to;
            return Ok(Some((to, to)));
        }
        // Opened only where the file has to be asked.
        let mut extents = None;
        let mut find = |at| match &extents {
            Some(extents) => DataExtents::next_data(extents, at),
            None => extents.insert(file.residency()?).next_data(at),
        };
        let Some((from, to, is_there)) = self.data.next_piece((self.at, self.end), piece, &mut find)? else {
            return Ok(None);
        };
        self.at = to;
        Ok(Some(if is_there { (from, to) } else { (to, to) }))
    }
}

impl Job for PinJob {
    fn client(&self) -> u64 {
        self.client
    }

    fn is_wanted(&self) -> bool {
        self.supply.strong_count() > 0
    }

    fn pin_next(mut self: Box<Self>) -> Option<Box<dyn Job>> {
        let supply = self.supply.upgrade()?;
        let (client, file, length) =
            (Arc::clone(&supply.client), Arc::clone(&supply.file), supply.facts.bytes);
        // From here on an unmap does not wait for this thread to give the promise back.
        drop(supply);
        let piece = client.store().policy().piece(length)?;
        let (from, to) = self.next_piece(&file, piece).ok()??;
        if from < to && self.is_wanted() {
            let whole = file.whole(length);
            match client.register(&file, length, (from.min(whole), to.min(whole)), true) {
                Ok(promise) => drop(promise),
                Err(error) if matches!(error.errno(), Errno::ENOMEM | Errno::ENOSPC | Errno::EINTR) => {
                    client.background_ended(&error);
                    return None;
                }
                // Its device finds out for itself, if it ever gets there.
                Err(error) => client.pin_failed(&error),
            }
        }
        (self.at < self.end && self.is_wanted()).then_some(self as Box<dyn Job>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes through a file of these user_segments with pages; answers the pieces and how often the file was asked.
    fn walk(user_segments: &[(u64, u64)], end: u64, piece: u64) -> (Vec<(u64, u64, bool)>, u32) {
        let (mut known, mut asked, mut at, mut found) = (KnownData::default(), 0, 0, Vec::new());
        let mut find = |at: u64| {
            asked += 1;
            let stretch = user_segments.iter().find(|(_, end)| *end > at);
            Ok(stretch.map(|&(first, end)| (first.max(at), end)))
        };
        while let Some(next) = known.next_piece((at, end), piece, &mut find).unwrap() {
            at = next.1;
            found.push(next);
        }
        (found, asked)
    }

    #[test]
    fn a_file_without_holes_is_asked_about_once() {
        let (pieces, asked) = walk(&[(0, 4000)], 4000, 4);
        assert_eq!((pieces.len(), asked), (1000, 2), "and once behind its end");
        assert!(pieces.iter().all(|(_, _, is_there)| *is_there));
    }

    #[test]
    fn pieces_of_which_half_has_pages_are_found_whatever_the_stretches() {
        let user_segments = [(3, 5), (6, 8), (16, 17), (24, 26), (27, 40)];
        let (pieces, asked) = walk(&user_segments, 38, 8);
        let there = [(0, 8, true), (16, 24, false), (24, 32, true), (32, 38, true)];
        assert_eq!(pieces, there);
        assert!(asked <= 2 * user_segments.len() as u32, "{asked}");
    }
}
