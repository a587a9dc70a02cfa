//! The vfio-user protocol, server side: an engine without I/O, and the server that performs what it asks for.
//!
//! vfio-user is VFIO over a socket: the client (QEMU, cloud-hypervisor) has a guest, the server is its device.
//! - [`server`] is what a device is written for: sockets, threads, the client's memory and interrupts around a
//!   [`Device`](server::Device). Most users need nothing else, but for [`pci`], the device's configuration space.
//! - [`client`] drives a server from a program.
//! - The engine, at the root of this crate, is bytes and descriptors in, actions and replies out.
//!
//! Of the engine: a [`Session`] is one client. Whoever owns the socket hands it what he received ([`Session::receive`]),
//! performs what it asks for ([`Session::next_action`]), says how that went ([`Session::reply`]) and sends what it wants
//! sent ([`Session::unsent`], [`Session::sent`]).
//!
//! Who owns whom:
//! - a [`Session`] owns the half-received message, the frames not sent yet and the transfers under way;
//! - an [`Action`] owns its data, its descriptors and a [`Token`]; the token is the only way to answer, once, in any
//!   order;
//! - [`wire`] has the messages as structs that read and write themselves; a client can be built from it too.
//!
//! What goes wrong: a message that is well framed and wrong in itself is answered with an errno by the engine, the stream
//! goes on with the next one, and [`Action::Refused`] says why. Only a stream whose frames can no longer be told apart, or a
//! client of another major version, ends the session ([`SessionError`]). Nothing a client sends panics the engine or
//! makes it hold more than [`Settings::held_bytes`] allows for.
//!
//! The engine never touches a descriptor: `F` is whatever the server's are, and dropping one closes it.
//!
//! Not spoken: migration (its commands are answered EOPNOTSUPP and its capability is not offered), dirty bitmaps, the
//! second socket for commands of the server.
//!
//! The source for every layout and rule is QEMU's `docs/interop/vfio-user.rst`, named "specification" in these pages,
//! and `linux/vfio.h` where it points there.
//!
//! ```
//! use prereg_vfio_user::wire::{Command, Header, Version};
//! use prereg_vfio_user::{Action, Session, Settings};
//!
//! let mut session: Session<std::fs::File> = Session::new(Settings::default());
//!
//! // What a client sends: first its version, then, without waiting, a reset.
//! let mut bytes = Vec::new();
//! Header::command(0, Command::VERSION)
//!     .frame(&mut bytes, |body| Version { major: 0, minor: 1, data: b"{}\0" }.write(body));
//! Header::command(1, Command::DEVICE_RESET).frame(&mut bytes, |_| ());
//! session.receive(&bytes, [])?;
//!
//! while let Some(action) = session.next_action() {
//!     match action {
//!         Action::Negotiated { terms, token } => {
//!             assert_eq!(terms.minor, 1);
//!             session.reply(token, Ok(()));
//!         }
//!         Action::Reset { token } => session.reply(token, Ok(())),
//!         _ => {}
//!     }
//! }
//! let (frames, descriptors) = session.unsent().expect("two replies");
//! assert!(descriptors.is_empty());
//! let length = frames.len(); // a socket takes fewer at times
//! session.sent(length);
//! # Ok::<(), prereg_vfio_user::SessionError>(())
//! ```

mod action;
mod answer;
mod capabilities;
pub mod client;
mod dispatch;
mod inbox;
mod outbox;
pub mod pci;
mod refusal;
pub mod server;
mod session;
mod settings;
mod sys;
mod transfer;
pub mod wire;

pub use action::{Action, IrqTargets};
pub use answer::{
    Acknowledged, AskedDevice, AskedIoDescriptors, AskedIrq, AskedRegion, Introduced, IoRegion, Irqs, Kind,
    Mmap, ReadData, Region, Token, Unmapped, Written, WrittenMany,
};
pub use capabilities::{Capabilities, Terms};
pub use refusal::{Refusal, SessionError};
pub use session::Session;
pub use settings::Settings;
pub use transfer::{TransferError, TransferId};
