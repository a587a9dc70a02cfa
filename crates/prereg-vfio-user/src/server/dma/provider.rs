//! Memory that is registered at the device's first access, or in the background before.

use std::sync::{Arc, Weak};

use prereg::Errno;
use prereg_iommu::iova::{LocalSegment, MemoryProvider, ProviderError};
use prereg_linux::{DataExtents, FileStat, SharedError};

use super::background::Job;
use super::client_files::ClientFiles;
use super::error::MapMemoryError;
use super::file::{File, Promise};

/// The remaining pins of one mapping, with a weak reference to it.
#[derive(Debug)]
pub(super) struct PinJob {
    provider: Weak<FileProvider>,
    /// The number of its client.
    client: u64,
    /// The next offset in the file, and the end.
    at: u64,
    end: u64,
    data: KnownData,
}

/// The range of a file with pages that was found last. The kernel walks a file without holes to its end to find it, so it is
/// cached over pieces.
#[derive(Debug, Default)]
struct KnownData {
    first: u64,
    end: u64,
}

/// The memory behind one DMA_MAP: a range of a file.
#[derive(Debug)]
pub(super) struct FileProvider {
    pub(super) client: Arc<ClientFiles>,
    pub(super) file: Arc<File>,
    /// The file's attributes when it was mapped.
    pub(super) stat: FileStat,
    /// The start of the mapping in the file.
    pub(super) offset: u64,
    /// Keeps all of the mapping charged. `None`: each piece is charged when it is registered.
    pub(super) promise: Option<Promise>,
}

impl FileProvider {
    fn pieces(&self, first: u64, end: u64) -> Result<Vec<LocalSegment>, MapMemoryError> {
        loop {
            let extents = self.file.lock().ok_or(MapMemoryError::Disconnected)?;
            if extents.covers(first, end) {
                return Ok(extents.pieces(first, end));
            }
            drop(extents);
            let is_promised = self.promise.is_some();
            let promise = self.client.register(&self.file, self.stat.bytes, (first, end), is_promised)?;
            let extents = self.file.lock().ok_or(MapMemoryError::Disconnected)?;
            // The promise prevents a release for lack of memory, but it may be found stale.
            let found = extents.covers(first, end).then(|| extents.pieces(first, end));
            drop(extents);
            drop(promise);
            if let Some(found) = found {
                return Ok(found);
            }
        }
    }
}

impl MemoryProvider for FileProvider {
    fn provide(&self, offset: u64, bytes: u64) -> Result<Vec<LocalSegment>, ProviderError> {
        // The mapping lies inside the file, and the access inside the mapping.
        let first = self.offset + offset;
        self.pieces(first, first + bytes).map_err(|error| {
            self.client.pin_failed(&error);
            ProviderError { errno: error.errno() }
        })
    }
}

impl KnownData {
    /// The first range with pages at or after `at`, from the cache or by `find`.
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

    /// The next piece at or after `at`, before `end`, that has a page, and whether at least half of it has. `None` if no page
    /// is left.
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
    /// Pins `[first, end)` of a mapping's file.
    pub(super) fn new(provider: &Arc<FileProvider>, first: u64, end: u64) -> Self {
        let (client, data) = (provider.client.number(), KnownData::default());
        Self { provider: Arc::downgrade(provider), client, at: first, end, data }
    }

    /// Advances to the next piece with pages; returns its range if at least half of it has pages, else an empty range. `None`
    /// if no page is left.
    fn next_piece(&mut self, file: &File, piece: u64) -> Result<Option<(u64, u64)>, SharedError> {
        let to = self.at.saturating_add(piece).min(self.end);
        if file.lock().is_some_and(|extents| extents.covers(self.at, to)) {
            self.at = to;
            return Ok(Some((to, to)));
        }
        // Opened only if the file must be queried.
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
        self.provider.strong_count() > 0
    }

    fn pin_next(mut self: Box<Self>) -> Option<Box<dyn Job>> {
        let provider = self.provider.upgrade()?;
        let (client, file, length) =
            (Arc::clone(&provider.client), Arc::clone(&provider.file), provider.stat.bytes);
        // From here on this thread does not delay the drop of the promise by an unmap.
        drop(provider);
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
                // The device gets the error if it accesses the piece.
                Err(error) => client.pin_failed(&error),
            }
        }
        (self.at < self.end && self.is_wanted()).then_some(self as Box<dyn Job>)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks a file with these ranges of pages; returns the pieces and the number of queries.
    fn walk(ranges: &[(u64, u64)], end: u64, piece: u64) -> (Vec<(u64, u64, bool)>, u32) {
        let (mut known, mut asked, mut at, mut found) = (KnownData::default(), 0, 0, Vec::new());
        let mut find = |at: u64| {
            asked += 1;
            let stretch = ranges.iter().find(|(_, end)| *end > at);
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
    fn blocks_half_with_pages_are_found_whatever_the_ranges() {
        let ranges = [(3, 5), (6, 8), (16, 17), (24, 26), (27, 40)];
        let (pieces, asked) = walk(&ranges, 38, 8);
        let there = [(0, 8, true), (16, 24, false), (24, 32, true), (32, 38, true)];
        assert_eq!(pieces, there);
        assert!(asked <= 2 * ranges.len() as u32, "{asked}");
    }
}
