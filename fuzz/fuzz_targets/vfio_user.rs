//! Arbitrary messages of a vfio-user client, and arbitrary replies of a server. The crate's tests have the format of a script and the
//! conditions.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/prereg-vfio-user/tests/protocol/judge.rs"]
mod judge;

fuzz_target!(|script: &[u8]| {
    judge::judge(script);
});
