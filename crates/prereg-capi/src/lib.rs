//! The C ABI of prereg: what `include/prereg.h` declares.
//!
//! Handles are numbers in the shape of pointers, results are negative errno numbers, messages go into the caller's own buffer,
//! and a panic never crosses the border. NULL and misaligned pointers are refused; that each of the others points at what its
//! type says is the caller's promise, which the header states. Nothing here decides: each function checks what it was given,
//! makes one call of the Rust API and turns the answer into numbers.
//!
//! Rust programs use the crates below this one. To them these functions are as safe as they are in C: the pointers, callbacks,
//! contexts and addresses that they take are taken at their word.
//!
//! The header is made from this source by cbindgen; the test `header` compares it with the committed one, and makes it
//! anew when `PREREG_WRITE_HEADER` is set.
//!
//! Modules, lowest first: `failure` (results), `caller` and `record` (memory of the C caller), `free_stack` and `arena` (slots by
//! number), `handle` and `live` (handles and mappings of C); `words`, `region`; `ports` (callbacks of C); `options`, `backend`, `space`; `state`,
//! `registration`, `translator`, `entries`; the containers: `table`, `guest`, `container`, `iova`; `vfio`.
#![cfg(target_os = "linux")]
#![expect(non_camel_case_types, reason = "the names of C's types")]

mod arena;
mod backend;
mod caller;
pub mod container;
pub mod entries;
pub mod failure;
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
pub mod version;
pub mod vfio;
pub mod words;
