//! The policy of registering: when, how much at a time, and limits.

/// The time of registration.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum RegisterWhen {
    /// The reply to DMA_MAP follows once the memory is charged. Background threads then pin the pieces that have pages; a
    /// device that accesses a piece before pins it at once, and a piece without pages is pinned at the first access.
    #[default]
    Background,
    /// Before the reply to the first DMA_MAP of a file: I/O never waits for a pin, but the client waits for all of it.
    Eager,
    /// At the first access of the device: unused memory is neither pinned nor charged.
    FirstUse,
}

/// The policy of registering client memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct MemoryPolicy {
    /// The time of registration.
    pub when: RegisterWhen,
    /// The size of a piece in bytes (rounded up to a power of two and to pages). `None`: whole files; in the background, a size
    /// that follows from `total_bytes`.
    pub extent: Option<u64>,
    /// The limit of registered and promised bytes of one client; `None` for that of all together.
    pub client_bytes: Option<u64>,
    /// The limit of registered and promised bytes of all clients together; `None` for the system's.
    pub total_bytes: Option<u64>,
}

impl MemoryPolicy {
    /// In the background, after the reply.
    pub const BACKGROUND: Self = Self::of(RegisterWhen::Background);
    /// Whole files at the first DMA_MAP.
    pub const EAGER: Self = Self::of(RegisterWhen::Eager);
    /// At first use.
    pub const FIRST_USE: Self = Self::of(RegisterWhen::FirstUse);

    const fn of(when: RegisterWhen) -> Self {
        Self { when, extent: None, client_bytes: None, total_bytes: None }
    }

    /// Sets `extent`.
    #[must_use]
    pub const fn with_extent(mut self, bytes: u64) -> Self {
        self.extent = Some(bytes);
        self
    }

    /// Sets `client_bytes`.
    #[must_use]
    pub const fn with_client_bytes(mut self, bytes: u64) -> Self {
        self.client_bytes = Some(bytes);
        self
    }

    /// Sets `total_bytes`.
    #[must_use]
    pub const fn with_total_bytes(mut self, bytes: u64) -> Self {
        self.total_bytes = Some(bytes);
        self
    }

    /// The size of a piece of a file of `length` bytes.
    ///
    /// The limit is at most 4096 pieces: large enough to keep the tables small, small enough to pin one in milliseconds. A file
    /// has at most 2^16 pieces, whatever the policy.
    pub(super) fn piece(&self, length: u64) -> Option<u64> {
        const UNLIMITED: u64 = 16 << 20;
        const SMALLEST: u64 = 2 << 20;
        const LARGEST: u64 = 1 << 30;
        let piece = match (self.extent, self.when) {
            (Some(extent), _) => extent,
            (None, RegisterWhen::Eager | RegisterWhen::FirstUse) => return None,
            (None, RegisterWhen::Background) => self.total_bytes.map_or(UNLIMITED, |total| {
                (total / 4096).checked_next_power_of_two().unwrap_or(LARGEST).clamp(SMALLEST, LARGEST)
            }),
        };
        let piece = piece.max(1).checked_next_power_of_two().unwrap_or(1 << 63);
        Some(piece.max(length.div_ceil(1 << 16).checked_next_power_of_two().unwrap_or(1 << 63)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_follow_the_limit_and_a_file_has_a_bounded_number_of_them() {
        let piece = |total: u64, length| MemoryPolicy::BACKGROUND.with_total_bytes(total).piece(length);
        assert_eq!(piece(1 << 20, 1 << 30), Some(2 << 20));
        assert_eq!(piece(21 << 30, 1 << 30), Some(8 << 20));
        assert_eq!(piece(u64::MAX, 1 << 30), Some(1 << 30));
        assert_eq!(MemoryPolicy::BACKGROUND.piece(1 << 30), Some(16 << 20));
        assert_eq!(MemoryPolicy::EAGER.piece(1 << 30), None);
        assert_eq!(MemoryPolicy::FIRST_USE.with_extent(3 << 20).piece(0), Some(4 << 20));
        let largest = MemoryPolicy::BACKGROUND.piece(i64::MAX as u64);
        assert!(largest.is_some_and(|piece| (i64::MAX as u64).div_ceil(piece) <= 1 << 16));
        assert_eq!(MemoryPolicy::BACKGROUND.piece(1 << 40), Some(16 << 20));
        assert_eq!(MemoryPolicy::BACKGROUND.with_extent(2 << 20).piece(1 << 40), Some(16 << 20));
    }
}
