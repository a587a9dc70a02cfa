//! Time of a counted translation, next to baselines and to the roofline, in one run.
//!
//! A [`fixture::Fixture`] is registered memory of one [`layout::Shape`]; [`candidate::Candidate`]s look up addresses in it in a
//! common loop; [`measure`] times them in turns, [`plan`] chooses the shapes, [`plot`] draws the times.

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
