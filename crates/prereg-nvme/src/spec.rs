//! The numbers and layouts of the NVM Express base specification, revision 1.4, and nothing that acts on them.
//!
//! Numbers from outside stay numbers: an opcode or a log identifier that nobody knows is kept and refused where it is used.

pub mod command;
pub mod completion;
pub mod number;
pub mod page;
pub mod register;
pub mod status;

pub use command::{Command, DataPointer};
pub use completion::Completion;
pub use page::Page;
pub use status::Status;
