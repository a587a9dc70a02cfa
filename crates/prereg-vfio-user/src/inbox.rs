//! Where messages are put together from whatever pieces the stream comes in.
//!
//! A message that lies whole in what was received is not copied. Of one that does not, only what came is held, never what
//! its header promises.

use std::borrow::Cow;

use crate::refusal::SessionError;
use crate::wire::Header;

/// Messages up to here are skipped when they are too long to be read; a header that says more is taken for a lost stream.
/// As much as QEMU allows a server to say for `max_data_xfer_size`.
const LONGEST_SKIPPED: u32 = 64 << 20;

/// A message that came whole.
pub(crate) struct Message<'a> {
    pub(crate) header: Header,
    /// Nothing, if the message was skipped.
    pub(crate) body: Cow<'a, [u8]>,
    pub(crate) oversized: bool,
}

/// The descriptors that came with a message.
pub(crate) struct Descriptors<F> {
    pub(crate) kept: Vec<F>,
    /// More came than are ever taken; none is kept.
    pub(crate) too_many: bool,
    /// The system dropped some.
    pub(crate) lost: bool,
}

impl<F> Descriptors<F> {
    fn none() -> Self {
        Self { kept: Vec::new(), too_many: false, lost: false }
    }

    /// Adds some, but never holds more than `most`.
    pub(crate) fn add(&mut self, more: impl IntoIterator<Item = F>, most: u32) {
        for descriptor in more {
            if self.too_many || self.kept.len() >= most as usize {
                self.too_many = true;
                self.kept.clear();
            } else {
                self.kept.push(descriptor);
            }
        }
    }
}

/// The half-received message.
pub(crate) struct Inbox<F> {
    /// The longest message that is read.
    longest: u32,
    head: [u8; Header::BYTES],
    head_length: usize,
    /// Known when `head` is full.
    header: Option<Header>,
    body: Vec<u8>,
    /// Bytes of the body still to come.
    left: u32,
    /// With the bytes so far.
    pub(crate) descriptors: Descriptors<F>,
}

impl<F> Inbox<F> {
    /// Reads messages of up to `longest` bytes.
    pub(crate) fn new(longest: u32) -> Self {
        Self {
            longest,
            head: [0; Header::BYTES],
            head_length: 0,
            header: None,
            body: Vec::new(),
            left: 0,
            descriptors: Descriptors::none(),
        }
    }

    /// The longest message that is read.
    pub(crate) fn longest(&self) -> u32 {
        self.longest
    }

    /// Bytes that complete the header, or the message once its header is there. Never 0.
    pub(crate) fn wanted(&self) -> usize {
        match self.header {
            None => Header::BYTES - self.head_length,
            Some(_) => self.left as usize,
        }
    }

    /// Bytes of the message under way that came, and of all of it as far as known.
    pub(crate) fn under_way(&self) -> Option<(u32, u32)> {
        match self.header {
            Some(header) => Some((header.size - self.left, header.size)),
            None if self.head_length > 0 => Some((self.head_length as u32, Header::BYTES as u32)),
            None => None,
        }
    }

    /// Takes bytes off the front of `input` until a message is whole; `None` when `input` ends before.
    pub(crate) fn take<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Message<'a>>, SessionError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                if self.head_length == 0 {
                    if let Some(message) = self.whole(input)? {
                        return Ok(Some(message));
                    }
                }
                let wanted = Header::BYTES - self.head_length;
                let piece = split(input, wanted);
                if let Some(room) = self.head.get_mut(self.head_length..self.head_length + piece.len()) {
                    room.copy_from_slice(piece);
                }
                self.head_length += piece.len();
                if piece.len() < wanted {
                    return Ok(None);
                }
                let header = checked(&self.head)?;
                self.header = Some(header);
                self.left = header.size - Header::BYTES as u32;
                header
            }
        };
        let oversized = header.size > self.longest;
        let piece = split(input, self.left as usize);
        if !oversized {
            self.body.extend_from_slice(piece);
        }
        // A piece is at most what was left.
        self.left -= piece.len() as u32;
        if self.left > 0 {
            return Ok(None);
        }
        self.header = None;
        self.head_length = 0;
        Ok(Some(Message { header, body: Cow::Owned(std::mem::take(&mut self.body)), oversized }))
    }

    /// A message that lies whole at the front of `input`.
    fn whole<'a>(&self, input: &mut &'a [u8]) -> Result<Option<Message<'a>>, SessionError> {
        let Some(head) = input.first_chunk() else { return Ok(None) };
        let header = checked(head)?;
        if header.size > self.longest || input.len() < header.size as usize {
            return Ok(None);
        }
        let message = split(input, header.size as usize);
        let body = message.get(Header::BYTES..).unwrap_or_default();
        Ok(Some(Message { header, body: Cow::Borrowed(body), oversized: false }))
    }

    /// The descriptors so far, for the message that is now whole.
    pub(crate) fn claim(&mut self) -> Descriptors<F> {
        std::mem::replace(&mut self.descriptors, Descriptors::none())
    }
}

/// A header whose size can be believed.
fn checked(head: &[u8; Header::BYTES]) -> Result<Header, SessionError> {
    let header = Header::read(head);
    let Header { id, size, .. } = header;
    if size < Header::BYTES as u32 {
        return Err(SessionError::ShortMessage { id, size });
    }
    if size > LONGEST_SKIPPED {
        return Err(SessionError::LongMessage { id, size, most: LONGEST_SKIPPED });
    }
    Ok(header)
}

/// Up to `bytes` off the front.
fn split<'a>(input: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (piece, rest) = input.split_at(bytes.min(input.len()));
    *input = rest;
    piece
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Command;

    #[test]
    fn what_is_skipped_is_not_held() {
        let mut inbox: Inbox<()> = Inbox::new(100);
        let mut bytes = Vec::new();
        Header::command(1, Command::REGION_WRITE).frame(&mut bytes, |out| out.resize(10_000, 0));
        let (first, last) = bytes.split_at(9_999);
        assert!(matches!(inbox.take(&mut &*first), Ok(None)));
        assert_eq!((inbox.body.capacity(), inbox.wanted()), (0, 1));
        let message = inbox.take(&mut &*last).unwrap().unwrap();
        assert!(message.oversized && message.body.is_empty());
    }

    #[test]
    fn only_what_came_is_held() {
        let mut inbox: Inbox<()> = Inbox::new(1 << 20);
        let mut bytes = Vec::new();
        Header::command(1, Command::REGION_WRITE).frame(&mut bytes, |out| out.resize(1 << 19, 0));
        let start = &bytes[..100];
        assert!(matches!(inbox.take(&mut &*start), Ok(None)));
        assert!(inbox.body.capacity() < 1000, "not what the header promises");
    }
}
