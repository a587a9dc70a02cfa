//! Counts of requests by command, and of refusals by command and reason.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use prereg::Errno;

use super::state::{CommandCounts, RequestCounts};
use crate::wire::Command;

/// The highest command number plus one.
const COMMANDS: usize = 19;

/// Counts of one client, or of all disconnected ones. Relaxed: reports only.
#[derive(Default, Debug)]
pub(crate) struct Counts {
    performed: [AtomicU64; COMMANDS],
    refused: Mutex<BTreeMap<(Command, String), u64>>,
    transfers: AtomicU64,
    transferred_bytes: AtomicU64,
}

impl Counts {
    /// Counts a performed request, successful or not.
    pub(crate) fn performed(&self, command: Command) {
        if let Some(count) = self.performed.get(usize::from(command.number())) {
            count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Counts a refused request.
    pub(crate) fn refused(&self, command: Command, reason: &str) {
        // Unknown numbers share one key: a client could send 65,536 of them.
        let command = command.name().map_or(Command::new(u16::MAX), |_| command);
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry((command, reason.to_owned())).or_default() += 1;
    }

    /// Counts a request that failed with `errno`.
    pub(crate) fn failed(&self, command: Command, errno: Errno) {
        self.refused(command, &errno.to_string());
    }

    /// Counts a transfer.
    pub(crate) fn transferred(&self, bytes: usize) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
        self.transferred_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Adds these counts to `into`.
    pub(crate) fn add_to(&self, into: &mut RequestCounts) {
        for (number, count) in (0..).zip(&self.performed) {
            let performed = count.load(Ordering::Relaxed);
            if performed > 0 {
                into.command(Command::new(number)).performed += performed;
            }
        }
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        for ((command, reason), count) in refused.iter() {
            *into.command(*command).refused.entry(reason.clone()).or_default() += count;
        }
        into.transfers += self.transfers.load(Ordering::Relaxed);
        into.transferred_bytes += self.transferred_bytes.load(Ordering::Relaxed);
    }
}

impl RequestCounts {
    fn command(&mut self, command: Command) -> &mut CommandCounts {
        self.commands.entry(command.name().unwrap_or("unknown")).or_default()
    }
}
