//! A small client: what a virtual machine monitor says to a server, call by call.
//!
//! For tests, benchmarks and programs that drive a device from user space. A [`Client`] blocks, and has one request under way
//! unless it is told otherwise ([`Client::post`], [`Client::wait`]). While it waits it answers the server's DMA_READ and
//! DMA_WRITE from the [`ServedMemory`] that it was given.
//!
//! Who owns whom: a [`Client`] owns its socket and the memory that it serves; descriptors are lent for a call, those that came
//! are the caller's. A part of a region that the server lets be mapped is memory of another process: map it with
//! [`SharedFile`](prereg_linux::SharedFile). The loads and stores of its memory fail where a server that makes its file shorter
//! would kill a client with a plain mapping by SIGBUS.
//!
//! What goes wrong: a request that the server refuses is [`ClientError::Refused`] and the client goes on; everything else is
//! the end of the connection.
//!
//! ```no_run
//! use prereg_vfio_user::client::Client;
//!
//! let mut client = Client::connect("/run/disk.sock".as_ref())?;
//! let mut class = [0; 3];
//! client.region_read(7, 9, &mut class)?; // of configuration space
//! assert_eq!(class, [2, 8, 1], "an NVMe controller");
//! # Ok::<(), prereg_vfio_user::client::ClientError>(())
//! ```

mod connection;
mod error;
mod eventfd;
mod memory;
mod requests;

pub use connection::{Client, Posted, Reply};
pub use error::ClientError;
pub use eventfd::Eventfd;
pub use memory::{OwnMemory, ServedMemory};
pub use requests::Agreed;
