//! DMA_READ and DMA_WRITE: the server reaches memory that it cannot map.
//!
//! A transfer is cut into pieces that fit both the client's `max_data_xfer_size` and the window; only so many bytes are
//! under way at a time, over all transfers, first come first served. A piece that comes back short is asked for again from
//! there. The first error stops a transfer, which ends when its last piece is back.

use std::collections::{BTreeMap, VecDeque};

use prereg::{Errno, Iova};

use crate::outbox::Outbox;
use crate::wire::{Command, DmaAccess, DmaDone, Header};

/// A transfer of a session.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TransferId(u64);

/// Why a transfer failed. What a write has done until then stays done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The client has not introduced itself. EINVAL.
    #[error("nothing can be asked of a client before its VERSION")]
    NotNegotiated,
    /// No bytes, or past the end of all addresses. EINVAL.
    #[error("{bytes:#x} bytes at {iova:?} are no range")]
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
    /// The client refused. Its errno: QEMU has ENODEV for memory that is not there, or a device that may not master the
    /// bus.
    #[error("the client refused the transfer: {errno}")]
    Refused {
        /// What it said; EIO where it said 0.
        errno: Errno,
    },
    /// The client's reply is for another place, longer than asked for, empty, or malformed. EIO.
    #[error("the client's reply does not fit what was asked")]
    Malformed,
    /// The session ended. ENXIO.
    #[error("the client is gone")]
    Gone,
}

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

/// What ended, and how.
pub(crate) type Ended = (TransferId, Result<Vec<u8>, TransferError>);

/// Messages under way at a time; far fewer than there are ids.
const MOST_PIECES: usize = 256;

#[derive(Clone, Copy)]
struct Piece {
    offset: usize,
    bytes: usize,
}

struct Transfer {
    command: Command,
    iova: Iova,
    /// The data to write, or room for what is read.
    data: Vec<u8>,
    /// How much of it was ever asked for.
    asked: usize,
    /// How much of it is there.
    done: usize,
    /// What came back short.
    again: Vec<Piece>,
    under_way: usize,
    error: Option<TransferError>,
}

impl Transfer {
    fn next(&mut self, most: usize) -> Option<Piece> {
        if self.error.is_some() {
            return None;
        }
        if let Some(piece) = self.again.pop() {
            return Some(piece);
        }
        let bytes = (self.data.len() - self.asked).min(most);
        let piece = Piece { offset: self.asked, bytes };
        self.asked += bytes;
        (bytes > 0).then_some(piece)
    }

    fn is_over(&self) -> bool {
        self.under_way == 0 && (self.error.is_some() || self.done == self.data.len())
    }

    /// The address of a piece; it cannot wrap, because the whole range does not.
    fn at(&self, offset: usize) -> Iova {
        Iova::new(self.iova.raw().wrapping_add(offset as u64))
    }
}

/// All transfers of a session.
pub(crate) struct Transfers {
    /// Bytes under way at most, and in one message.
    window: usize,
    /// Bytes in one message at most, by the client's word too.
    piece: usize,
    bytes_under_way: usize,
    next_transfer: u64,
    next_id: u16,
    transfers: BTreeMap<TransferId, Transfer>,
    /// Those with something left to ask, oldest first.
    waiting: VecDeque<TransferId>,
    /// By message id.
    pieces: BTreeMap<u16, (TransferId, Piece)>,
}

impl Transfers {
    pub(crate) fn new(window: u32) -> Self {
        let window = window.max(1) as usize;
        Self {
            window,
            piece: window,
            bytes_under_way: 0,
            next_transfer: 0,
            next_id: 0,
            transfers: BTreeMap::new(),
            waiting: VecDeque::new(),
            pieces: BTreeMap::new(),
        }
    }

    /// The client moves `most` bytes in a message.
    pub(crate) fn limit(&mut self, most: u32) {
        self.piece = self.window.min(most.max(1) as usize);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.transfers.is_empty()
    }

    /// Room for `bytes`, at a place that exists.
    pub(crate) fn room(iova: Iova, bytes: usize) -> Result<Vec<u8>, TransferError> {
        let length = bytes as u64;
        let last = length.checked_sub(1).and_then(|more| iova.checked_add(more));
        last.ok_or(TransferError::Range { iova, bytes: length })?;
        let mut room = Vec::new();
        room.try_reserve_exact(bytes).map_err(|_| TransferError::OutOfMemory { bytes: length })?;
        Ok(room)
    }

    /// Starts a transfer; `data` is not empty and its range exists.
    pub(crate) fn start(&mut self, command: Command, iova: Iova, data: Vec<u8>) -> TransferId {
        let id = TransferId(self.next_transfer);
        self.next_transfer += 1;
        let transfer =
            Transfer { command, iova, data, asked: 0, done: 0, again: Vec::new(), under_way: 0, error: None };
        self.transfers.insert(id, transfer);
        self.waiting.push_back(id);
        id
    }

    /// Sends what the window allows.
    pub(crate) fn ask<F>(&mut self, out: &mut Outbox<F>) {
        while self.pieces.len() < MOST_PIECES {
            let Some(id) = self.waiting.front().copied() else { return };
            let room = self.window.saturating_sub(self.bytes_under_way);
            let most = self.piece;
            let Some(transfer) = self.transfers.get_mut(&id) else {
                self.waiting.pop_front();
                continue;
            };
            // A whole piece or nothing, so that a transfer is not cut smaller because others are under way.
            let left =
                transfer.again.last().map_or(transfer.data.len() - transfer.asked, |piece| piece.bytes);
            if self.bytes_under_way > 0 && left.min(most) > room {
                return;
            }
            let Some(piece) = transfer.next(most) else {
                self.waiting.pop_front();
                continue;
            };
            transfer.under_way += 1;
            self.bytes_under_way += piece.bytes;
            let iova = transfer.at(piece.offset);
            let data = match transfer.command {
                Command::DMA_WRITE => transfer.data.get(piece.offset..piece.offset + piece.bytes),
                _ => None,
            };
            let access = DmaAccess { iova, bytes: piece.bytes as u64, data: data.unwrap_or_default() };
            let header = Header::command(self.next_id, transfer.command);
            let sent: Result<(), std::convert::Infallible> = out.frame(&header, |out, _| {
                access.write(out);
                Ok(())
            });
            let Ok(()) = sent;
            self.pieces.insert(self.next_id, (id, piece));
            // Fewer pieces than ids: a free one comes soon.
            while self.pieces.contains_key(&self.next_id) {
                self.next_id = self.next_id.wrapping_add(1);
            }
        }
    }

    /// A reply came; `body` is `None` when it was too long to be read. A reply to nothing is nothing.
    pub(crate) fn reply(&mut self, header: &Header, body: Option<&[u8]>) -> Option<Ended> {
        let (id, piece) = *self.pieces.get(&header.id)?;
        let transfer = self.transfers.get_mut(&id)?;
        self.pieces.remove(&header.id);
        self.bytes_under_way -= piece.bytes;
        transfer.under_way -= 1;
        match landed(transfer, piece, header, body) {
            Ok(done) => {
                transfer.done += done;
                if done < piece.bytes {
                    transfer.again.push(Piece { offset: piece.offset + done, bytes: piece.bytes - done });
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

    /// The client is gone: every transfer ends.
    pub(crate) fn end(&mut self) -> Vec<Ended> {
        self.pieces.clear();
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

/// How many bytes of the piece a reply brings or confirms, from its start.
fn landed(
    transfer: &mut Transfer,
    piece: Piece,
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
        usize::try_from(bytes).ok().filter(|bytes| (1..=piece.bytes).contains(bytes)).ok_or(MALFORMED)?;
    if iova != transfer.at(piece.offset) {
        return Err(MALFORMED);
    }
    if let Some(data) = data {
        let room = transfer.data.get_mut(piece.offset..piece.offset + bytes).ok_or(MALFORMED)?;
        if data.len() != bytes {
            return Err(MALFORMED);
        }
        room.copy_from_slice(data);
    }
    Ok(bytes)
}
