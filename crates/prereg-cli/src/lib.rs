//! The program `prereg` as a library, so that tests and fuzzers reach its parts.
//!
//! - [`cli`]: the command line; `commands`: one file for each command;
//! - [`trace`]: parsing of hypercall traces; [`replay`]: replaying them over registered memory;
//! - `selftest`: tests of each guarantee with a real device;
//! - [`serve`]: the device server, its configuration and its status;
//! - [`backend`]: the pin back ends of `replay`;
//! - [`error`], [`interrupt`], [`progress`], [`units`]: errors, Ctrl-C, progress bars, sizes and counts as text.
//!
//! Only this crate chooses back ends, tables and front ends and joins them. Its interface is not stable.

pub mod backend;
pub mod cli;
mod commands;
pub mod error;
pub mod interrupt;
pub mod progress;
pub mod replay;
mod selftest;
pub mod serve;
pub mod trace;
pub mod units;

/// The examples of the README, compiled with the tests.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;
