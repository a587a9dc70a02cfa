//! Disks as the controller uses them: reads return what was written, whatever the memory, the file and the kernel are.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(unsafe_code, reason = "system calls of the fixtures")]

mod durability;
mod file;
mod guest;
mod integrity;
mod limits;
mod pins;
mod remote;
