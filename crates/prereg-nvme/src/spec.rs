//! Numbers and layouts of the NVM Express base specification, revision 1.4.
//!
//! Numbers from the guest stay numbers: an unknown opcode or log identifier is kept, and rejected where it is used.

mod command;
mod completion;
pub(crate) mod number;
mod page;
pub mod register;
mod status;

pub(crate) use command::{Command, DataPointer};
pub use completion::Completion;
pub(crate) use page::Page;
pub use status::Status;
