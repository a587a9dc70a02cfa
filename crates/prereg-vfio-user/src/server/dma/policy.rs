//! When memory behind a descriptor is registered, and how much of it at a time.

/// When memory is registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum RegisterWhen {
    /// At the first DMA_MAP that names it: I/O never waits for a pin, and a limit shows at the start.
    #[default]
    Eager,
    /// At the first access of the device: a guest is up at once, and memory that no device uses is never pinned.
    FirstUse,
}

/// How the memory of clients is registered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub struct MemoryPolicy {
    /// When.
    pub when: RegisterWhen,
    /// In pieces of so many bytes (rounded up to a power of two and to pages); `None` for whole files.
    pub extent: Option<u64>,
    /// How many bytes of files one client may have registered; `None` for as many as the system allows.
    pub client_bytes: Option<u64>,
}

impl MemoryPolicy {
    /// Whole files at the first DMA_MAP.
    pub const EAGER: Self = Self { when: RegisterWhen::Eager, extent: None, client_bytes: None };
    /// At first use.
    pub const FIRST_USE: Self = Self { when: RegisterWhen::FirstUse, extent: None, client_bytes: None };

    /// The same in pieces of `bytes`.
    #[must_use]
    pub const fn with_extent(mut self, bytes: u64) -> Self {
        self.extent = Some(bytes);
        self
    }

    /// The same with so many bytes for one client.
    #[must_use]
    pub const fn with_client_bytes(mut self, bytes: u64) -> Self {
        self.client_bytes = Some(bytes);
        self
    }
}
