//! A device's address space: the rules of type1, accesses under way, and a naive model.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod accesses;
mod awaited;
mod edges;
mod fixture;
mod limits;
mod model;
mod pieces;
mod ranges;
mod supplied;
mod threads;
