//! Arbitrary writes to the registers, doorbells and queues of an NVMe controller. The crate's tests have the format of a script and the
//! conditions.

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
