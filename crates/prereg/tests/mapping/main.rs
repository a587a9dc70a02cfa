//! Every test of mapping, once for each pair of fences: mapping runs through its own code in each of them.
//!
//! The files beside this one know nothing of fences: each makes its address spaces with `super::builder`.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]
#![expect(clippy::duplicate_mod, reason = "the same tests run in both fence modes")]

mod asymmetric_fence;
mod closing;
mod full_fence;
mod process_fence;
