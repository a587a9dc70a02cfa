//! Operations on containers, groups and devices: files, and ioctls on their bytes.

use std::rc::Rc;
use std::sync::Arc;

use prereg::{Errno, MapError};
use prereg_iommu::EntryError;
use prereg_iommu::container::{Argument, Command, ContainerError, SoftwareGroup};
use prereg_scenario::names::Kind;
use prereg_scenario::transcript::Answer;

use super::machine::{DeviceFile, OpenFile};
use super::operation::Operation;
use super::process::Process;
use super::regions::{cause_of, cause_of_range};
use super::transcript::{answer, failed, failed_for};

/// The bit of request numbers without direction on powerpc.
const POWER: u32 = 1 << 29;
/// The errno of `attach` for a descriptor that is no container.
const EBADFD: Errno = Errno::from_raw(77);

/// Performs `op` if it belongs to this family.
pub(super) fn perform(op: &mut Operation<'_>) -> Option<Answer> {
    Some(match op.name() {
        "container" if op.needs(2) => {
            let file = op.process.shared.open_container();
            let name = op.word(1);
            op.process.open_as(name, file);
            Answer::done()
        }
        "group" if op.needs(3) => {
            let number = op.number(2);
            let name = op.word(1);
            match open_group(op.process, number) {
                Ok(file) => {
                    op.process.open_as(name, file);
                    Answer::done()
                }
                Err(errno) => failed(errno),
            }
        }
        "device" if op.needs(4) => device(op),
        "v2" if op.needs(3) => version_2(op),
        "gstatus" if op.needs(2) => group_status(op),
        "dup" if op.needs(3) => {
            let name = op.word(2);
            match op.file(1) {
                Some(file) => {
                    op.process.open_as(name, file);
                    Answer::done()
                }
                None => failed(Errno::EBADF),
            }
        }
        "close" if op.needs(2) => {
            let descriptor = op.descriptor(1);
            answer(if op.process.close(descriptor) { Ok(()) } else { Err(Errno::EBADF) })
        }
        "attach" if op.needs(3) => {
            let (container, group) = (op.file(1), op.file(2));
            group.map_or_else(|| failed(Errno::EBADF), |group| attach(container, &group))
        }
        "detach" if op.needs(2) => on_group(op, |group| {
            if group.users.get() > 0 {
                Err(Errno::EBUSY)
            } else if group.leave() {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            }
        }),
        "set_iommu" if op.needs(3) => {
            let kind = op.number(2);
            request(op, Command::SetIommu, Argument::Value(kind))
        }
        "check_ext" if op.needs(3) => check_extension(op),
        "info" if op.needs(2) => info(op),
        "enable" if op.needs(2) => request(op, Command::Enable, Argument::Value(0)),
        "disable" if op.needs(2) => request(op, Command::Disable, Argument::Value(0)),
        "register" if op.needs(4) => memory(op, Command::SpaprRegisterMemory),
        "unregister" if op.needs(4) => memory(op, Command::SpaprUnregisterMemory),
        "create" if op.needs(5) => create(op),
        "remove" if op.needs(3) => {
            let start = op.number(2);
            let mut bytes = Struct::new(op, 16).u64(start).0;
            request(op, Command::SpaprTceRemove, Argument::Bytes(&mut bytes))
        }
        "map" if op.needs(6) => map(op),
        "unmap" if op.needs(4) => {
            let (ioba, size) = (op.number(2), op.number(3));
            let mut bytes = Struct::new(op, 24).u64(ioba).u64(size).0;
            request(op, Command::UnmapDma, Argument::Bytes(&mut bytes))
        }
        "raw" if op.needs(4) => raw(op),
        _ => return None,
    })
}

/// The cause of a container's error, in one word.
fn cause(error: &ContainerError) -> &'static str {
    match error {
        ContainerError::Range(error) => cause_of_range(error),
        ContainerError::Register(error) => cause_of(error),
        ContainerError::Mapped { .. } => "mapped",
        ContainerError::MisalignedBus { .. } => "misaligned-bus",
        ContainerError::PastWindow { .. } => "past-window",
        ContainerError::TableShape { .. } => "table-shape",
        ContainerError::LevelTooLarge => "table-piece",
        ContainerError::NotAWindow { inside: true, .. } => "inside-window",
        ContainerError::Map { error: EntryError::Map(MapError::TooLarge { .. }), .. } => "page-too-large",
        ContainerError::Map { error: EntryError::Map(MapError::Closing { .. }), .. } => "closing",
        _ => "",
    }
}

fn refused(error: &ContainerError) -> Answer {
    failed_for(error.errno(), cause(error))
}

// ---- files

fn open_group(process: &Process, number: u64) -> Result<Rc<OpenFile>, Errno> {
    if !process.shared.has_group(number) {
        Err(Errno::ENOENT)
    } else if process.user != 0 {
        Err(Errno::EACCES)
    } else {
        process.shared.open_group(number).ok_or(Errno::EBUSY)
    }
}

fn attach(container: Option<Rc<OpenFile>>, file: &Rc<OpenFile>) -> Answer {
    let Some(group) = file.group() else { return not_a_request(file) };
    let Some(container) = container else { return failed(Errno::EBADF) };
    if group.container.borrow().is_some() {
        return failed(Errno::EINVAL);
    }
    let Some(joined) = container.container() else { return failed(EBADFD) };
    let platform = group.platform();
    // There are only a few groups.
    let result = joined.borrow_mut().attach(Arc::new(SoftwareGroup::new(group.number as u32, platform)));
    if let Err(error) = result {
        return refused(&error);
    }
    group.container.replace(Some(container.clone()));
    Answer::done()
}

/// The answer of a file to a request that it does not have.
fn not_a_request(file: &OpenFile) -> Answer {
    match file.container() {
        Some(container) if container.borrow().version().is_none() => failed(Errno::EINVAL),
        _ => failed(Errno::ENOTTY),
    }
}

fn on_group(
    op: &mut Operation<'_>,
    act: impl FnOnce(&super::machine::GroupFile) -> Result<(), Errno>,
) -> Answer {
    let Some(file) = op.file(1) else { return failed(Errno::EBADF) };
    match file.group() {
        Some(group) => answer(act(group)),
        None => not_a_request(&file),
    }
}

fn device(op: &mut Operation<'_>) -> Answer {
    let number = op.number(3);
    let name = op.word(1);
    let Some(file) = op.file(2) else { return failed(Errno::EBADF) };
    let Some(group) = file.group() else { return not_a_request(&file) };
    // The machine has 16 device names, of which those without a device are empty.
    if number & 15 != group.number as u64 {
        return failed(Errno::ENODEV);
    }
    let usable = group
        .container
        .borrow()
        .as_deref()
        .and_then(OpenFile::container)
        .is_some_and(|container| container.borrow().version().is_some());
    if !usable {
        return failed(Errno::EINVAL);
    }
    let device = Rc::new(OpenFile::Device(DeviceFile::new(&file)));
    op.process.open_as(name, device);
    Answer::done()
}

fn group_status(op: &mut Operation<'_>) -> Answer {
    let mut flags = 1;
    let answer = on_group(op, |group| {
        flags = if group.container.borrow().is_some() { 3 } else { 1 };
        Ok(())
    });
    if answer.is_done() { answer.with(format!("flags={flags:#x}")) } else { answer.with("flags=0x0") }
}

/// `v2 C N`: a container with group N and the second version of the IOMMU.
fn version_2(op: &mut Operation<'_>) -> Answer {
    let number = op.number(2);
    let name = op.word(1);
    let container = op.process.shared.open_container();
    op.process.open_as(name, container.clone());
    let group = match open_group(op.process, number) {
        Ok(group) => group,
        Err(errno) => return failed(errno),
    };
    // Shown as a 32-bit number.
    op.process.open_as(&format!("g{}", number as i32), group.clone());
    let joined = attach(Some(container.clone()), &group);
    if !joined.is_done() {
        return joined;
    }
    perform_request(op.process, &container, Command::SetIommu.raw(), Argument::Value(7))
}

// ---- requests

fn request(op: &mut Operation<'_>, command: Command, argument: Argument<'_>) -> Answer {
    let Some(file) = op.file(1) else { return failed(Errno::EBADF) };
    perform_request(op.process, &file, command.raw(), argument)
}

fn perform_request(process: &Process, file: &OpenFile, command: u32, argument: Argument<'_>) -> Answer {
    let Some(container) = file.container() else { return not_a_request(file) };
    let result = container.borrow_mut().ioctl(&process.owner, command, argument);
    match result {
        Ok(number) => Answer::from(i64::try_from(number).unwrap_or(i64::MAX)),
        Err(error @ ContainerError::Mapped { .. }) if file.has_outlived() => {
            failed_for(error.errno(), "mapped-for-others")
        }
        Err(error) => refused(&error),
    }
}

/// The bytes of a struct that begins with `argsz` and `flags`.
struct Struct(Vec<u8>);

impl Struct {
    fn new(op: &mut Operation<'_>, least: u32) -> Self {
        Self::with_flags(op, least, 0)
    }

    /// `argsz=` and `flags=` of the operation override the correct values.
    fn with_flags(op: &mut Operation<'_>, least: u32, flags: u32) -> Self {
        let argsz = op.option("argsz").map_or(least, |argsz| argsz as u32);
        let flags = op.option("flags").map_or(flags, |flags| flags as u32);
        Self(Vec::new()).u32(argsz).u32(flags)
    }

    fn u32(mut self, word: u32) -> Self {
        self.0.extend(word.to_ne_bytes());
        self
    }

    fn u64(mut self, word: u64) -> Self {
        self.0.extend(word.to_ne_bytes());
        self
    }
}

fn word_at<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    let mut word = [0; N];
    word.copy_from_slice(&bytes[at..at + N]);
    word
}

fn memory(op: &mut Operation<'_>, command: Command) -> Answer {
    let (ua, size) = (op.number(2), op.number(3));
    let mut bytes = Struct::new(op, 24).u64(ua).u64(size).0;
    request(op, command, Argument::Bytes(&mut bytes))
}

fn map(op: &mut Operation<'_>) -> Answer {
    let (ua, ioba, size) = (op.number(2), op.number(3), op.number(4));
    let may = op.word(5);
    let flags = u32::from(may.contains('r')) | u32::from(may.contains('w')) << 1;
    let mut bytes = Struct::with_flags(op, 32, flags).u64(ua).u64(ioba).u64(size).0;
    request(op, Command::MapDma, Argument::Bytes(&mut bytes))
}

fn create(op: &mut Operation<'_>) -> Answer {
    let (shift, size, levels) = (op.number(2) as u32, op.number(3), op.number(4) as u32);
    let mut bytes = Struct::new(op, 40).u32(shift).u32(0).u64(size).u32(levels).u32(0).u64(0).0;
    let answer = request(op, Command::SpaprTceCreate, Argument::Bytes(&mut bytes));
    if !answer.is_done() {
        return answer;
    }
    let start = u64::from_ne_bytes(word_at(&bytes, 32));
    if let Some(name) = op.target {
        op.process.names.set(name, Kind::Number, start);
    }
    answer.with(format!("start={start:#x}"))
}

fn info(op: &mut Operation<'_>) -> Answer {
    // The caller's memory holds the whole struct, whatever `argsz` says.
    let mut bytes = Struct::new(op, 32).0;
    bytes.resize(32, 0);
    let answer = request(op, Command::SpaprTceGetInfo, Argument::Bytes(&mut bytes));
    if !answer.is_done() {
        return answer;
    }
    let word = |at| u32::from_ne_bytes(word_at(&bytes, at));
    let sizes = u64::from_ne_bytes(word_at(&bytes, 16));
    answer.with(format!(
        "argsz={} flags={:#x} dma32={:#x}+{:#x} ddw.pgsizes={sizes:#x} ddw.max_windows={} ddw.levels={}",
        word(0),
        word(4),
        word(8),
        word(12),
        word(24),
        word(28),
    ))
}

fn check_extension(op: &mut Operation<'_>) -> Answer {
    let kind = op.number(2);
    let answer = request(op, Command::CheckExtension, Argument::Value(kind));
    let returned = answer.code.0;
    // A positive result means "supported".
    let answer = if returned < 0 { answer } else { Answer::done() };
    answer.with(format!("ret={returned}"))
}

/// `raw FILE NUMBER ARGUMENT`: any request with any argument.
fn raw(op: &mut Operation<'_>) -> Answer {
    let (command, argument) = (op.number(2) as u32, op.number(3));
    let Some(file) = op.file(1) else { return failed(Errno::EBADF) };
    let known = if command & POWER == 0 { None } else { Command::from_raw(command) };
    if file.group().is_some() {
        return raw_on_group(op, &file, command & !POWER, argument);
    }
    let Some(known) = known else {
        return perform_request(op.process, &file, u32::MAX, Argument::Value(argument));
    };
    let length = known.argument_bytes();
    if length == 0 {
        return perform_request(op.process, &file, known.raw(), Argument::Value(argument));
    }
    // Memory of the fake host reads as zeros.
    let mut bytes = vec![0; if readable(op, argument, length as u64) { length } else { 0 }];
    perform_request(op.process, &file, known.raw(), Argument::Bytes(&mut bytes))
}

fn readable(op: &Operation<'_>, at: u64, bytes: u64) -> bool {
    let page = op.process.page();
    at.checked_add(bytes).is_some_and(|end| {
        let start = at - at % page;
        op.process.host.is_mapped(start, end - start)
    })
}

/// Requests of a group, with a pointer to zeros or to no memory.
fn raw_on_group(op: &mut Operation<'_>, file: &Rc<OpenFile>, command: u32, argument: u64) -> Answer {
    let readable = readable(op, argument, 8);
    let base = Command::GetApiVersion.raw();
    match (command.wrapping_sub(base), file.group()) {
        (3 | 4 | 6, Some(_)) if !readable => failed(Errno::EFAULT),
        (3, Some(_)) => failed(Errno::EINVAL),
        (4, Some(group)) if group.container.borrow().is_some() => failed(Errno::EINVAL),
        (4, Some(_)) => failed(EBADFD),
        (5, Some(group)) if group.users.get() > 0 => failed(Errno::EBUSY),
        (5, Some(group)) => answer(if group.leave() { Ok(()) } else { Err(Errno::EINVAL) }),
        (6, Some(_)) => failed(Errno::ENODEV),
        _ => failed(Errno::ENOTTY),
    }
}
