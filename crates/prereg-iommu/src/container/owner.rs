//! The process that uses a container: its address space, its account and access to its memory.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use prereg::{AddressSpace, Charge, ChargeError, Memory, Pin, UserRange};

/// A process' memory, by range.
pub trait UserMemory: Send + Sync {
    /// The memory at `range`, to be pinned; `None` if there is none that could be pinned. Single pages are checked by the
    /// pin.
    fn at(&self, range: UserRange) -> Option<Box<dyn Memory>>;
}

/// A process that uses containers, identified by its address space.
#[derive(Clone)]
pub struct Owner {
    space: Arc<AddressSpace>,
    account: Arc<dyn Charge>,
    pins: Arc<dyn Pin>,
    memory: Arc<dyn UserMemory>,
}

impl Owner {
    /// `account` is charged for tables (the address space charges the same account for regions); `pins` serves containers
    /// of version 1, which pin at every map.
    pub fn new(
        space: Arc<AddressSpace>,
        account: Arc<dyn Charge>,
        pins: Arc<dyn Pin>,
        memory: Arc<dyn UserMemory>,
    ) -> Self {
        Self { space, account, pins, memory }
    }

    /// The address space with the registered regions.
    #[must_use]
    pub fn space(&self) -> &Arc<AddressSpace> {
        &self.space
    }

    /// Whether `other` is the same process.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.space, &other.space)
    }

    pub(super) fn pins(&self) -> &Arc<dyn Pin> {
        &self.pins
    }

    pub(super) fn memory_at(&self, range: UserRange) -> Option<Box<dyn Memory>> {
        self.memory.at(range)
    }

    /// Charges `pages` until the value is dropped.
    pub(super) fn charge(&self, pages: u64) -> Result<Charged, ChargeError> {
        self.account.charge(pages)?;
        Ok(Charged { account: self.account.clone(), pages })
    }
}

impl fmt::Debug for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Owner").field("space", &self.space).finish_non_exhaustive()
    }
}

/// Charged pages; dropping it uncharges the owner.
pub(super) struct Charged {
    account: Arc<dyn Charge>,
    pages: u64,
}

impl Drop for Charged {
    fn drop(&mut self) {
        self.account.uncharge(self.pages);
    }
}

impl fmt::Debug for Charged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Charged").field("pages", &self.pages).finish_non_exhaustive()
    }
}

/// An account without a limit: version 1 charges the whole window, so its pins are not charged.
pub(super) struct NoCharge;

impl Charge for NoCharge {
    fn charge(&self, _: u64) -> Result<(), ChargeError> {
        Ok(())
    }
    fn uncharge(&self, _: u64) {}
}
