//! Arbitrary bytes as a trace file, plain or zstd: refused with file and line, or parsed within the limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prereg_cli::trace::parse::Limits;
use prereg_cli::trace::read::read_from;

/// Small, so that a reader without a limit runs out of memory.
const LIMITS: Limits = Limits { line_bytes: 1 << 12, records: 1 << 10, values: 1 << 12, host_bytes: 1 << 30 };

fuzz_target!(|file: &[u8]| {
    match read_from(file, "foreign.tce", &LIMITS) {
        Ok(trace) => {
            assert!(trace.records.len() as u64 <= LIMITS.records);
            assert!(trace.values.len() as u64 <= LIMITS.values);
        }
        Err(error) => assert!(error.to_string().starts_with("foreign.tce:"), "{error}"),
    }
});
