//! What a counted translation costs, next to the machine's limit and to others, all in one run.
//!
//! A [`bed::Bed`] is registered memory of one [`layout::Shape`]; [`subject::Subject`]s find addresses in it, in one loop for
//! all; [`measure`] takes their times in turns, [`plan`] says for which shapes, [`plot`] draws them.

pub mod bed;
mod clock;
pub mod host;
pub mod layout;
pub mod limit;
pub mod measure;
pub mod others;
pub mod ours;
mod part;
pub mod plan;
pub mod plot;
pub mod subject;
#[cfg(feature = "peers")]
mod vm_memory;
