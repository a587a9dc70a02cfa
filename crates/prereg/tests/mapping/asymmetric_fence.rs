//! The path of releases: mapping is inlined and has a compiler fence, closing fences every thread of the process.

use prereg::{AddressSpace, AddressSpaceBuilder, Charge, Pin};

use crate::process_fence::process_fence;

fn builder(host: impl Pin + Charge + 'static) -> AddressSpaceBuilder {
    AddressSpace::builder(host).barrier(process_fence())
}

#[path = "burst.rs"]
mod burst;
#[path = "draining.rs"]
mod draining;
#[path = "entries.rs"]
mod entries;
#[path = "failures.rs"]
mod failures;
#[path = "handles.rs"]
mod handles;
#[path = "list.rs"]
mod list;
#[path = "mixed.rs"]
mod mixed;
#[path = "ports.rs"]
mod ports;
#[path = "releases.rs"]
mod releases;
#[path = "retained.rs"]
mod retained;
#[path = "scenarios/mod.rs"]
mod scenarios;
#[path = "stress.rs"]
mod stress;
#[path = "tables.rs"]
mod tables;
