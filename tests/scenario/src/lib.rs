//! The language of the conformance scenarios, and the format of the answers to them.
//!
//! - [`script`]: scenario files, scenarios, lines and words;
//! - [`names`]: variables and the arithmetic over them;
//! - [`transcript`]: answers as a transcript shows them, and reading stored transcripts.
//!
//! prereg-conformance performs scenarios over prereg's containers, the program in tests/oracle-guest performs them on a real
//! kernel, and `cargo xtask oracle` compares the kernel's answers with the stored ones. All three use this crate, so that a
//! difference between two transcripts is a difference between two implementations. Any text is a scenario file: malformed lines
//! are answered with `PARSE_ERROR`. The crate has no dependencies because the guest program links it.

pub mod names;
pub mod script;
pub mod transcript;
