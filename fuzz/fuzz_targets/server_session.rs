//! Sessions of a vfio-user client with the server, with real memory and descriptors. The crate's tests have the format of a script and
//! the conditions.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/prereg-vfio-user/tests/server/judge.rs"]
mod judge;

fuzz_target!(|script: &[u8]| {
    judge::judge(script);
});
