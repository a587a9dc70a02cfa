//! Any bytes as a trace file, plain or zstd: refused with a message that has a line, or read within the limits.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prereg_cli::trace::parse::Limits;
use prereg_cli::trace::read::read_from;

/// Small enough that a reader that forgets a limit is seen as one that runs out of memory.
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
