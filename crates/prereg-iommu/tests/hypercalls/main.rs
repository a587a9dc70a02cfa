//! The hypercalls from outside: the scenarios of docs/specification.md, the order of checks, random calls against a model, many
//! vCPUs at once, and what large windows cost.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod guest;
mod hardware_table;
mod order_of_checks;
mod random_calls;
mod scenarios;
mod tables;
mod vcpus;
