//! Memory that is registered when a device first uses it, or in the background before that.

use std::sync::{Arc, Weak};

use prereg_iommu::iova::{LocalPiece, Supply, SupplyError};
use prereg_linux::{DataExtents, FileStat, SharedError};

use super::background::Job;
use super::client::Client;
use super::error::MapMemoryError;
use super::file::{File, Promise};

/// What is left to pin of one mapping. It does not keep the mapping.
#[derive(Debug)]
pub(super) struct PinJob {
    supply: Weak<FileSupply>,
    /// Where in its file to go on, and where to stop.
    at: u64,
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
    fn pieces(&self, first: u64, end: u64) -> Result<Vec<LocalPiece>, MapMemoryError> {
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

impl Supply for FileSupply {
    fn supply(&self, offset: u64, bytes: u64) -> Result<Vec<LocalPiece>, SupplyError> {
        // The mapping was proved to lie inside the file, and the access inside the mapping.
        let first = self.offset + offset;
        self.pieces(first, first + bytes).map_err(|error| {
            self.client.pin_failed(&error);
            SupplyError { errno: error.errno() }
        })
    }
}

impl PinJob {
    /// All of `[first, end)` of a mapping's file.
    pub(super) fn new(supply: &Arc<FileSupply>, first: u64, end: u64) -> Self {
        Self { supply: Arc::downgrade(supply), at: first, end }
    }

    /// The next piece at `at` or behind it of which at least half has pages; an empty one when a piece was looked at that has
    /// fewer. `None` when nothing has pages any more.
    fn next_piece(file: &File, at: u64, end: u64, piece: u64) -> Result<Option<(u64, u64)>, SharedError> {
        let residency: DataExtents = file.residency()?;
        let Some(data) = residency.next_data(at)?.filter(|data| *data < end) else { return Ok(None) };
        let from = data - data % piece;
        let to = from.saturating_add(piece).min(end);
        let half = (to - from) / 2;
        let is_there = residency.bytes_within(from, to, half)? >= half;
        Ok(Some(if is_there { (from, to) } else { (to, to) }))
    }
}

impl Job for PinJob {
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
        let (from, to) = Self::next_piece(&file, self.at, self.end, piece).ok()??;
        self.at = to;
        if from < to && self.is_wanted() {
            let whole = file.whole(length);
            match client.register(&file, length, (from.min(whole), to.min(whole)), true) {
                Ok(promise) => drop(promise),
                // Its device finds out for itself, if it ever gets there.
                Err(error) => client.pin_failed(&error),
            }
        }
        (self.at < self.end && self.is_wanted()).then_some(self as Box<dyn Job>)
    }
}
