//! Sessions of a vfio-user client against the server that performs them, with real memory and descriptors: the judge of the
//! crate's tests says what must hold, and how a script is written.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/prereg-vfio-user/tests/server/judge.rs"]
mod judge;

fuzz_target!(|script: &[u8]| {
    judge::judge(script);
});
