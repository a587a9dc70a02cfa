//! DMA_READ and DMA_WRITE: access to client memory that the server cannot map.
//!
//! A transfer is split into chunks that fit both the client's `max_data_xfer_size` and the window; the window limits the bytes
//! under way of all transfers, in order of arrival. The missing part of a short reply is requested again. The first error stops
//! a transfer, which ends when its last chunk is answered.

use std::collections::{BTreeMap, VecDeque};

use prereg::{Errno, Iova};

use crate::send_queue::SendQueue;
use crate::wire::{Command, DmaAccess, DmaDone, Header};

/// A transfer of a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TransferId(u64);

/// Errors of a transfer. A write may have been performed in part.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The client has not sent its VERSION. EINVAL.
    #[error("no transfer is possible before the client's VERSION")]
    NotNegotiated,
    /// The range is empty or passes the end of the address space. EINVAL.
    #[error("{bytes:#x} bytes at {iova:?} are an invalid range")]
    Range {
        /// The first byte.
        iova: Iova,
        /// The length.
        bytes: u64,
    },
    /// No memory for the data. ENOMEM.
    #[error("no memory for {bytes} bytes of data")]
    OutOfMemory {
        /// The length.
        bytes: u64,
    },
    /// The client refused. Its errno: QEMU returns ENODEV for memory that does not exist, or a device without bus mastering.
    #[error("the client refused the transfer: {errno}")]
    Refused {
        /// The errno; EIO if it sent 0.
        errno: Errno,
    },
    /// The reply has another address, too many or no bytes, or is malformed. EIO.
    #[error("the client's reply does not match the request")]
    Malformed,
    /// The session ended. ENXIO.
    #[error("the client is gone")]
    Gone,
}

prereg::debug_as_display!(TransferError);

impl TransferError {
    /// The error number.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::NotNegotiated | Self::Range { .. } => Errno::EINVAL,
            Self::OutOfMemory { .. } => Errno::ENOMEM,
            Self::Refused { errno } => *errno,
            Self::Malformed => Errno::EIO,
            Self::Gone => Errno::ENXIO,
        }
    }
}

/// A finished transfer and its result.
pub(crate) type Finished = (TransferId, Result<Vec<u8>, TransferError>);

/// Chunks under way at a time; far fewer than message ids.
const MAX_CHUNKS: usize = 256;

#[derive(Clone, Copy)]
struct Chunk {
    offset: usize,
    bytes: usize,
}

struct Transfer {
    command: Command,
    iova: Iova,
    /// The data to write, or the buffer for data that is read.
    data: Vec<u8>,
    /// Bytes requested so far.
    asked: usize,
    /// Bytes done.
    done: usize,
    /// Missing parts of short replies.
    retry: Vec<Chunk>,
    under_way: usize,
    error: Option<TransferError>,
}

impl Transfer {
    fn next(&mut self, most: usize) -> Option<Chunk> {
        if self.error.is_some() {
            return None;
        }
        if let Some(chunk) = self.retry.pop() {
            return Some(chunk);
        }
        let bytes = (self.data.len() - self.asked).min(most);
        let chunk = Chunk { offset: self.asked, bytes };
        self.asked += bytes;
        (bytes > 0).then_some(chunk)
    }

    fn is_over(&self) -> bool {
        self.under_way == 0 && (self.error.is_some() || self.done == self.data.len())
    }

    /// The address of a chunk; the range does not wrap, so neither does this.
    fn at(&self, offset: usize) -> Iova {
        Iova::new(self.iova.raw().wrapping_add(offset as u64))
    }
}

/// All transfers of a session.
pub(crate) struct Transfers {
    /// Bytes under way at most, and in one message.
    window: usize,
    /// Bytes in one message at most, also by the client's limit.
    chunk: usize,
    bytes_under_way: usize,
    next_transfer: u64,
    next_id: u16,
    transfers: BTreeMap<TransferId, Transfer>,
    /// Those with something left to request, oldest first.
    waiting: VecDeque<TransferId>,
    /// By message id.
    chunks: BTreeMap<u16, (TransferId, Chunk)>,
    /// Chunks that the client has replied to.
    answered: u64,
}

impl Transfers {
    pub(crate) fn new(window: u32) -> Self {
        let window = window.max(1) as usize;
        Self {
            window,
            chunk: window,
            bytes_under_way: 0,
            next_transfer: 0,
            next_id: 0,
            transfers: BTreeMap::new(),
            waiting: VecDeque::new(),
            chunks: BTreeMap::new(),
            answered: 0,
        }
    }

    /// The number of chunks that were replied to before, if a reply is due.
    pub(crate) fn awaited(&self) -> Option<u64> {
        (!self.chunks.is_empty()).then_some(self.answered)
    }

    /// Sets the client's `max_data_xfer_size`.
    pub(crate) fn limit(&mut self, most: u32) {
        self.chunk = self.window.min(most.max(1) as usize);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.transfers.is_empty()
    }

    /// A buffer for `bytes`, after checking the range.
    pub(crate) fn buffer(iova: Iova, bytes: usize) -> Result<Vec<u8>, TransferError> {
        let length = bytes as u64;
        let last = length.checked_sub(1).and_then(|more| iova.checked_add(more));
        last.ok_or(TransferError::Range { iova, bytes: length })?;
        let mut buffer = Vec::new();
        buffer.try_reserve_exact(bytes).map_err(|_| TransferError::OutOfMemory { bytes: length })?;
        Ok(buffer)
    }

    /// Starts a transfer; `data` is not empty and its range was checked.
    pub(crate) fn start(&mut self, command: Command, iova: Iova, data: Vec<u8>) -> TransferId {
        let id = TransferId(self.next_transfer);
        self.next_transfer += 1;
        let transfer =
            Transfer { command, iova, data, asked: 0, done: 0, retry: Vec::new(), under_way: 0, error: None };
        self.transfers.insert(id, transfer);
        self.waiting.push_back(id);
        id
    }

    /// Sends requests as the window allows.
    pub(crate) fn send_next<F>(&mut self, out: &mut SendQueue<F>) {
        while self.chunks.len() < MAX_CHUNKS {
            let Some(id) = self.waiting.front().copied() else { return };
            let buffer = self.window.saturating_sub(self.bytes_under_way);
            let most = self.chunk;
            let Some(transfer) = self.transfers.get_mut(&id) else {
                self.waiting.pop_front();
                continue;
            };
            // A whole chunk or none, so that concurrent transfers do not make chunks smaller.
            let left =
                transfer.retry.last().map_or(transfer.data.len() - transfer.asked, |chunk| chunk.bytes);
            if self.bytes_under_way > 0 && left.min(most) > buffer {
                return;
            }
            let Some(chunk) = transfer.next(most) else {
                self.waiting.pop_front();
                continue;
            };
            transfer.under_way += 1;
            self.bytes_under_way += chunk.bytes;
            let iova = transfer.at(chunk.offset);
            let data = match transfer.command {
                Command::DMA_WRITE => transfer.data.get(chunk.offset..chunk.offset + chunk.bytes),
                _ => None,
            };
            let access = DmaAccess { iova, bytes: chunk.bytes as u64, data: data.unwrap_or_default() };
            let header = Header::command(self.next_id, transfer.command);
            let sent: Result<(), std::convert::Infallible> = out.frame(&header, |out, _| {
                access.write(out);
                Ok(())
            });
            let Ok(()) = sent;
            self.chunks.insert(self.next_id, (id, chunk));
            // Fewer chunks than ids, so this ends.
            while self.chunks.contains_key(&self.next_id) {
                self.next_id = self.next_id.wrapping_add(1);
            }
        }
    }

    /// Handles a reply; `body` is `None` if it was too long to be read. An unexpected reply is ignored.
    pub(crate) fn reply(&mut self, header: &Header, body: Option<&[u8]>) -> Option<Finished> {
        let (id, chunk) = *self.chunks.get(&header.id)?;
        let transfer = self.transfers.get_mut(&id)?;
        self.chunks.remove(&header.id);
        self.answered += 1;
        self.bytes_under_way -= chunk.bytes;
        transfer.under_way -= 1;
        match accept_reply(transfer, chunk, header, body) {
            Ok(done) => {
                transfer.done += done;
                if done < chunk.bytes {
                    transfer.retry.push(Chunk { offset: chunk.offset + done, bytes: chunk.bytes - done });
                    if transfer.error.is_none() && !self.waiting.contains(&id) {
                        self.waiting.push_front(id);
                    }
                }
            }
            Err(error) => {
                transfer.error.get_or_insert(error);
            }
        }
        if !transfer.is_over() {
            return None;
        }
        self.waiting.retain(|waiting| *waiting != id);
        let transfer = self.transfers.remove(&id)?;
        Some((id, outcome(transfer)))
    }

    /// Ends every transfer, because the client is gone.
    pub(crate) fn end(&mut self) -> Vec<Finished> {
        self.chunks.clear();
        self.waiting.clear();
        self.bytes_under_way = 0;
        let ended = std::mem::take(&mut self.transfers);
        ended.into_keys().map(|id| (id, Err(TransferError::Gone))).collect()
    }
}

fn outcome(transfer: Transfer) -> Result<Vec<u8>, TransferError> {
    match transfer.error {
        Some(error) => Err(error),
        None if transfer.command == Command::DMA_WRITE => Ok(Vec::new()),
        None => Ok(transfer.data),
    }
}

/// The bytes of the chunk that a reply has or confirms, from its start.
fn accept_reply(
    transfer: &mut Transfer,
    chunk: Chunk,
    header: &Header,
    body: Option<&[u8]>,
) -> Result<usize, TransferError> {
    const MALFORMED: TransferError = TransferError::Malformed;
    if header.command != transfer.command {
        return Err(MALFORMED);
    }
    if let Some(errno) = header.errno() {
        return Err(TransferError::Refused { errno });
    }
    let body = body.ok_or(MALFORMED)?;
    let (iova, bytes, data) = if transfer.command == Command::DMA_WRITE {
        let done = DmaDone::read(body).map_err(|_| MALFORMED)?;
        (done.iova, done.bytes, None)
    } else {
        let access = DmaAccess::read(body).map_err(|_| MALFORMED)?;
        (access.iova, access.bytes, Some(access.data))
    };
    let bytes =
        usize::try_from(bytes).ok().filter(|bytes| (1..=chunk.bytes).contains(bytes)).ok_or(MALFORMED)?;
    if iova != transfer.at(chunk.offset) {
        return Err(MALFORMED);
    }
    if let Some(data) = data {
        let buffer = transfer.data.get_mut(chunk.offset..chunk.offset + bytes).ok_or(MALFORMED)?;
        if data.len() != bytes {
            return Err(MALFORMED);
        }
        buffer.copy_from_slice(data);
    }
    Ok(bytes)
}
