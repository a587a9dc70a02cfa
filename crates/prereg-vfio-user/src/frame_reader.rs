//! Reassembles messages from a stream.
//!
//! A message that is complete in the received bytes is not copied. Of an incomplete one only the received bytes are held, not
//! the size in its header.

use std::borrow::Cow;

use crate::request_error::SessionError;
use crate::wire::Header;

/// Too long messages are skipped up to this size; a larger one is treated as a lost stream. It is the largest
/// `max_data_xfer_size` that QEMU accepts.
const MAX_SKIPPED: u32 = 64 << 20;

/// A complete message.
pub(crate) struct Message<'a> {
    pub(crate) header: Header,
    /// Empty if the message was skipped.
    pub(crate) body: Cow<'a, [u8]>,
    pub(crate) oversized: bool,
}

/// The descriptors of a message.
pub(crate) struct Descriptors<F> {
    pub(crate) kept: Vec<F>,
    /// More came than are accepted; all are dropped.
    pub(crate) too_many: bool,
    /// The system dropped some.
    pub(crate) lost: bool,
}

impl<F> Descriptors<F> {
    fn none() -> Self {
        Self { kept: Vec::new(), too_many: false, lost: false }
    }

    /// Adds descriptors, up to `most` in total.
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

/// Reads frames from a stream.
pub(crate) struct FrameReader<F> {
    /// The longest message that is read.
    max_size: u32,
    head: [u8; Header::BYTES],
    head_length: usize,
    /// Set when `head` is complete.
    header: Option<Header>,
    body: Vec<u8>,
    /// Bytes of the body still missing.
    left: u32,
    /// The descriptors received with the bytes so far.
    pub(crate) descriptors: Descriptors<F>,
}

impl<F> FrameReader<F> {
    /// Reads messages of up to `max_size` bytes.
    pub(crate) fn new(max_size: u32) -> Self {
        Self {
            max_size,
            head: [0; Header::BYTES],
            head_length: 0,
            header: None,
            body: Vec::new(),
            left: 0,
            descriptors: Descriptors::none(),
        }
    }

    /// The longest message that is read.
    pub(crate) fn max_size(&self) -> u32 {
        self.max_size
    }

    /// Bytes missing for the header, or for the message once its header is complete. Never 0.
    pub(crate) fn wanted(&self) -> usize {
        match self.header {
            None => Header::BYTES - self.head_length,
            Some(_) => self.left as usize,
        }
    }

    /// Received bytes of an incomplete message, and its size as far as known.
    pub(crate) fn under_way(&self) -> Option<(u32, u32)> {
        match self.header {
            Some(header) => Some((header.size - self.left, header.size)),
            None if self.head_length > 0 => Some((self.head_length as u32, Header::BYTES as u32)),
            None => None,
        }
    }

    /// Consumes `input` until a message is complete; `None` if `input` ends before.
    pub(crate) fn take<'a>(&mut self, input: &mut &'a [u8]) -> Result<Option<Message<'a>>, SessionError> {
        let header = match self.header {
            Some(header) => header,
            None => {
                if self.head_length == 0 {
                    if let Some(message) = self.whole_message(input)? {
                        return Ok(Some(message));
                    }
                }
                let wanted = Header::BYTES - self.head_length;
                let part = split(input, wanted);
                if let Some(room) = self.head.get_mut(self.head_length..self.head_length + part.len()) {
                    room.copy_from_slice(part);
                }
                self.head_length += part.len();
                if part.len() < wanted {
                    return Ok(None);
                }
                let header = checked(&self.head)?;
                self.header = Some(header);
                self.left = header.size - Header::BYTES as u32;
                header
            }
        };
        let oversized = header.size > self.max_size;
        let part = split(input, self.left as usize);
        if !oversized {
            self.body.extend_from_slice(part);
        }
        // A part is at most `left`.
        self.left -= part.len() as u32;
        if self.left > 0 {
            return Ok(None);
        }
        self.header = None;
        self.head_length = 0;
        Ok(Some(Message { header, body: Cow::Owned(std::mem::take(&mut self.body)), oversized }))
    }

    /// A message that is complete at the front of `input`.
    fn whole_message<'a>(&self, input: &mut &'a [u8]) -> Result<Option<Message<'a>>, SessionError> {
        let Some(head) = input.first_chunk() else { return Ok(None) };
        let header = checked(head)?;
        if header.size > self.max_size || input.len() < header.size as usize {
            return Ok(None);
        }
        let message = split(input, header.size as usize);
        let body = message.get(Header::BYTES..).unwrap_or_default();
        Ok(Some(Message { header, body: Cow::Borrowed(body), oversized: false }))
    }

    /// Takes the descriptors so far, for the message that is complete now.
    pub(crate) fn take_descriptors(&mut self) -> Descriptors<F> {
        std::mem::replace(&mut self.descriptors, Descriptors::none())
    }
}

/// Reads a header and checks its size.
fn checked(head: &[u8; Header::BYTES]) -> Result<Header, SessionError> {
    let header = Header::read(head);
    let Header { id, size, .. } = header;
    if size < Header::BYTES as u32 {
        return Err(SessionError::ShortMessage { id, size });
    }
    if size > MAX_SKIPPED {
        return Err(SessionError::LongMessage { id, size, most: MAX_SKIPPED });
    }
    Ok(header)
}

/// Removes up to `bytes` from the front.
fn split<'a>(input: &mut &'a [u8], bytes: usize) -> &'a [u8] {
    let (part, rest) = input.split_at(bytes.min(input.len()));
    *input = rest;
    part
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Command;

    #[test]
    fn what_is_skipped_is_not_held() {
        let mut frame_reader: FrameReader<()> = FrameReader::new(100);
        let mut bytes = Vec::new();
        Header::command(1, Command::REGION_WRITE).frame(&mut bytes, |out| out.resize(10_000, 0));
        let (first, last) = bytes.split_at(9_999);
        assert!(matches!(frame_reader.take(&mut &*first), Ok(None)));
        assert_eq!((frame_reader.body.capacity(), frame_reader.wanted()), (0, 1));
        let message = frame_reader.take(&mut &*last).unwrap().unwrap();
        assert!(message.oversized && message.body.is_empty());
    }

    #[test]
    fn only_what_came_is_held() {
        let mut frame_reader: FrameReader<()> = FrameReader::new(1 << 20);
        let mut bytes = Vec::new();
        Header::command(1, Command::REGION_WRITE).frame(&mut bytes, |out| out.resize(1 << 19, 0));
        let start = &bytes[..100];
        assert!(matches!(frame_reader.take(&mut &*start), Ok(None)));
        assert!(frame_reader.body.capacity() < 1000, "not what the header promises");
    }
}
