//! Who uses a container: an address space, the account that pays, and the ways to its memory.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::fmt;

use prereg::{AddressSpace, Charge, ChargeError, Memory, Pin, UserRange};

/// A process' memory, as a container names it: by range.
pub trait UserMemory: Send + Sync {
    /// The memory at `range`, to be pinned; `None` where there is none that could ever be. Whether every page can be pinned
    /// is found out by the pin.
    fn at(&self, range: UserRange) -> Option<Box<dyn Memory>>;
}

/// A process that uses containers. Two owners are the same if their address space is.
#[derive(Clone)]
pub struct Owner {
    space: Arc<AddressSpace>,
    account: Arc<dyn Charge>,
    pins: Arc<dyn Pin>,
    memory: Arc<dyn UserMemory>,
}

impl Owner {
    /// `account` pays for tables (the address space has its own hand on the same account, for regions); `pins` serves
    /// containers of the first version, which pin at every map.
    pub fn new(
        space: Arc<AddressSpace>,
        account: Arc<dyn Charge>,
        pins: Arc<dyn Pin>,
        memory: Arc<dyn UserMemory>,
    ) -> Self {
        Self { space, account, pins, memory }
    }

    /// Where the regions are.
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

/// Pages charged to an owner, given back to him when this goes, whoever lets it go.
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

/// An account that nobody pays into: pins of the first version are covered by its charge for the whole window.
pub(super) struct Free;

impl Charge for Free {
    fn charge(&self, _: u64) -> Result<(), ChargeError> {
        Ok(())
    }
    fn uncharge(&self, _: u64) {}
}
