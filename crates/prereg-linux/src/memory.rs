//! Memory that can be registered: mapped here, or by the caller.
//!
//! A [`GuestMemory`] owns its mapping through an `Arc`, and every region registered from it holds the same `Arc`: the
//! memory stays mapped until the last page is unpinned, even after the `GuestMemory` was dropped. No reference into it
//! is handed out; it is read and written by copies that are atomic word by word.

use std::any::Any;
use std::ffi::CString;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use prereg::{Errno, PageShift, UserAddr};
use rustix::fs::MemfdFlags;

use crate::mapping::{MapRequest, Mapping};
use crate::sys;

/// The size of a huge page of hugetlb memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
#[non_exhaustive]
pub enum HugeSize {
    /// 2 MiB.
    M2,
    /// 16 MiB (POWER).
    M16,
    /// 1 GiB.
    G1,
}

impl HugeSize {
    /// The page shift.
    #[must_use]
    pub const fn shift(self) -> PageShift {
        match self {
            Self::M2 => PageShift::M2,
            Self::M16 => PageShift::M16,
            Self::G1 => PageShift::G1,
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.shift().bytes()
    }
}

/// Kinds of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum MemoryKind {
    /// Private anonymous pages.
    Anonymous,
    /// Private anonymous memory with advice for transparent huge pages, aligned to 2 MiB.
    Transparent,
    /// A memfd of system pages.
    Memfd,
    /// A memfd of huge pages.
    Hugetlb(HugeSize),
    /// A range that the caller mapped.
    CallerOwned,
}

/// Memory could not be made or accessed.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The size is zero or not a multiple of the page size.
    #[error("{bytes} bytes cannot be made of whole {page} pages; round the size up")]
    Size {
        /// The size requested.
        bytes: u64,
        /// The page.
        page: PageShift,
    },
    /// The name of a memfd holds a NUL byte or is longer than 249 bytes.
    #[error("the name {name:?} is not one for a memfd (no NUL byte, at most 249 bytes)")]
    Name {
        /// The name.
        name: String,
    },
    /// The huge-page pool has too few free pages.
    #[error(
        "no {bytes} bytes of {page} pages in the huge-page pool ({errno}); reserve them: \
         /sys/kernel/mm/hugepages/hugepages-*kB/nr_hugepages"
    )]
    NoHugePages {
        /// The size requested.
        bytes: u64,
        /// The huge page.
        page: PageShift,
        /// The system's errno.
        errno: Errno,
    },
    /// A system call failed.
    #[error("{during} failed with {errno} for {bytes} bytes")]
    Os {
        /// The call.
        during: &'static str,
        /// The system's errno.
        errno: Errno,
        /// The size requested.
        bytes: u64,
    },
    /// A number is not naturally aligned.
    #[error("{len} bytes at offset {offset:#x} are no aligned number; load or store at a multiple of {len}")]
    Misaligned {
        /// Its offset.
        offset: u64,
        /// Its length.
        len: u64,
    },
    /// The access reaches outside of the memory.
    #[error("{len} bytes at offset {offset:#x} reach outside the {bytes:#x} bytes of the memory")]
    OutOfBounds {
        /// Its offset.
        offset: u64,
        /// Its length.
        len: u64,
        /// The length of the memory.
        bytes: u64,
    },
}

prereg::debug_as_display!(MemoryError);

impl MemoryError {
    /// EINVAL for bad sizes, names and offsets, ENOMEM without huge pages, else the system's errno.
    #[must_use]
    pub const fn errno(&self) -> Errno {
        match self {
            Self::Size { .. } | Self::Name { .. } | Self::Misaligned { .. } | Self::OutOfBounds { .. } => {
                Errno::EINVAL
            }
            Self::NoHugePages { .. } => Errno::ENOMEM,
            Self::Os { errno, .. } => *errno,
        }
    }
}

/// Memory of a guest, a server or a test. Clones share it.
///
/// ```
/// use prereg_linux::GuestMemory;
/// let ram = GuestMemory::memfd("guest", 1 << 20)?;
/// ram.write(0x1000, b"hello")?;
/// let mut back = [0; 5];
/// ram.read(0x1000, &mut back)?;
/// assert_eq!(&back, b"hello");
/// assert!(ram.write((1 << 20) - 2, b"hello").is_err());
/// # Ok::<(), prereg_linux::MemoryError>(())
/// ```
#[derive(Clone)]
pub struct GuestMemory {
    backing: Backing,
    kind: MemoryKind,
}

#[derive(Clone)]
enum Backing {
    Mapping(Arc<Mapping>),
    CallerOwned { ua: u64, bytes: u64, owner: Option<Arc<dyn Any + Send + Sync>> },
}

impl GuestMemory {
    /// Private anonymous memory of system pages. Children of `fork` do not inherit it; otherwise `fork` would copy
    /// every pinned page.
    ///
    /// # Errors
    /// [`MemoryError::Size`], [`MemoryError::Os`].
    pub fn anonymous(bytes: u64) -> Result<Self, MemoryError> {
        Self::private(bytes, system_page(), MemoryKind::Anonymous)
    }

    /// Anonymous memory, aligned to 2 MiB, that asks for transparent huge pages. The kernel decides whether it gets
    /// them (`/sys/kernel/mm/transparent_hugepage/enabled`); otherwise it consists of system pages.
    ///
    /// # Errors
    /// [`MemoryError::Size`] (whole system pages), [`MemoryError::Os`].
    pub fn anonymous_thp(bytes: u64) -> Result<Self, MemoryError> {
        let memory = Self::private(bytes, PageShift::M2, MemoryKind::Transparent)?;
        // A kernel without transparent huge pages refuses the advice; the memory is usable all the same.
        let _ = sys::madvise_hugepage(memory.ua().raw(), memory.bytes());
        Ok(memory)
    }

    fn private(bytes: u64, align: PageShift, kind: MemoryKind) -> Result<Self, MemoryError> {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        let request = map_request(bytes, system_page(), align, flags, None)?;
        let mapping =
            Mapping::new(request).map_err(|errno| MemoryError::Os { during: "mmap", errno, bytes })?;
        sys::madvise_dontfork(mapping.ua(), mapping.bytes()).map_err(|errno| MemoryError::Os {
            during: "madvise(MADV_DONTFORK)",
            errno,
            bytes,
        })?;
        Ok(Self { backing: Backing::Mapping(Arc::new(mapping)), kind })
    }

    /// A memfd of system pages, mapped shared and sealed against shrinking, so that no page of it can lie past its end.
    /// (A process with the descriptor can still punch a hole into it: see [`audit_range`](crate::audit_range).)
    ///
    /// # Errors
    /// [`MemoryError::Size`], [`MemoryError::Name`], [`MemoryError::Os`].
    pub fn memfd(name: &str, bytes: u64) -> Result<Self, MemoryError> {
        Self::shared(name, bytes, system_page(), MemfdFlags::empty(), MemoryKind::Memfd)
    }

    /// A memfd of huge pages, which must be in the pool.
    ///
    /// # Errors
    /// [`MemoryError::Size`] (whole huge pages), [`MemoryError::Name`], [`MemoryError::NoHugePages`],
    /// [`MemoryError::Os`].
    pub fn memfd_hugetlb(name: &str, bytes: u64, size: HugeSize) -> Result<Self, MemoryError> {
        let page = match size {
            HugeSize::M2 => MemfdFlags::HUGE_2MB,
            HugeSize::M16 => MemfdFlags::HUGE_16MB,
            HugeSize::G1 => MemfdFlags::HUGE_1GB,
        };
        let flags = MemfdFlags::HUGETLB | page;
        Self::shared(name, bytes, size.shift(), flags, MemoryKind::Hugetlb(size)).map_err(|error| match error
        {
            MemoryError::Os { errno, .. } => MemoryError::NoHugePages { bytes, page: size.shift(), errno },
            other => other,
        })
    }

    fn shared(
        name: &str,
        bytes: u64,
        page: PageShift,
        flags: MemfdFlags,
        kind: MemoryKind,
    ) -> Result<Self, MemoryError> {
        const LONGEST_NAME: usize = 249;
        // Refuses bad sizes before anything is made.
        map_request(bytes, page, page, 0, None)?;
        let bad_name = || MemoryError::Name { name: name.to_owned() };
        if name.len() > LONGEST_NAME {
            return Err(bad_name());
        }
        let name = CString::new(name).map_err(|_| bad_name())?;
        let os = |during| move |errno| MemoryError::Os { during, errno, bytes };
        let file = std::fs::File::from(sys::memfd(&name, flags).map_err(os("memfd_create"))?);
        file.set_len(bytes).map_err(|error| os("ftruncate")(sys::errno_of(&error)))?;
        sys::seal_against_shrinking(file.as_fd()).map_err(os("fcntl(F_ADD_SEALS)"))?;
        let request = map_request(bytes, page, page, libc::MAP_SHARED, Some(file.into()))?;
        let mapping = Mapping::new(request).map_err(os("mmap"))?;
        Ok(Self { backing: Backing::Mapping(Arc::new(mapping)), kind })
    }

    /// The length in bytes.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        match &self.backing {
            Backing::Mapping(mapping) => mapping.bytes(),
            Backing::CallerOwned { bytes, .. } => *bytes,
        }
    }

    /// The address of the first byte.
    #[must_use]
    pub fn ua(&self) -> UserAddr {
        UserAddr::new(match &self.backing {
            Backing::Mapping(mapping) => mapping.ua(),
            Backing::CallerOwned { ua, .. } => *ua,
        })
    }

    /// The kind of memory.
    #[must_use]
    pub const fn kind(&self) -> MemoryKind {
        self.kind
    }

    /// The descriptor behind a memfd, to share the memory with another process.
    #[must_use]
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.backing {
            Backing::Mapping(mapping) => mapping.file().map(AsFd::as_fd),
            Backing::CallerOwned { .. } => None,
        }
    }

    /// The first byte. Valid while this value, a clone of it or a region made from it exists. Devices and other
    /// processes may write the memory at any time, so make no reference from it.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        match &self.backing {
            Backing::Mapping(mapping) => mapping.as_ptr(),
            // The address was exposed by `caller_owned`.
            Backing::CallerOwned { ua, .. } => {
                std::ptr::with_exposed_provenance_mut(usize::try_from(*ua).unwrap_or(0))
            }
        }
    }

    /// The pointer to `len` bytes at `offset`, if they lie inside.
    fn pointer_to(&self, offset: u64, len: usize) -> Result<*mut u8, MemoryError> {
        let bytes = self.bytes();
        let error = MemoryError::OutOfBounds { offset, len: len as u64, bytes };
        if offset > bytes || len as u64 > bytes - offset {
            return Err(error);
        }
        let offset = usize::try_from(offset).map_err(|_| error)?;
        Ok(self.as_ptr().wrapping_add(offset))
    }

    /// The pointer to a number at `offset`, if it lies inside and is aligned.
    fn number_at<N>(&self, offset: u64) -> Result<*mut N, MemoryError> {
        let at = self.pointer_to(offset, size_of::<N>())?.cast::<N>();
        let error = MemoryError::Misaligned { offset, len: size_of::<N>() as u64 };
        if at.addr() % size_of::<N>() == 0 { Ok(at) } else { Err(error) }
    }
}

mod access {
    //! Copies in and out: the only code that accesses guest memory.
    #![expect(
        unsafe_code,
        reason = "bounds were checked by `pointer_to`; the mapping lives as long as the memory"
    )]

    use super::{Arc, Backing, GuestMemory, Mapping, MemoryError, MemoryKind};
    use crate::atomic_access;
    use std::any::Any;

    impl GuestMemory {
        /// Copies bytes from `offset` on to `into`. Devices, other threads and other processes may write them at the
        /// same time: each aligned 8 bytes are then either old or new, the whole may be a mixture. The copy orders
        /// nothing.
        ///
        /// # Errors
        /// [`MemoryError::OutOfBounds`]; then nothing is copied.
        pub fn read(&self, offset: u64, into: &mut [u8]) -> Result<(), MemoryError> {
            let from = self.pointer_to(offset, into.len())?;
            // SAFETY: the whole length lies inside memory that stays mapped while `self` lives.
            unsafe { atomic_access::copy_out(from, into) };
            Ok(())
        }

        /// Copies `from` to `offset`, with the guarantees of [`read`](Self::read).
        ///
        /// # Errors
        /// [`MemoryError::OutOfBounds`]; then nothing is copied.
        pub fn write(&self, offset: u64, from: &[u8]) -> Result<(), MemoryError> {
            let to = self.pointer_to(offset, from.len())?;
            // SAFETY: the whole length lies inside memory that stays mapped writable while `self` lives.
            unsafe { atomic_access::copy_in(to, from) };
            Ok(())
        }

        /// Loads an aligned little-endian number atomically, with acquire ordering.
        ///
        /// # Errors
        /// [`MemoryError::OutOfBounds`], [`MemoryError::Misaligned`].
        pub fn load_u32(&self, offset: u64) -> Result<u32, MemoryError> {
            let at = self.number_at(offset)?;
            // SAFETY: aligned, and inside memory that stays mapped while `self` lives.
            Ok(u32::from_le(unsafe { atomic_access::load_u32(at) }))
        }

        /// Stores an aligned little-endian number atomically, with release ordering.
        ///
        /// # Errors
        /// As [`load_u32`](Self::load_u32).
        pub fn store_u32(&self, offset: u64, value: u32) -> Result<(), MemoryError> {
            let at = self.number_at(offset)?;
            // SAFETY: as in `load_u32`, and writable.
            unsafe { atomic_access::store_u32(at, value.to_le()) };
            Ok(())
        }

        /// Loads an aligned little-endian number atomically, with acquire ordering.
        ///
        /// # Errors
        /// As [`load_u32`](Self::load_u32).
        pub fn load_u64(&self, offset: u64) -> Result<u64, MemoryError> {
            let at = self.number_at(offset)?;
            // SAFETY: as in `load_u32`.
            Ok(u64::from_le(unsafe { atomic_access::load_u64(at) }))
        }

        /// Stores an aligned little-endian number atomically, with release ordering.
        ///
        /// # Errors
        /// As [`load_u32`](Self::load_u32).
        pub fn store_u64(&self, offset: u64, value: u64) -> Result<(), MemoryError> {
            let at = self.number_at(offset)?;
            // SAFETY: as in `store_u32`.
            unsafe { atomic_access::store_u64(at, value.to_le()) };
            Ok(())
        }

        /// Uses `bytes` bytes at `start`, which the caller mapped and keeps mapped.
        ///
        /// # Safety
        /// While this value, a clone of it or a region registered from it exists:
        /// 1. `[start, start + bytes)` stays mapped, readable and writable.
        /// 2. It stays the same memory: no `munmap`, `mmap` over it, `mremap`, `MADV_DONTNEED`, `MADV_REMOVE`, hole
        ///    punched into its file, or truncation of its file.
        /// 3. There is no Rust reference into it, and no Rust value lives in it, be it on a stack or a heap.
        /// 4. Its contents may change at any time, so it is accessed only by atomic accesses of single bytes, by
        ///    assembly, by system calls or by other processes: no volatile access, and no atomic of another size, while
        ///    a copy by [`read`](Self::read) or [`write`](Self::write) may run.
        ///
        /// A breach of 2 is not undefined behaviour, but the device keeps using the old pages;
        /// [`audit_range`](crate::audit_range) detects that.
        #[must_use]
        pub unsafe fn from_raw(start: *mut u8, bytes: usize) -> Self {
            Self::caller_owned(start, bytes, None)
        }

        /// Like [`from_raw`](Self::from_raw), with an owner that keeps the memory mapped. It is dropped after the last
        /// page is unpinned and the last clone is dropped.
        ///
        /// # Safety
        /// That of [`from_raw`](Self::from_raw), while `owner` exists.
        #[must_use]
        pub unsafe fn from_raw_with_owner(
            start: *mut u8,
            bytes: usize,
            owner: Arc<dyn Any + Send + Sync>,
        ) -> Self {
            Self::caller_owned(start, bytes, Some(owner))
        }

        fn caller_owned(start: *mut u8, bytes: usize, owner: Option<Arc<dyn Any + Send + Sync>>) -> Self {
            let backing =
                Backing::CallerOwned { ua: start.expose_provenance() as u64, bytes: bytes as u64, owner };
            Self { backing, kind: MemoryKind::CallerOwned }
        }
    }

    // SAFETY: a mapping made here stays until its last `Arc` is dropped, and `keep` returns one; nothing here unmaps,
    // drops or replaces pages earlier. For other memory the caller of `from_raw` promised that.
    unsafe impl prereg::Memory for GuestMemory {
        fn ua(&self) -> prereg::UserAddr {
            self.ua()
        }
        fn bytes(&self) -> u64 {
            self.bytes()
        }
        fn keep(&self) -> Option<Arc<dyn Any + Send + Sync>> {
            match &self.backing {
                Backing::Mapping(mapping) => Some(Arc::<Mapping>::clone(mapping)),
                Backing::CallerOwned { owner, .. } => owner.clone(),
            }
        }
    }
}

impl fmt::Debug for GuestMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GuestMemory")
            .field("ua", &self.ua())
            .field("bytes", &self.bytes())
            .field("kind", &self.kind)
            .finish()
    }
}

fn system_page() -> PageShift {
    PageShift::new(sys::page_size().trailing_zeros()).unwrap_or(PageShift::K4)
}

fn map_request(
    bytes: u64,
    page: PageShift,
    align: PageShift,
    flags: libc::c_int,
    file: Option<std::os::fd::OwnedFd>,
) -> Result<MapRequest, MemoryError> {
    let size = usize::try_from(bytes).ok().filter(|&size| size != 0 && bytes & page.mask() == 0);
    Ok(MapRequest {
        bytes: size.ok_or(MemoryError::Size { bytes, page })?,
        align: 1 << align.get(),
        protection: libc::PROT_READ | libc::PROT_WRITE,
        flags,
        file,
    })
}

#[cfg(test)]
mod tests;
