//! Mapping and closing have a SeqCst fence each, and mapping is not inlined.

use prereg::{AddressSpace, AddressSpaceBuilder, Charge, Pin};

fn builder(host: impl Pin + Charge + 'static) -> AddressSpaceBuilder {
    AddressSpace::builder(host)
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
