//! Base address registers.

/// A BAR: kind and length.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bar {
    pub(super) bytes: u64,
    /// The low bits of the register: the kind.
    pub(super) kind: u32,
}

impl Bar {
    const IO: u32 = 1;
    const WIDE: u32 = 1 << 2;
    const PREFETCHABLE: u32 = 1 << 3;

    /// Memory of `bytes`, a power of two from 16, below 4 GiB.
    #[must_use]
    pub const fn memory32(bytes: u64) -> Self {
        Self { bytes, kind: 0 }
    }

    /// Memory of `bytes`, a power of two from 16, anywhere; also uses the next BAR.
    #[must_use]
    pub const fn memory64(bytes: u64) -> Self {
        Self { bytes, kind: Self::WIDE }
    }

    /// I/O ports: `bytes`, a power of two from 4 to 256.
    #[must_use]
    pub const fn io(bytes: u64) -> Self {
        Self { bytes, kind: Self::IO }
    }

    /// Marks it as prefetchable.
    #[must_use]
    pub const fn prefetchable(mut self) -> Self {
        if !self.is_io() {
            self.kind |= Self::PREFETCHABLE;
        }
        self
    }

    /// The length.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it uses two registers.
    pub(crate) const fn is_wide(&self) -> bool {
        self.kind & Self::WIDE != 0
    }

    /// Whether it is I/O ports.
    pub(crate) const fn is_io(&self) -> bool {
        self.kind & Self::IO != 0
    }

    /// Whether the length is valid for the kind.
    pub(super) const fn is_possible(&self) -> bool {
        let (least, most) = match (self.is_io(), self.is_wide()) {
            (true, _) => (4, 256),
            (false, true) => (16, 1 << 63),
            (false, false) => (16, 1 << 31),
        };
        self.bytes.is_power_of_two() && self.bytes >= least && self.bytes <= most
    }

    /// The writable address bits.
    pub(super) const fn mask(&self) -> u64 {
        !(self.bytes - 1)
    }
}
