//! The kernel's log: warnings that a scenario provokes become notes next to its answers.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// Levels 0 to 4 are warnings and worse.
const WARNING: u32 = 4;

/// A reader of the kernel's log.
#[derive(Debug)]
pub(crate) struct Log(Option<File>);

impl Log {
    pub(crate) fn open() -> Self {
        Self(OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok())
    }

    /// Skips the existing messages.
    pub(crate) fn skip(&mut self) {
        self.each(|_| {});
    }

    /// Prints the warnings since the last call.
    pub(crate) fn print(&mut self) {
        self.each(|text| println!("# kernel: {text}"));
    }

    fn each(&mut self, mut say: impl FnMut(&str)) {
        let Some(file) = &mut self.0 else { return };
        let mut record = [0_u8; 8192];
        loop {
            match file.read(&mut record) {
                Ok(0) => return,
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]);
                    let Some((head, body)) = text.split_once(';') else { continue };
                    let level = head.split(',').next().and_then(|number| number.parse::<u32>().ok());
                    if level.is_some_and(|level| level & 7 <= WARNING) {
                        say(body.lines().next().unwrap_or_default());
                    }
                }
                // Older records were overwritten; the next read continues after them.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(_) => return,
            }
        }
    }
}
