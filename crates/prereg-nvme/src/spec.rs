//! Numbers and layouts of the NVM Express base specification, revision 1.4.
//!
//! Numbers from the guest stay numbers: an unknown opcode or log identifier is kept, and rejected where it is used.

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
