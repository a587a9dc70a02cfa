//! The engine without threads and I/O: a guest's driver on one side, simulated disks on the other.

mod administration;
mod commands;
mod doorbells;
mod judge;
mod pointers;
mod queues;
mod scripts;
mod world;
