//! The vfio-user protocol: an engine without I/O, a server around it, and a client.
//!
//! vfio-user is VFIO over a socket: the client (QEMU, cloud-hypervisor) has a guest, the server is its device.
//! - [`server`] serves devices: sockets, threads, the client's memory and interrupts around a [`Device`](server::Device). With
//!   [`pci`], the device's configuration space, it is all that most users need.
//! - [`client`] drives a server from a program.
//! - The engine, at the root of this crate, turns bytes and descriptors into actions and replies.
//!
//! A [`Session`] is the engine's state of one client. The owner of the socket passes it what it received
//! ([`Session::receive`]), performs its actions ([`Session::next_action`]), passes it the results ([`Session::reply`]) and
//! sends its frames ([`Session::unsent`], [`Session::sent`]).
//!
//! Ownership:
//! - a [`Session`] owns the partly received message, the unsent frames and the transfers under way;
//! - an [`Action`] owns its data, its descriptors and a [`Token`], which is the only way to reply: once, in any order;
//! - [`wire`] has the messages as structs with `read` and `write`; clients can use it too.
//!
//! Errors: the engine replies with an errno to a malformed request, continues with the next message, and reports it as
//! [`Action::Refused`]. Only a stream whose frames cannot be distinguished any more, or a client of another major version, ends
//! the session ([`SessionError`]). No input panics the engine or makes it hold more than [`Settings::held_bytes`] allows.
//!
//! The engine never uses a descriptor: `F` is the server's type, and dropping one closes it.
//!
//! Not supported: migration (its commands fail with EOPNOTSUPP and its capability is not offered), dirty bitmaps, the second
//! socket for the server's commands.
//!
//! Layouts and rules are those of QEMU's `docs/interop/vfio-user.rst`, called "specification" in these pages, and of
//! `linux/vfio.h` where it points there.
//!
//! ```
//! use prereg_vfio_user::wire::{Command, Header, Version};
//! use prereg_vfio_user::{Action, Session, Settings};
//!
//! let mut session: Session<std::fs::File> = Session::new(Settings::default());
//!
//! // A client sends its version and, without waiting, a reset.
//! let mut bytes = Vec::new();
//! Header::command(0, Command::VERSION)
//!     .frame(&mut bytes, |body| Version { major: 0, minor: 1, data: b"{}\0" }.write(body));
//! Header::command(1, Command::DEVICE_RESET).frame(&mut bytes, |_| ());
//! session.receive(&bytes, [])?;
//!
//! while let Some(action) = session.next_action() {
//!     match action {
//!         Action::Negotiated { negotiated, token } => {
//!             assert_eq!(negotiated.minor, 1);
//!             session.reply(token, Ok(()));
//!         }
//!         Action::Reset { token } => session.reply(token, Ok(())),
//!         _ => {}
//!     }
//! }
//! let (frames, descriptors) = session.unsent().expect("two replies");
//! assert!(descriptors.is_empty());
//! let length = frames.len(); // a socket may take fewer
//! session.sent(length);
//! # Ok::<(), prereg_vfio_user::SessionError>(())
//! ```

mod action;
mod capabilities;
pub mod client;
mod dispatch;
mod frame_reader;
pub mod pci;
mod pci_function;
mod reply;
mod request_error;
mod send_queue;
pub mod server;
mod session;
mod settings;
mod sys;
mod transfer;
pub mod wire;

pub use action::{Action, IrqTargets};
pub use capabilities::{Capabilities, Negotiated};
pub use pci_function::{PciContext, PciFunction, PciFunctionFactory};
pub use reply::{
    DeviceInfoReply, EmptyReply, IoRegion, IrqDescription, IrqInfoReply, Kind, Mmap, ReadReply, Region,
    RegionInfoReply, RegionIoFdsReply, Token, UnmapReply, VersionReply, WriteMultiReply, WriteReply,
};
pub use request_error::{RequestError, SessionError};
pub use session::Session;
pub use settings::Settings;
pub use transfer::{TransferError, TransferId};
