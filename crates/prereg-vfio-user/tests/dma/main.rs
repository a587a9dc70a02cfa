//! Client memory: registered once, mapped often, and removed in every way a client can.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod access;
mod background;
mod descriptors;
mod failures;
mod fixture;
mod hole;
mod hooked;
mod late;
mod limits;
#[path = "../observed/mod.rs"]
mod observed;
mod policy;
mod sharing;
mod stale;
mod threads;
