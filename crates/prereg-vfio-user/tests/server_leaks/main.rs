//! A server keeps no descriptor of disconnected clients open.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod count;
mod descriptors;
#[expect(dead_code, reason = "the other tests of the server use the rest")]
#[path = "../server/fixture.rs"]
mod fixture;
#[expect(dead_code, reason = "the replay of the engine uses the rest")]
#[path = "../recorded/mod.rs"]
mod recorded;
mod replayed;
mod sessions;
