//! Hypercall traces: the calls of a guest on its tables, with their results.
//!
//! [`read`](read::read) opens a file, plain or zstd, and passes its lines to the parser ([`parse`]), which makes all checks and
//! returns a [`Trace`](record::Trace): the whole file in memory, so that a replay does not measure the reading of text. The format is
//! described in `docs/traces.md`.
//!
//! Errors are [`TraceError`](error::TraceError)s with file and line. Nothing is pinned, mapped or allocated in proportion to a number
//! that a file only claims.

pub mod error;
pub mod parse;
pub mod read;
pub mod record;
