//! Every test of mapping, once for each pair of fences, which have code paths of their own.
//!
//! The other files are independent of the fence: they create their address spaces by `super::builder`.
#![expect(clippy::unwrap_used, reason = "a test reports by panicking")]
#![expect(clippy::duplicate_mod, reason = "the same tests run in both fence modes")]

mod asymmetric_fence;
mod closing;
mod full_fence;
mod process_fence;
