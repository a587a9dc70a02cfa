//! A blocking client, as a VMM uses a server.
//!
//! For tests, benchmarks and programs that drive a device from user space. A [`Client`] has one request under way unless it
//! uses [`Client::post`] and [`Client::wait`]. While it waits it serves the server's DMA_READ and DMA_WRITE from its
//! [`ServedMemory`].
//!
//! Ownership: a [`Client`] owns its socket and the memory that it serves; descriptors are borrowed for a call, received ones
//! belong to the caller. A mappable region is memory of another process: map it with [`SharedFile`](prereg_linux::SharedFile),
//! whose loads and stores return an error where a server that truncates its file would kill a client with a plain mapping by
//! SIGBUS.
//!
//! Errors: a refused request is [`ClientError::Refused`] and the client goes on; any other error ends the connection.
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
pub use requests::ServerVersion;
