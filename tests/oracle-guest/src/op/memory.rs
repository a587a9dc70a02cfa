//! The memory of the calling process: mapping, protecting, locking, writing and unmapping it.

use prereg_scenario::names::{Kind, Malformed};
use prereg_scenario::script::{self, Line};
use prereg_scenario::transcript::Answer;

use crate::process::{Process, word};
use crate::sys::{self, Access, Backing, Mapping};

/// Memory takes whole multiples of this from the address space, so that new memory of a scenario does not move the following
/// ones.
const STEP: u64 = 1 << 30;

/// The bytes written to each page.
const FIRST_WRITE: u8 = 1;
const SECOND_WRITE: u8 = 2;

pub(crate) fn perform(process: &mut Process<'_>, line: &Line) -> Option<Result<Answer, Malformed>> {
    Some(match line.op() {
        "mem" => map(process, line),
        "memrep" => map_repeated(process, line),
        "munmap" => over_range(process, line, sys::unmap_memory),
        "mlock" => over_range(process, line, sys::lock_memory),
        "munlock" => over_range(process, line, sys::unlock_memory),
        "dontneed" => over_range(process, line, |at, size| sys::advise(at, size, libc::MADV_DONTNEED)),
        "nohuge" => over_range(process, line, |at, size| sys::advise(at, size, libc::MADV_NOHUGEPAGE)),
        "mprotect" => protect(process, line),
        "touch" => touch(process, line),
        _ => return None,
    })
}

fn over_range(
    process: &Process<'_>,
    line: &Line,
    ask: impl FnOnce(u64, u64) -> sys::Result,
) -> Result<Answer, Malformed> {
    Ok(ask(process.sum(line, 1)?, process.sum(line, 2)?).into())
}

fn protect(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let access = Access::parse(word(line, 3)?);
    over_range(process, line, |at, size| sys::protect(at, size, access))
}

fn touch(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (at, size) = (process.sum(line, 1)?, process.sum(line, 2)?);
    sys::write_pages(at, size, process.names.page(), SECOND_WRITE);
    Ok(Answer::done())
}

/// The next free address for `size` bytes. Addresses are never reused.
fn place(process: &mut Process<'_>, size: u64) -> u64 {
    let at = process.next_memory;
    // A gap of one step at least: adjacent mappings would merge.
    let taken = size.wrapping_add(2 * STEP - 1) & !(STEP - 1);
    process.next_memory = at.wrapping_add(taken);
    at
}

/// `mem NAME SIZE [at= huge= file= fd= off= prot=] [shared] [lazy]`
fn map(process: &mut Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (name, size) = (word(line, 1)?, process.sum(line, 2)?);
    let given = process.option(line, "at")?;
    let huge = process.option(line, "huge")?;
    let offset = process.option(line, "off")?.unwrap_or(0);
    let device = script::option(&line.words, "fd").map(|name| process.file_named(name)).transpose()?;
    let access = script::option(&line.words, "prot").map_or(Access::READ_WRITE, Access::parse);
    let at = given.unwrap_or_else(|| place(process, size));
    let path = script::option(&line.words, "file");
    let opened = path.map(|path| sys::create_sized(path, size));
    let backing = match (&opened, device) {
        // If the file cannot be made, the mapping is refused with its own errno.
        (Some(file), _) => Backing::File { fd: *file.as_ref().unwrap_or(&-1), offset },
        (None, Some(fd)) => Backing::File { fd, offset },
        (None, None) => Backing::Anonymous,
    };
    let mapping = Mapping { at, size, access, shared: script::flag(&line.words, "shared"), huge, backing };
    let mapped = sys::map_memory(&mapping);
    if mapped.is_ok() && access.writes() && !script::flag(&line.words, "lazy") && device.is_none() {
        sys::write_pages(at, size, process.names.page(), FIRST_WRITE);
    }
    if let Some(Ok(fd)) = opened {
        let _ = sys::close(fd);
    }
    process.names.set(name, Kind::Memory(size), at);
    Ok(Answer::from(mapped).with(format!("at=0x{at:x}")))
}

/// `memrep NAME TOTAL UNIT`: maps the same UNIT bytes repeatedly, so that little memory fills a large range.
fn map_repeated(process: &mut Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (name, total, unit) = (word(line, 1)?, process.sum(line, 2)?, process.sum(line, 3)?);
    if unit == 0 {
        return Err(Malformed("a unit of no bytes never fills anything".to_owned()));
    }
    let at = place(process, total);
    let done = sys::memory_file(unit).and_then(|fd| {
        let mut done = Ok(0);
        let mut offset = 0;
        while done.is_ok() && offset < total {
            let backing = Backing::File { fd, offset: 0 };
            let at = at.wrapping_add(offset);
            done = sys::map_memory(&Mapping {
                at,
                size: unit,
                access: Access::READ_WRITE,
                shared: true,
                huge: None,
                backing,
            });
            offset += unit;
        }
        let _ = sys::close(fd);
        done
    });
    if done.is_ok() {
        sys::write_pages(at, unit, process.names.page(), FIRST_WRITE);
    }
    process.names.set(name, Kind::Memory(total), at);
    Ok(Answer::from(done).with(format!("at=0x{at:x}")))
}
