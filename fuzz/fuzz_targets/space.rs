//! Arbitrary operations on address spaces, compared with the reference model of the core.
//!
//! The first byte selects the kind of case, then seven bytes are one operation (see `prereg_core_model::Op`).

#![no_main]

use libfuzzer_sys::fuzz_target;
use prereg::Granule;
use prereg_core_model::{Case, Fence, Op, run_case};

fuzz_target!(|bytes: &[u8]| {
    let Some((&how, bytes)) = bytes.split_first() else { return };
    let fence = if how & 1 == 0 { Fence::Compiler } else { Fence::Full };
    let granule = if how & 2 == 0 { Granule::K4 } else { Granule::K64 };
    let ops: Vec<Op> = Op::from_bytes(bytes).collect();
    if let Err(wrong) = run_case(&ops, Case { fence, granule, small: false, aligned: how & 4 != 0 }) {
        panic!("{wrong}");
    }
});
