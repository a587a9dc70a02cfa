//! Page sizes of kernels, which change their answers.

/// The page size of a kernel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum PageSize {
    /// 4 KiB.
    Small,
    /// 64 KiB.
    Large,
}

impl PageSize {
    pub(crate) const ALL: [Self; 2] = [Self::Small, Self::Large];

    pub(crate) fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|page_size| page_size.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Small => "4k",
            Self::Large => "64k",
        }
    }

    /// Debian's name of the kernel with such pages.
    pub(crate) fn flavour(self) -> &'static str {
        match self {
            Self::Small => "powerpc64le",
            Self::Large => "powerpc64le-64k",
        }
    }
}
