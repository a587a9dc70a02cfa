//! The file of a disk: opened, locked against other processes, and its properties.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use prereg::Errno;

use super::options::{Direct, DiskOptions};
use crate::disk::DiskError;
use crate::disk::system::{self, Alignment};

/// Block sizes: 512 to 4096 bytes.
const BLOCK_SHIFTS: std::ops::RangeInclusive<u8> = 9..=12;

/// An open file.
#[derive(Debug)]
pub(super) struct Storage {
    pub(super) file: Arc<File>,
    pub(super) path: PathBuf,
    pub(super) block_shift: u8,
    pub(super) read_only: bool,
    /// The alignment that direct I/O requires; `None`: the page cache is used.
    pub(super) direct: Option<Alignment>,
    /// The reason why direct I/O is not used.
    pub(super) cached_because: Option<&'static str>,
    /// Discarded ranges read zero.
    pub(super) punches: bool,
}

impl Storage {
    pub(super) fn open(path: &Path, options: &DiskOptions) -> Result<Self, DiskError> {
        let failed = |during| move |error: std::io::Error| file_error(path, during, system::errno_of(&error));
        let kind = std::fs::metadata(path).map_err(failed("stat"))?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            return Err(DiskError::Kind { path: path.to_owned() });
        }
        let asked = options.block_shift;
        if let Some(shift) = asked.filter(|shift| !BLOCK_SHIFTS.contains(shift)) {
            let why = "a block has 512 to 4096 bytes";
            return Err(DiskError::Block { path: path.to_owned(), asked: block_of(shift), why });
        }
        let (file, mut direct, mut cached_because) = open_file(path, options)?;
        let state = file.metadata().map_err(failed("stat"))?;
        let device = state.file_type().is_block_device();
        let block_shift = asked.unwrap_or(match direct {
            Some(demand) if device => demand.offset.trailing_zeros().clamp(9, 12) as u8,
            // Not the file system's preferred size: an image must look the same wherever it is.
            _ => 9,
        });
        let block = block_of(block_shift);
        let mut file = file;
        if direct.is_some_and(|demand| demand.offset > block) {
            let why = "direct I/O requires larger blocks on this file system";
            if options.direct == Direct::On {
                return Err(DiskError::Block { path: path.to_owned(), asked: block, why });
            }
            file = open_plain(path, options).map_err(failed("open"))?;
            (direct, cached_because) = (None, Some(why));
        }
        let locked =
            system::lock(&file, options.read_only).map_err(|errno| file_error(path, "flock", errno))?;
        if !locked {
            return Err(DiskError::InUse { path: path.to_owned() });
        }
        let storage = Self {
            punches: !options.read_only && can_punch(&file, &state),
            file: Arc::new(file),
            path: path.to_owned(),
            block_shift,
            read_only: options.read_only,
            direct,
            cached_because,
        };
        let bytes = storage.size()?;
        if bytes < block {
            return Err(DiskError::TooSmall { path: path.to_owned(), bytes });
        }
        Ok(storage)
    }

    pub(super) const fn block(&self) -> u64 {
        block_of(self.block_shift)
    }

    /// The current size of the file.
    fn size(&self) -> Result<u64, DiskError> {
        let failed =
            |during| move |error: std::io::Error| file_error(&self.path, during, system::errno_of(&error));
        let state = self.file.metadata().map_err(failed("stat"))?;
        if state.file_type().is_block_device() {
            // The metadata of a block device have no size. Nothing else uses the file position.
            (&*self.file).seek(SeekFrom::End(0)).map_err(failed("lseek"))
        } else {
            Ok(state.len())
        }
    }

    /// The current size in bytes, rounded down to whole blocks.
    pub(super) fn whole_blocks(&self) -> Result<u64, DiskError> {
        Ok(self.size()? & !(self.block() - 1))
    }
}

const fn block_of(shift: u8) -> u64 {
    1 << shift
}

fn file_error(path: &Path, during: &'static str, errno: Errno) -> DiskError {
    DiskError::File { path: path.to_owned(), during, errno }
}

fn open_plain(path: &Path, options: &DiskOptions) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(!options.read_only).open(path)
}

/// The file, the alignment for direct I/O, and why it is not used.
fn open_file(
    path: &Path,
    options: &DiskOptions,
) -> Result<(File, Option<Alignment>, Option<&'static str>), DiskError> {
    let failed = |error: std::io::Error| file_error(path, "open", system::errno_of(&error));
    let cached = |why| Ok((open_plain(path, options).map_err(failed)?, None, Some(why)));
    if options.direct == Direct::Off {
        return cached("the options say so");
    }
    let refused = |errno| match options.direct {
        Direct::On => Err(DiskError::NotDirect { path: path.to_owned(), errno }),
        _ => cached("the file system has no direct I/O"),
    };
    let opened =
        OpenOptions::new().read(true).write(!options.read_only).custom_flags(libc::O_DIRECT).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return refused(Errno::EINVAL),
        Err(error) => return Err(failed(error)),
    };
    match system::stated_alignment(&file) {
        Some(Some(demand)) => Ok((file, Some(demand), None)),
        Some(None) => refused(Errno::EOPNOTSUPP),
        None => match tried_alignment(&file).map_err(|errno| file_error(path, "pread", errno))? {
            Some(demand) => Ok((file, Some(demand), None)),
            None => refused(Errno::EINVAL),
        },
    }
}

/// Finds the alignment by reading, if the file system does not report it.
fn tried_alignment(file: &File) -> Result<Option<Alignment>, Errno> {
    for offset in [512u16, 4096] {
        if system::can_read_by(file, offset.into())? {
            let offset = u64::from(offset);
            return Ok(Some(Alignment { memory: offset, offset }));
        }
    }
    Ok(None)
}

/// Whether holes can be punched: tried beyond the end of a file, where it changes nothing; from sysfs for a block device.
fn can_punch(file: &File, state: &Metadata) -> bool {
    const FAR: u64 = 1 << 20;
    if state.file_type().is_block_device() {
        let number = state.rdev();
        let (major, minor) = (libc::major(number), libc::minor(number));
        return ["queue", "../queue"].iter().any(|queue| {
            let limit = format!("/sys/dev/block/{major}:{minor}/{queue}/write_zeroes_max_bytes");
            std::fs::read_to_string(limit).is_ok_and(|text| text.trim() != "0")
        });
    }
    let Some(behind) = state.len().checked_next_multiple_of(FAR) else { return false };
    system::punch(file, behind, FAR).is_ok()
}
