//! The controller behind a real server: a client on a socket with real memory, driving it as an operating system does.

mod allocator;
mod driver;
mod events;
mod fixture;
mod flood;
mod interrupts;
mod lifecycle;
mod masks;
mod memory;
mod spdk;
mod staged;
mod storage;
