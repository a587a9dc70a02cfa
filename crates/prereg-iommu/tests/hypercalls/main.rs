//! The hypercalls by the public API: scenarios of docs/specification.md, the order of checks, random calls beside a model,
//! concurrent vCPUs, and the memory of large windows.

#![expect(clippy::unwrap_used, reason = "a test that fails may panic anywhere")]

mod guest;
mod hardware_table;
mod order_of_checks;
mod random_calls;
mod scenarios;
mod tables;
mod vcpus;
