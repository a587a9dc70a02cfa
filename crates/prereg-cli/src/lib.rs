//! The program `prereg` as a library, so that tests and fuzzers reach its parts.
//!
//! - [`cli`]: the command line and where it leads; [`commands`]: one file a command;
//! - [`trace`]: reading hypercall traces; [`replay`]: replaying them over registered memory;
//! - [`selftest`]: every promise kept once, on a real device;
//! - [`pins`]: choosing how memory is pinned;
//! - [`serve`]: devices for guests, and what is to be seen of them;
//! - [`failure`], [`interrupt`], [`progress`], [`quantity`]: how the program fails, stops, shows and counts.
//!
//! This is the only room where back ends, tables and front ends are chosen and joined. It promises nothing to other
//! crates.

pub mod cli;
pub mod commands;
pub mod failure;
pub mod interrupt;
pub mod pins;
pub mod progress;
pub mod quantity;
pub mod replay;
pub mod selftest;
pub mod serve;
pub mod trace;

/// The examples of the README, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
