//! What a server has open when its clients are gone: nothing of theirs.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

#[expect(dead_code, reason = "the other tests of the server use the rest")]
#[path = "../server/bed.rs"]
mod bed;
mod count;
mod descriptors;
#[expect(dead_code, reason = "the replay of the engine uses the rest")]
#[path = "../recorded/mod.rs"]
mod recorded;
mod replayed;
mod sessions;
