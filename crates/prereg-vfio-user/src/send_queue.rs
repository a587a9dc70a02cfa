//! Frames that wait to be sent, in order.
//!
//! Frames without descriptors share a buffer, so that many replies take one system call. A frame with descriptors has its own,
//! because a receiver gets descriptors with the first byte they were sent with.

use std::collections::VecDeque;

use crate::wire::Header;

/// A buffer of this length takes no further frame.
const FULL: usize = 64 << 10;

struct Buffer<F> {
    bytes: Vec<u8>,
    /// Bytes of it that were sent.
    sent: usize,
    descriptors: Vec<F>,
    /// Begins with descriptors, so it takes no further frame.
    alone: bool,
}

impl<F> Buffer<F> {
    fn new(bytes: Vec<u8>) -> Self {
        Self { bytes, sent: 0, descriptors: Vec::new(), alone: false }
    }

    fn unsent(&self) -> &[u8] {
        self.bytes.get(self.sent..).unwrap_or_default()
    }
}

/// Frames that wait to be sent.
pub(crate) struct SendQueue<F> {
    buffers: VecDeque<Buffer<F>>,
    unsent: usize,
    /// An empty buffer for reuse.
    spare: Vec<u8>,
}

impl<F> SendQueue<F> {
    pub(crate) fn new() -> Self {
        Self { buffers: VecDeque::new(), unsent: 0, spare: Vec::new() }
    }

    /// Unsent bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.unsent
    }

    /// Appends a frame; nothing if `body` fails.
    pub(crate) fn frame<E>(
        &mut self,
        header: &Header,
        body: impl FnOnce(&mut Vec<u8>, &mut Vec<F>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut buffer = match self.buffers.pop_back() {
            Some(last) if !last.alone && last.bytes.len() < FULL => last,
            last => {
                self.buffers.extend(last);
                Buffer::new(std::mem::take(&mut self.spare))
            }
        };
        let start = buffer.bytes.len();
        let mut descriptors = Vec::new();
        let result = header.frame(&mut buffer.bytes, |out| body(out, &mut descriptors));
        if result.is_err() {
            buffer.bytes.truncate(start);
        }
        self.unsent += buffer.bytes.len() - start;
        let mut alone = None;
        if result.is_ok() && !descriptors.is_empty() {
            let bytes =
                if start == 0 { std::mem::take(&mut buffer.bytes) } else { buffer.bytes.split_off(start) };
            alone = Some(Buffer { bytes, sent: 0, descriptors, alone: true });
        }
        if buffer.bytes.is_empty() {
            self.spare = buffer.bytes;
        } else {
            self.buffers.push_back(buffer);
        }
        self.buffers.extend(alone);
        result
    }

    /// The next bytes to send.
    pub(crate) fn front(&self) -> Option<(&[u8], &[F])> {
        self.buffers.front().map(|buffer| (buffer.unsent(), buffer.descriptors.as_slice()))
    }

    /// Reports that `bytes` of [`SendQueue::front`] were sent, and its descriptors with the first of them.
    pub(crate) fn sent(&mut self, bytes: usize) {
        let Some(buffer) = self.buffers.front_mut() else { return };
        let bytes = bytes.min(buffer.unsent().len());
        if bytes == 0 {
            return;
        }
        buffer.descriptors.clear();
        buffer.sent += bytes;
        self.unsent -= bytes;
        if buffer.unsent().is_empty() {
            if let Some(mut done) = self.buffers.pop_front() {
                if done.bytes.capacity() <= 2 * FULL {
                    done.bytes.clear();
                    self.spare = done.bytes;
                }
            }
        }
    }
}
