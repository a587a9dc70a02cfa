//! Hypercall traces: what a guest asked of its tables, and what it was answered.
//!
//! [`read`](read::read) opens a file, plain or zstd, and feeds its lines to the [`parse`]r, which owns all checks and
//! gives back a [`Trace`](record::Trace): the whole file in memory, small enough that a replay measures tables and not
//! the reading of text. The format is described in `docs/traces.md`.
//!
//! What goes wrong is always the file's fault and is told as a [`TraceError`](error::TraceError) with file and line.
//! Nothing here pins, maps or allocates in proportion to a number that a file merely claims.

pub mod error;
pub mod parse;
pub mod read;
pub mod record;
