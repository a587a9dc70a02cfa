//! Containers on the pretended host: the scenarios of docs/specification.md 61 to 104, bytes, failures, races, a model.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod allocator;
mod bytes;
mod failures;
mod mappings;
mod model;
mod race;
mod reference;
mod registrations;
mod windows;
mod world;
