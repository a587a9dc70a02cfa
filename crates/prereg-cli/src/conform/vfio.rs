//! Operations on containers, groups and devices: files, and ioctls with real bytes.

use std::rc::Rc;
use std::sync::Arc;

use prereg::{Errno, MapError};
use prereg_iommu::EntryError;
use prereg_iommu::container::{Argument, Command, ContainerError, PlainGroup};

use super::call::Call;
use super::expression::Kind;
use super::machine::{DeviceFile, OpenFile};
use super::process::Process;
use super::regions::{cause_of, cause_of_range};
use super::transcript::Answer;

/// How this machine's numbers mark requests without direction.
const POWER: u32 = 1 << 29;
/// A descriptor that is neither a container's nor anything a group could join.
const EBADFD: Errno = Errno::from_raw(77);

/// Performs `call` if it is one of this family.
pub(super) fn perform(call: &mut Call<'_>) -> Option<Answer> {
    Some(match call.op() {
        "container" if call.needs(2) => {
            let file = call.process.shared.open_container();
            let name = call.word(1).to_owned();
            call.process.open_as(&name, file);
            Answer::done()
        }
        "group" if call.needs(3) => {
            let number = call.number(2);
            let name = call.word(1).to_owned();
            match open_group(call.process, number) {
                Ok(file) => {
                    call.process.open_as(&name, file);
                    Answer::done()
                }
                Err(errno) => Answer::failed(errno),
            }
        }
        "device" if call.needs(4) => device(call),
        "v2" if call.needs(3) => version_2(call),
        "gstatus" if call.needs(2) => group_status(call),
        "dup" if call.needs(3) => {
            let name = call.word(2).to_owned();
            match call.file(1) {
                Some(file) => {
                    call.process.open_as(&name, file);
                    Answer::done()
                }
                None => Answer::failed(Errno::EBADF),
            }
        }
        "close" if call.needs(2) => {
            let descriptor = call.descriptor(1);
            Answer::of(if call.process.close(descriptor) { Ok(()) } else { Err(Errno::EBADF) })
        }
        "attach" if call.needs(3) => {
            let (container, group) = (call.file(1), call.file(2));
            group.map_or_else(|| Answer::failed(Errno::EBADF), |group| attach(container, &group))
        }
        "detach" if call.needs(2) => on_group(call, |group| {
            if group.users.get() > 0 {
                Err(Errno::EBUSY)
            } else if group.leave() {
                Ok(())
            } else {
                Err(Errno::EINVAL)
            }
        }),
        "set_iommu" if call.needs(3) => {
            let kind = call.number(2);
            request(call, Command::SetIommu, Argument::Value(kind))
        }
        "check_ext" if call.needs(3) => check_extension(call),
        "info" if call.needs(2) => info(call),
        "enable" if call.needs(2) => request(call, Command::Enable, Argument::Value(0)),
        "disable" if call.needs(2) => request(call, Command::Disable, Argument::Value(0)),
        "register" if call.needs(4) => memory(call, Command::SpaprRegisterMemory),
        "unregister" if call.needs(4) => memory(call, Command::SpaprUnregisterMemory),
        "create" if call.needs(5) => create(call),
        "remove" if call.needs(3) => {
            let start = call.number(2);
            let mut bytes = Struct::new(call, 16).u64(start).0;
            request(call, Command::SpaprTceRemove, Argument::Bytes(&mut bytes))
        }
        "map" if call.needs(6) => map(call),
        "unmap" if call.needs(4) => {
            let (ioba, size) = (call.number(2), call.number(3));
            let mut bytes = Struct::new(call, 24).u64(ioba).u64(size).0;
            request(call, Command::UnmapDma, Argument::Bytes(&mut bytes))
        }
        "raw" if call.needs(4) => raw(call),
        _ => return None,
    })
}

/// Why a container refused, in one word.
fn cause(error: &ContainerError) -> &'static str {
    match error {
        ContainerError::Range(error) => cause_of_range(error),
        ContainerError::Register(error) => cause_of(error),
        ContainerError::Mapped { .. } => "mapped",
        ContainerError::MisalignedBus { .. } => "misaligned-bus",
        ContainerError::PastWindow { .. } => "past-window",
        ContainerError::TableShape { .. } => "table-shape",
        ContainerError::TablePiece => "table-piece",
        ContainerError::NotAWindow { inside: true, .. } => "inside-window",
        ContainerError::Map { error: EntryError::Map(MapError::TooLarge { .. }), .. } => "page-too-large",
        ContainerError::Map { error: EntryError::Map(MapError::Closing { .. }), .. } => "closing",
        _ => "",
    }
}

fn refused(error: &ContainerError) -> Answer {
    Answer::failed_for(error.errno(), cause(error))
}

// ---- files --------------------------------------------------------------------------------------------------------

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
    let Some(container) = container else { return Answer::failed(Errno::EBADF) };
    if group.container.borrow().is_some() {
        return Answer::failed(Errno::EINVAL);
    }
    let Some(joined) = container.container() else { return Answer::failed(EBADFD) };
    let platform = group.platform();
    // A group's number is an index of a handful.
    let result = joined.borrow_mut().attach(Arc::new(PlainGroup::new(group.number as u32, platform)));
    if let Err(error) = result {
        return refused(&error);
    }
    group.container.replace(Some(container.clone()));
    Answer::done()
}

/// What a file answers to a request that it does not have.
fn not_a_request(file: &OpenFile) -> Answer {
    match file.container() {
        Some(container) if container.borrow().version().is_none() => Answer::failed(Errno::EINVAL),
        _ => Answer::failed(Errno::ENOTTY),
    }
}

fn on_group(
    call: &mut Call<'_>,
    act: impl FnOnce(&super::machine::GroupFile) -> Result<(), Errno>,
) -> Answer {
    let Some(file) = call.file(1) else { return Answer::failed(Errno::EBADF) };
    match file.group() {
        Some(group) => Answer::of(act(group)),
        None => not_a_request(&file),
    }
}

fn device(call: &mut Call<'_>) -> Answer {
    let number = call.number(3);
    let name = call.word(1).to_owned();
    let Some(file) = call.file(2) else { return Answer::failed(Errno::EBADF) };
    let Some(group) = file.group() else { return not_a_request(&file) };
    // The machine has 16 names for devices; those without a device are empty.
    if number & 15 != group.number as u64 {
        return Answer::failed(Errno::ENODEV);
    }
    let usable = group
        .container
        .borrow()
        .as_deref()
        .and_then(OpenFile::container)
        .is_some_and(|container| container.borrow().version().is_some());
    if !usable {
        return Answer::failed(Errno::EINVAL);
    }
    let device = Rc::new(OpenFile::Device(DeviceFile::new(&file)));
    call.process.open_as(&name, device);
    Answer::done()
}

fn group_status(call: &mut Call<'_>) -> Answer {
    let mut flags = 1;
    let answer = on_group(call, |group| {
        flags = if group.container.borrow().is_some() { 3 } else { 1 };
        Ok(())
    });
    if answer.is_done() { answer.with(format!("flags={flags:#x}")) } else { answer.with("flags=0x0") }
}

/// `v2 C N`: a container with group N and the second version set.
fn version_2(call: &mut Call<'_>) -> Answer {
    let number = call.number(2);
    let name = call.word(1).to_owned();
    let container = call.process.shared.open_container();
    call.process.open_as(&name, container.clone());
    let group = match open_group(call.process, number) {
        Ok(group) => group,
        Err(errno) => return Answer::failed(errno),
    };
    // The number is shown as the 32-bit one it is given as.
    call.process.open_as(&format!("g{}", number as i32), group.clone());
    let joined = attach(Some(container.clone()), &group);
    if !joined.is_done() {
        return joined;
    }
    perform_request(call.process, &container, Command::SetIommu.raw(), Argument::Value(7))
}

// ---- requests -----------------------------------------------------------------------------------------------------

fn request(call: &mut Call<'_>, command: Command, argument: Argument<'_>) -> Answer {
    let Some(file) = call.file(1) else { return Answer::failed(Errno::EBADF) };
    perform_request(call.process, &file, command.raw(), argument)
}

fn perform_request(process: &Process, file: &OpenFile, command: u32, argument: Argument<'_>) -> Answer {
    let Some(container) = file.container() else { return not_a_request(file) };
    let result = container.borrow_mut().ioctl(&process.owner, command, argument);
    match result {
        Ok(0) => Answer::done(),
        Ok(number) => Answer::number(number),
        Err(error @ ContainerError::Mapped { .. }) if file.has_outlived() => {
            Answer::failed_for(error.errno(), "mapped-for-others")
        }
        Err(error) => refused(&error),
    }
}

/// The bytes of a struct that starts with `argsz` and `flags`.
struct Struct(Vec<u8>);

impl Struct {
    fn new(call: &mut Call<'_>, least: u32) -> Self {
        Self::with_flags(call, least, 0)
    }

    /// `argsz=` and `flags=` of the operation replace what is meant by it.
    fn with_flags(call: &mut Call<'_>, least: u32, flags: u32) -> Self {
        let argsz = call.option("argsz").map_or(least, |argsz| argsz as u32);
        let flags = call.option("flags").map_or(flags, |flags| flags as u32);
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

fn memory(call: &mut Call<'_>, command: Command) -> Answer {
    let (ua, size) = (call.number(2), call.number(3));
    let mut bytes = Struct::new(call, 24).u64(ua).u64(size).0;
    request(call, command, Argument::Bytes(&mut bytes))
}

fn map(call: &mut Call<'_>) -> Answer {
    let (ua, ioba, size) = (call.number(2), call.number(3), call.number(4));
    let may = call.word(5);
    let flags = u32::from(may.contains('r')) | u32::from(may.contains('w')) << 1;
    let mut bytes = Struct::with_flags(call, 32, flags).u64(ua).u64(ioba).u64(size).0;
    request(call, Command::MapDma, Argument::Bytes(&mut bytes))
}

fn create(call: &mut Call<'_>) -> Answer {
    let (shift, size, levels) = (call.number(2) as u32, call.number(3), call.number(4) as u32);
    let mut bytes = Struct::new(call, 40).u32(shift).u32(0).u64(size).u32(levels).u32(0).u64(0).0;
    let answer = request(call, Command::SpaprTceCreate, Argument::Bytes(&mut bytes));
    if !answer.is_done() {
        return answer;
    }
    let start = u64::from_ne_bytes(word_at(&bytes, 32));
    if let Some(name) = call.target().map(str::to_owned) {
        call.process.names.set(&name, Kind::Number, start);
    }
    answer.with(format!("start={start:#x}"))
}

fn info(call: &mut Call<'_>) -> Answer {
    // The caller's memory is as large as the whole struct, whatever he says of it.
    let mut bytes = Struct::new(call, 32).0;
    bytes.resize(32, 0);
    let answer = request(call, Command::SpaprTceGetInfo, Argument::Bytes(&mut bytes));
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

fn check_extension(call: &mut Call<'_>) -> Answer {
    let kind = call.number(2);
    let answer = request(call, Command::CheckExtension, Argument::Value(kind));
    let returned = match answer.code {
        super::transcript::Code::Number(number) => i64::try_from(number).unwrap_or(i64::MAX),
        super::transcript::Code::Done => 0,
        super::transcript::Code::Failed(errno) => -i64::from(errno.raw()),
    };
    let answer = if returned < 0 { answer } else { Answer::done() };
    answer.with(format!("ret={returned}"))
}

/// `raw FILE NUMBER ARGUMENT`: any request with any argument.
fn raw(call: &mut Call<'_>) -> Answer {
    let (command, argument) = (call.number(2) as u32, call.number(3));
    let Some(file) = call.file(1) else { return Answer::failed(Errno::EBADF) };
    let known = if command & POWER == 0 { None } else { Command::from_raw(command) };
    if file.group().is_some() {
        return raw_on_group(call, &file, command & !POWER, argument);
    }
    let Some(known) = known else {
        return perform_request(call.process, &file, u32::MAX, Argument::Value(argument));
    };
    let length = known.argument_bytes();
    if length == 0 {
        return perform_request(call.process, &file, known.raw(), Argument::Value(argument));
    }
    // Pretended memory reads as zeros.
    let mut bytes = vec![0; if readable(call, argument, length as u64) { length } else { 0 }];
    perform_request(call.process, &file, known.raw(), Argument::Bytes(&mut bytes))
}

fn readable(call: &Call<'_>, at: u64, bytes: u64) -> bool {
    let page = call.process.page();
    at.checked_add(bytes).is_some_and(|end| {
        let start = at - at % page;
        call.process.host.is_mapped(start, end - start)
    })
}

/// A group's requests with a pointer to zeros, or to nothing.
fn raw_on_group(call: &mut Call<'_>, file: &Rc<OpenFile>, command: u32, argument: u64) -> Answer {
    let readable = readable(call, argument, 8);
    let base = Command::GetApiVersion.raw();
    match (command.wrapping_sub(base), file.group()) {
        (3 | 4 | 6, Some(_)) if !readable => Answer::failed(Errno::EFAULT),
        (3, Some(_)) => Answer::failed(Errno::EINVAL),
        (4, Some(group)) if group.container.borrow().is_some() => Answer::failed(Errno::EINVAL),
        (4, Some(_)) => Answer::failed(EBADFD),
        (5, Some(group)) if group.users.get() > 0 => Answer::failed(Errno::EBUSY),
        (5, Some(group)) => Answer::of(if group.leave() { Ok(()) } else { Err(Errno::EINVAL) }),
        (6, Some(_)) => Answer::failed(Errno::ENODEV),
        _ => Answer::failed(Errno::ENOTTY),
    }
}
