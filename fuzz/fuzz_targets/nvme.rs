//! A guest that writes anything to the registers, doorbells and queues of an NVMe controller: the judge of the crate's tests
//! says what must hold, and how a script is written.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../crates/prereg-nvme/tests/engine/judge.rs"]
mod judge;
#[path = "../../crates/prereg-nvme/tests/engine/world.rs"]
#[expect(dead_code, reason = "tests use more of it")]
mod world;

fuzz_target!(|script: &[u8]| {
    judge::judge(script);
});
