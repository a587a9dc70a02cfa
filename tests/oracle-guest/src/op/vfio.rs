//! Containers, groups and devices: the ioctls of VFIO with the structs of `linux/vfio.h`.
//!
//! Sizes and flags of the structs are those of the scenario, or else the correct ones.

use prereg_scenario::names::{Kind, Malformed};
use prereg_scenario::script::Line;
use prereg_scenario::transcript::{Answer, Errno};

use crate::process::{Process, word};
use crate::sys;

/// VFIO's request numbers: type `;`, counted from 100, without direction, which powerpc encodes as 1 in the top three bits.
const fn request(number: u64) -> u64 {
    (1 << 29) | ((b';' as u64) << 8) | (100 + number)
}

const CHECK_EXTENSION: u64 = request(1);
const SET_IOMMU: u64 = request(2);
const GROUP_STATUS: u64 = request(3);
const GROUP_SET_CONTAINER: u64 = request(4);
const GROUP_UNSET_CONTAINER: u64 = request(5);
const GROUP_DEVICE: u64 = request(6);
const TCE_INFO: u64 = request(12);
const MAP_DMA: u64 = request(13);
const UNMAP_DMA: u64 = request(14);
const ENABLE: u64 = request(15);
const DISABLE: u64 = request(16);
const REGISTER_MEMORY: u64 = request(17);
const UNREGISTER_MEMORY: u64 = request(18);
const TCE_CREATE: u64 = request(19);
const TCE_REMOVE: u64 = request(20);

/// The IOMMU type of the v2 container.
const SPAPR_TCE_V2: u64 = 7;

const MAP_READ: u32 = 1;
const MAP_WRITE: u32 = 2;

const CONTAINER: &str = "/dev/vfio/vfio";

pub(crate) fn perform(process: &mut Process<'_>, line: &Line) -> Option<Result<Answer, Malformed>> {
    Some(match line.op() {
        "container" => word(line, 1).map(|name| named(process, name, sys::open(CONTAINER))),
        "group" => group(process, line),
        "device" => device(process, line),
        "v2" => v2(process, line),
        "dup" => duplicate(process, line),
        "close" => process.file(line, 1).map(|fd| sys::close(fd).into()),
        "gstatus" => group_status(process, line),
        "attach" => attach(process, line),
        "detach" => process.file(line, 1).map(|fd| sys::ioctl(fd, GROUP_UNSET_CONTAINER, 0).into()),
        "set_iommu" => with_number(process, line, SET_IOMMU),
        "check_ext" => check_extension(process, line),
        "enable" => process.file(line, 1).map(|fd| sys::ioctl(fd, ENABLE, 0).into()),
        "disable" => process.file(line, 1).map(|fd| sys::ioctl(fd, DISABLE, 0).into()),
        "info" => info(process, line),
        "register" => registration(process, line, REGISTER_MEMORY),
        "unregister" => registration(process, line, UNREGISTER_MEMORY),
        "create" => create(process, line),
        "remove" => remove(process, line),
        "map" => map(process, line),
        "unmap" => unmap(process, line),
        "raw" => raw(process, line),
        _ => return None,
    })
}

/// Names an opened file; the answer does not show the descriptor.
fn named(process: &mut Process<'_>, name: &str, opened: Result<i32, Errno>) -> Answer {
    if let Ok(fd) = opened {
        process.names.set(name, Kind::File, descriptor(fd));
    }
    opened.map(|_| 0).into()
}

/// A descriptor as the value of a variable.
fn descriptor(fd: i32) -> u64 {
    u64::from(fd.unsigned_abs())
}

fn open_group(process: &Process<'_>, number: u64) -> Result<i32, Errno> {
    let device = usize::try_from(number).ok().and_then(|place| process.host.devices.get(place));
    device.map_or(Err(Errno(libc::ENOENT)), |device| sys::open(&device.group))
}

fn group(process: &mut Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (name, number) = (word(line, 1)?, process.sum(line, 2)?);
    let opened = open_group(process, number);
    Ok(named(process, name, opened))
}

fn device(process: &mut Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (name, group, number) = (word(line, 1)?, process.file(line, 2)?, process.sum(line, 3)?);
    let device = usize::try_from(number).ok().and_then(|place| process.host.devices.get(place));
    let opened =
        device.map_or(Err(Errno(libc::ENODEV)), |device| sys::ioctl_text(group, GROUP_DEVICE, &device.name));
    let opened = opened.and_then(|fd| i32::try_from(fd).map_err(|_| Errno(libc::EOVERFLOW)));
    Ok(named(process, name, opened))
}

/// `v2 C N`: a container C with group N, attached, of the v2 kind; the group is named gN. Files opened before a failing step
/// keep their names.
fn v2(process: &mut Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (name, number) = (word(line, 1)?, process.sum(line, 2)?);
    let container = sys::open(CONTAINER);
    let Ok(fd) = container else { return Ok(container.map(|_| 0).into()) };
    process.names.set(name, Kind::File, descriptor(fd));
    let group = open_group(process, number);
    let Ok(group_fd) = group else { return Ok(group.map(|_| 0).into()) };
    process.names.set(&format!("g{number}"), Kind::File, descriptor(group_fd));
    let mut argument = fd;
    let done = sys::ioctl_on(group_fd, GROUP_SET_CONTAINER, &mut argument)
        .and_then(|_| sys::ioctl(fd, SET_IOMMU, SPAPR_TCE_V2));
    Ok(done.map(|_| 0).into())
}

fn duplicate(process: &mut Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (fd, name) = (process.file(line, 1)?, word(line, 2)?);
    let copy = sys::duplicate(fd);
    Ok(named(process, name, copy))
}

fn attach(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (mut container, group) = (process.file(line, 1)?, process.file(line, 2)?);
    Ok(sys::ioctl_on(group, GROUP_SET_CONTAINER, &mut container).into())
}

fn with_number(process: &Process<'_>, line: &Line, request: u64) -> Result<Answer, Malformed> {
    Ok(sys::ioctl(process.file(line, 1)?, request, process.sum(line, 2)?).into())
}

fn check_extension(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let answer = with_number(process, line, CHECK_EXTENSION)?;
    // A positive result means "supported".
    let code = answer.code.0;
    Ok(Answer::from(code.min(0)).with(format!("ret={code}")))
}

fn group_status(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let mut status = sys::GroupStatus { argsz: sys::size_of_u32::<sys::GroupStatus>(), flags: 0 };
    let asked = sys::ioctl_on(process.file(line, 1)?, GROUP_STATUS, &mut status);
    Ok(Answer::from(asked).with(format!("flags=0x{:x}", status.flags)))
}

/// `argsz` and `flags` of a struct: the line's options, or the size of the struct and `flags`.
fn head<T>(process: &Process<'_>, line: &Line, flags: u32) -> Result<(u32, u32), Malformed> {
    let argsz = process.option(line, "argsz")?.map_or(sys::size_of_u32::<T>(), truncated);
    let flags = process.option(line, "flags")?.map_or(flags, truncated);
    Ok((argsz, flags))
}

/// The low 32 bits, as in a C assignment.
fn truncated(number: u64) -> u32 {
    (number & u64::from(u32::MAX)) as u32
}

fn info(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (argsz, flags) = head::<sys::TceInfo>(process, line, 0)?;
    let mut info = sys::TceInfo { argsz, flags, ..sys::TceInfo::default() };
    let answer = Answer::from(sys::ioctl_on(process.file(line, 1)?, TCE_INFO, &mut info));
    if !answer.is_done() {
        return Ok(answer);
    }
    Ok(answer
        .with(format!("argsz={}", info.argsz))
        .with(format!("flags=0x{:x}", info.flags))
        .with(format!("dma32=0x{:x}+0x{:x}", info.dma32_window_start, info.dma32_window_size))
        .with(format!("ddw.pgsizes=0x{:x}", info.page_sizes))
        .with(format!("ddw.max_windows={}", info.most_windows))
        .with(format!("ddw.levels={}", info.levels)))
}

fn registration(process: &Process<'_>, line: &Line, request: u64) -> Result<Answer, Malformed> {
    let (argsz, flags) = head::<sys::RegisterMemory>(process, line, 0)?;
    let (vaddr, size) = (process.sum(line, 2)?, process.sum(line, 3)?);
    let mut asked = sys::RegisterMemory { argsz, flags, vaddr, size };
    Ok(sys::ioctl_on(process.file(line, 1)?, request, &mut asked).into())
}

fn create(process: &mut Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (argsz, flags) = head::<sys::TceCreate>(process, line, 0)?;
    let mut asked = sys::TceCreate {
        argsz,
        flags,
        page_shift: truncated(process.sum(line, 2)?),
        window_size: process.sum(line, 3)?,
        levels: truncated(process.sum(line, 4)?),
        ..sys::TceCreate::default()
    };
    let answer = Answer::from(sys::ioctl_on(process.file(line, 1)?, TCE_CREATE, &mut asked));
    if !answer.is_done() {
        return Ok(answer);
    }
    if let Some(name) = line.target.as_deref() {
        process.names.set(name, Kind::Number, asked.start_addr);
    }
    Ok(answer.with(format!("start=0x{:x}", asked.start_addr)))
}

fn remove(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (argsz, flags) = head::<sys::TceRemove>(process, line, 0)?;
    let mut asked = sys::TceRemove { argsz, flags, start_addr: process.sum(line, 2)? };
    Ok(sys::ioctl_on(process.file(line, 1)?, TCE_REMOVE, &mut asked).into())
}

fn map(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let way = word(line, 5)?;
    let read = if way.contains('r') { MAP_READ } else { 0 };
    let write = if way.contains('w') { MAP_WRITE } else { 0 };
    let (argsz, flags) = head::<sys::DmaMap>(process, line, read | write)?;
    let (vaddr, iova, size) = (process.sum(line, 2)?, process.sum(line, 3)?, process.sum(line, 4)?);
    let mut asked = sys::DmaMap { argsz, flags, vaddr, iova, size };
    Ok(sys::ioctl_on(process.file(line, 1)?, MAP_DMA, &mut asked).into())
}

fn unmap(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (argsz, flags) = head::<sys::DmaUnmap>(process, line, 0)?;
    let (iova, size) = (process.sum(line, 2)?, process.sum(line, 3)?);
    let mut asked = sys::DmaUnmap { argsz, flags, iova, size };
    let answer = Answer::from(sys::ioctl_on(process.file(line, 1)?, UNMAP_DMA, &mut asked));
    Ok(if asked.size == size { answer } else { answer.with(format!("size_out=0x{:x}", asked.size)) })
}

/// `raw FILE REQUEST ARGUMENT`: any ioctl, with a pointer that may be invalid.
fn raw(process: &Process<'_>, line: &Line) -> Result<Answer, Malformed> {
    let (fd, request, argument) = (process.file(line, 1)?, process.sum(line, 2)?, process.sum(line, 3)?);
    Ok(sys::ioctl(fd, request, argument).into())
}
