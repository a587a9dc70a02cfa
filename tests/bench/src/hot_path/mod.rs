//! What a counted translation costs, next to the machine's limit and to others, all in one run.
//!
//! A [`fixture::Fixture`] is registered memory of one [`layout::Shape`]; [`candidate::Candidate`]s find addresses in it, in one loop for
//! all; [`measure`] takes their times in turns, [`plan`] says for which shapes, [`plot`] draws them.

pub mod baselines;
pub mod candidate;
mod clock;
pub mod fixture;
pub mod host;
pub mod layout;
pub mod measure;
mod part;
pub mod plan;
pub mod plot;
pub mod prereg;
pub mod roofline;
#[cfg(feature = "peers")]
mod vm_memory;
