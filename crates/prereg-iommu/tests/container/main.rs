//! Containers on the simulated host: scenarios 59 to 104 of docs/specification.md, binary requests, failures, races, a model.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod allocator;
mod bytes;
mod failures;
mod fixture;
mod mappings;
mod model;
mod race;
mod reference;
mod registrations;
mod windows;
