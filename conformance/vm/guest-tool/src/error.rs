//! The error of a command: a message for the console.

/// The reason of a failure.
pub(crate) type Error = String;
