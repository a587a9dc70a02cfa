//! The C ABI of prereg, declared by `include/prereg.h`.
//!
//! Handles are numbers with the type of pointers, results are negative errno numbers, messages are written to the caller's buffer, and no
//! panic reaches C. NULL and misaligned pointers are refused; that others are valid for their type is guaranteed by the caller, as the
//! header states. Each function checks its arguments, makes one call of the Rust API and converts the result.
//!
//! Rust programs use the crates below this one. For them these functions are as unsafe as in C: pointers, callbacks, contexts and addresses
//! are trusted.
//!
//! The header is generated from this source by cbindgen; the test `header` compares it with the committed one, and writes it if
//! `PREREG_WRITE_HEADER` is set.
//!
//! Modules, lowest first: `error` (results), `caller` and `record` (memory of the C caller), `free_stack` and `arena` (slots by
//! number), `handle` and `live` (handles and mappings of C); `types`, `region`; `ports` (callbacks of C); `options`, `backend`, `space`; `state`,
//! `registration`, `translator`, `entries`; the containers: `table`, `guest`, `container`, `iova`; `vfio`.
#![cfg(target_os = "linux")]
#![expect(non_camel_case_types, reason = "the names of C's types")]

mod arena;
mod backend;
mod caller;
pub mod container;
pub mod entries;
pub mod error;
mod free_stack;
pub mod guest;
mod handle;
pub mod iova;
mod live;
pub mod options;
pub mod ports;
mod record;
pub mod region;
pub mod registration;
pub mod space;
pub mod state;
pub mod table;
pub mod translator;
pub mod types;
pub mod version;
pub mod vfio;
