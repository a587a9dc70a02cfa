//! A kernel that replays a recording: it returns recorded results to the recorded requests, in their order.
//!
//! A recording is the text of an [`IoctlTrace`](super::ioctl_trace::IoctlTrace). Lines that begin with `#` name its
//! origin.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use prereg::{Errno, PinError, UserRange};

use super::bar::Bar;
use super::ioctl_trace::shown;
use super::kernel::{Argument, Descriptor, Kernel, Request};

/// A recording and the position of its replay.
#[derive(Clone, Debug)]
pub(crate) struct Recording {
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    lines: Vec<String>,
    next: usize,
    open: i32,
    numbers: i32,
}

#[derive(Debug)]
struct ReplayDescriptor {
    recording: Recording,
    name: String,
    number: i32,
}

#[derive(Debug)]
struct ReplayKernel(Recording);

/// The errno with a name.
fn errno_of(name: &str) -> Errno {
    (1..200).map(Errno::from_raw).find(|errno| errno.to_string() == name).unwrap_or_else(|| panic!("{name}?"))
}

fn bytes_of(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

impl Recording {
    pub(crate) fn parse(text: &str) -> Self {
        let lines = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#') && !line.ends_with(" closed"));
        let lines = lines.map(ToOwned::to_owned).collect();
        Self { state: Arc::new(Mutex::new(State { lines, next: 0, open: 0, numbers: 10 })) }
    }

    pub(crate) fn kernel(&self) -> Arc<dyn Kernel> {
        Arc::new(ReplayKernel(self.clone()))
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the next line, which must be of `request`; returns the changed bytes and the result.
    fn next(&self, request: &str) -> (String, String) {
        let mut state = self.state();
        let line = state.lines.get(state.next).cloned();
        let line = line.unwrap_or_else(|| panic!("the recording ends before: {request}"));
        state.next += 1;
        let (before, result) = line.rsplit_once(" => ").unwrap();
        let (said, changed) = before.split_once(" -> ").unwrap_or((before, ""));
        assert_eq!(said, request, "line {} of the recording", state.next);
        (changed.to_owned(), result.to_owned())
    }

    fn opened(&self, name: &str) -> Arc<dyn Descriptor> {
        let mut state = self.state();
        state.open += 1;
        state.numbers += 1;
        Arc::new(ReplayDescriptor { recording: self.clone(), name: name.to_owned(), number: state.numbers })
    }

    /// Asserts that the recording is used up and every descriptor is closed.
    pub(crate) fn assert_exhausted(&self) {
        let state = self.state();
        assert_eq!(state.lines.get(state.next), None, "requests of the recording that were not made");
        assert_eq!(state.open, 0, "descriptors are open still");
    }
}

impl Kernel for ReplayKernel {
    fn open(&self, path: &Path) -> Result<Arc<dyn Descriptor>, Errno> {
        let name = path.display().to_string();
        let (_, result) = self.0.next(&format!("open {name}"));
        if result == "ok" { Ok(self.0.opened(&name)) } else { Err(errno_of(&result)) }
    }

    fn prefault(&self, _range: UserRange) -> Result<(), PinError> {
        Ok(())
    }

    fn unpinnable_reason(&self, range: UserRange) -> PinError {
        PinError::Fault { ua: range.first(), why: "recorded" }
    }
}

impl Descriptor for ReplayDescriptor {
    fn number(&self) -> i32 {
        self.number
    }

    fn ioctl(&self, request: Request, argument: Argument<'_>) -> Result<i32, Errno> {
        let head = format!("{} {}", self.name, request.name);
        let result = match argument {
            Argument::None => self.recording.next(&head).1,
            Argument::Value(value) => self.recording.next(&format!("{head} {value:#x}")).1,
            Argument::Descriptor(_) => self.recording.next(&format!("{head} descriptor")).1,
            Argument::Text(text) => self.recording.next(&format!("{head} {}", text.to_string_lossy())).1,
            Argument::Struct(bytes) => {
                let (changed, result) = self.recording.next(&format!("{head} {}", shown(request, bytes)));
                bytes.copy_from_slice(&bytes_of(&changed));
                result
            }
            Argument::StructWithList { bytes, at, list } => {
                let (changed, result) = self.recording.next(&format!("{head} {}", shown(request, bytes)));
                let (changed, listed) = changed.split_once('+').unwrap();
                bytes.copy_from_slice(&bytes_of(changed));
                assert_eq!(at, 16);
                for (word, bytes) in list.iter_mut().zip(bytes_of(listed).chunks_exact(8)) {
                    *word = u64::from_ne_bytes(bytes.try_into().unwrap());
                }
                result
            }
        };
        result.parse().map_err(|_| errno_of(&result))
    }

    fn ioctl_fd(&self, request: Request, argument: Argument<'_>) -> Result<Arc<dyn Descriptor>, Errno> {
        let Argument::Text(text) = argument else { panic!("{request:?} takes a name") };
        let text = text.to_string_lossy();
        let (_, result) = self.recording.next(&format!("{} {} {text}", self.name, request.name));
        match result.as_str() {
            "descriptor" => Ok(self.recording.opened(&format!("device({text})"))),
            result => Err(errno_of(result)),
        }
    }

    fn read_at(&self, _offset: u64, _into: &mut [u8]) -> Result<usize, Errno> {
        Err(Errno::EIO)
    }

    fn write_at(&self, _offset: u64, _from: &[u8]) -> Result<usize, Errno> {
        Err(Errno::EIO)
    }

    fn map(&self, _offset: u64, _bytes: u64) -> Result<Bar, Errno> {
        Err(Errno::EIO)
    }
}

impl Drop for ReplayDescriptor {
    fn drop(&mut self) {
        self.recording.state().open -= 1;
    }
}
