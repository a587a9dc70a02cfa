//! Reading fields of a body and writing them to a buffer.

use crate::request_error::RequestError;

/// Reads a body from front to back.
pub(super) struct Fields<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Fields<'a> {
    pub(super) fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], RequestError> {
        let found = self.body.len();
        let end = self.at.saturating_add(N);
        let field = self.body.get(self.at..end).and_then(|field| field.try_into().ok());
        let Some(field) = field else {
            return Err(RequestError::Size { found: length(found), least: length(end), most: u32::MAX });
        };
        self.at = end;
        Ok(field)
    }

    pub(super) fn u16(&mut self) -> Result<u16, RequestError> {
        self.array().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, RequestError> {
        self.array().map(u32::from_ne_bytes)
    }

    pub(super) fn u64(&mut self) -> Result<u64, RequestError> {
        self.array().map(u64::from_ne_bytes)
    }

    pub(super) fn eight(&mut self) -> Result<[u8; 8], RequestError> {
        self.array()
    }

    /// A field that must be zero.
    pub(super) fn zero32(&mut self, field: &'static str) -> Result<(), RequestError> {
        zero(field, u64::from(self.u32()?))
    }

    /// A field that must be zero.
    pub(super) fn zero64(&mut self, field: &'static str) -> Result<(), RequestError> {
        zero(field, self.u64()?)
    }

    /// `argsz`, at least `needed`.
    pub(super) fn argsz(&mut self, needed: u32) -> Result<u32, RequestError> {
        match self.u32()? {
            argsz if argsz < needed => Err(RequestError::ArgSize { argsz, needed }),
            argsz => Ok(argsz),
        }
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.body.get(self.at..).unwrap_or_default()
    }

    /// Checks that nothing is left.
    pub(super) fn end(self) -> Result<(), RequestError> {
        let (at, found) = (length(self.at), length(self.body.len()));
        if at == found { Ok(()) } else { Err(RequestError::Size { found, least: at, most: at }) }
    }
}

fn zero(field: &'static str, found: u64) -> Result<(), RequestError> {
    if found == 0 { Ok(()) } else { Err(RequestError::NotZero { field, found }) }
}

/// A length as the protocol counts it.
pub(super) fn length(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Appends to a buffer.
pub(super) trait Put {
    fn u16(&mut self, value: u16) -> &mut Self;
    fn u32(&mut self, value: u32) -> &mut Self;
    fn u64(&mut self, value: u64) -> &mut Self;
}

impl Put for Vec<u8> {
    fn u16(&mut self, value: u16) -> &mut Self {
        self.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u32(&mut self, value: u32) -> &mut Self {
        self.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(&mut self, value: u64) -> &mut Self {
        self.extend_from_slice(&value.to_ne_bytes());
        self
    }
}
