//! A vfio-user client that sends anything, and a server that answers anyhow: the judge of the crate's tests says what must
//! hold, and how a script is written.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/prereg-vfio-user/tests/protocol/judge.rs"]
mod judge;

fuzz_target!(|script: &[u8]| {
    judge::judge(script);
});
