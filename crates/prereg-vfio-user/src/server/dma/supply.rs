//! Memory that is registered when a device first uses it.

use std::sync::Arc;

use prereg::Errno;
use prereg_iommu::iova::{LocalPiece, Supply, SupplyError};
use prereg_linux::FileFacts;

use super::client::Client;
use super::error::MapMemoryError;
use super::file::File;

/// The memory behind one DMA_MAP: a range of a file.
pub(super) struct FileSupply {
    pub(super) client: Arc<Client>,
    pub(super) file: Arc<File>,
    /// The file as it was when it was mapped.
    pub(super) facts: FileFacts,
    /// Where the mapping begins in it.
    pub(super) offset: u64,
}

impl FileSupply {
    fn register(&self, first: u64, end: u64) -> Result<Vec<LocalPiece>, MapMemoryError> {
        let store = self.client.store();
        // Other files are looked at before this one is locked.
        let budget = self.client.budget().ok_or(MapMemoryError::Disconnected)?;
        let mut extending = self.file.lock().ok_or(MapMemoryError::Disconnected)?;
        let added = extending.register(
            (first, end),
            self.facts.bytes,
            budget,
            self.client.holder(),
            store.registrar(),
            || store.release_unmapped(false),
        );
        added?.keep();
        Ok(extending.pieces(first, end))
    }
}

impl Supply for FileSupply {
    fn supply(&self, offset: u64, bytes: u64) -> Result<Vec<LocalPiece>, SupplyError> {
        // The mapping was proved to lie inside the file, and the access inside the mapping.
        let first = self.offset + offset;
        let end = first + bytes;
        let extending = self.file.lock().ok_or(SupplyError { errno: Errno::ENXIO })?;
        if extending.covers(first, end) {
            return Ok(extending.pieces(first, end));
        }
        drop(extending);
        self.register(first, end).map_err(|error| SupplyError { errno: error.errno() })
    }
}
