//! Virtual machines that test prereg.
//!
//! - [`suites`]: `cargo xtask vm`: guests use the devices and back ends of this workspace;
//! - [`oracle`]: `cargo xtask oracle`: real kernels answer the conformance scenarios again;
//! - `machine`: a running emulator, its console and monitor, and the initramfs it boots;
//! - `debian`: packages without installing them, and the kernels and modules in them;
//! - [`cache`]: the folder of downloads and builds, which `cargo xtask mutants` uses too; [`error`]; `tool`: running programs.
//!
//! Everything works without privilege: packages are unpacked in the user's cache.

pub mod cache;
mod debian;
pub mod error;
mod machine;
pub mod oracle;
pub mod suites;
mod tool;
