//! Releasing: the last unregister, regions that drain, the owner that goes.

use alloc::sync::Arc;
use alloc::vec::Vec;

use crate::addr::UserRange;
use crate::engine::Engine;
use crate::engine::registry::{Books, Entry, Span};
use crate::engine::teardown::Release;
use crate::lookup::holder::{Held, Holder, Home};
use crate::sync::MonitorGuard;
use crate::sync::atomic::{AtomicI64, Ordering};

/// One registration in the books: enough to find it again, never enough to reach a gone region.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Claim {
    pub(crate) range: UserRange,
    pub(crate) id: u64,
    pub(crate) holder: Holder,
}

/// Why a claim could not be given up. Nothing changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Kept {
    Busy { mapped: u64, holders: Vec<Held> },
    Gone,
}

impl Engine {
    /// Gives a registration up; the last one only if nothing is mapped.
    pub(crate) fn release(&self, claim: Claim) -> Result<(), Kept> {
        self.reap();
        let mut books = self.books.lock();
        let Some(entry) = books.entry(claim.range.first().raw(), claim.id).filter(|entry| entry.used > 0)
        else {
            return Err(Kept::Gone);
        };
        if entry.used > 1 {
            entry.disclaim(claim.holder);
            return Ok(());
        }
        let slot = entry.region.slot;
        if let Err(mapped) = self.door(slot).try_close(|| self.heavy(&books), || books.mapped(slot)) {
            return Err(Kept::Busy { mapped, holders: books.holders(slot) });
        }
        self.finish(books, claim.range, claim.id);
        Ok(())
    }

    /// Gives a registration up; if it was the last one, closes the region for new mappings and leaves the release to the
    /// last of the old ones. `true` when the release is done or another registration lives.
    pub(crate) fn release_when_idle(&self, claim: Claim) -> bool {
        self.reap();
        let mut books = self.books.lock();
        let Some(entry) = books.entry(claim.range.first().raw(), claim.id).filter(|entry| entry.used > 0)
        else {
            return true;
        };
        entry.disclaim(claim.holder);
        if entry.used > 0 {
            return true;
        }
        let slot = entry.region.slot;
        books.draining += 1;
        self.show_draining(&books);
        self.door(slot).drain();
        self.heavy(&books);
        if books.mapped(slot) == 0 {
            self.finish(books, claim.range, claim.id);
            return true;
        }
        false
    }

    /// Whether a region given up by `release_when_idle` is still there without registrations.
    pub(crate) fn is_draining(&self, claim: Claim) -> bool {
        self.reap();
        Self::draining(&mut self.books.lock(), claim)
    }

    fn draining(books: &mut Books, claim: Claim) -> bool {
        books.entry(claim.range.first().raw(), claim.id).is_some_and(|entry| entry.used == 0)
    }

    /// Waits until the region is released or somebody registers its range again.
    pub(crate) fn wait_idle(&self, claim: Claim) {
        loop {
            self.reap();
            let mut books = self.books.lock();
            if !Self::draining(&mut books, claim) {
                break;
            }
            drop(self.books.wait(books));
        }
    }

    /// Releases every draining region that nobody maps any more.
    pub(crate) fn reap(&self) {
        // Relaxed: so that the usual case costs one load. A caller that knows of a draining region sees it, for what told
        // him came after the store.
        if self.draining.load(Ordering::Relaxed) == 0 {
            return;
        }
        let mut books = self.books.lock();
        if books.draining == 0 {
            return;
        }
        let idle = |entry: &&Entry| entry.used == 0 && books.mapped(entry.region.slot) == 0;
        let idle: Vec<_> =
            books.here().filter(idle).map(|entry| (entry.region.range, entry.region.id)).collect();
        let gone: Vec<_> =
            idle.into_iter().filter_map(|(range, id)| self.take_out(&mut books, range, id)).collect();
        drop(books);
        drop(gone);
    }

    /// Gives many registrations up with one heavy fence for all of them, in order; each as [`release`](Self::release) would.
    pub(crate) fn release_many(&self, claims: impl Iterator<Item = Claim>) -> Vec<Result<(), Kept>> {
        self.reap();
        let mut books = self.books.lock();
        let mut closing = Vec::new();
        let mut results: Vec<_> = claims
            .enumerate()
            .map(|(index, claim)| {
                let entry = books.entry(claim.range.first().raw(), claim.id).filter(|entry| entry.used > 0);
                let Some(entry) = entry else { return Err(Kept::Gone) };
                if entry.used > 1 {
                    entry.disclaim(claim.holder);
                    return Ok(());
                }
                let slot = entry.region.slot;
                // As in `Door::try_close`: a plain sum that is not zero is enough to refuse.
                let inside = books.mapped(slot);
                if inside != 0 {
                    return Err(Kept::Busy { mapped: inside.unsigned_abs(), holders: books.holders(slot) });
                }
                self.door(slot).announce();
                closing.push((index, claim, slot));
                Ok(())
            })
            .collect();
        if !closing.is_empty() {
            self.heavy(&books);
        }
        let mut gone = Vec::new();
        for (index, claim, slot) in closing {
            match self.door(slot).decide(books.mapped(slot)) {
                Ok(()) => gone.extend(self.take_out(&mut books, claim.range, claim.id)),
                Err(mapped) => results[index] = Err(Kept::Busy { mapped, holders: books.holders(slot) }),
            }
        }
        drop(books);
        drop(gone);
        results
    }

    /// Takes a region whose door is closed, or drained to zero, out of the registry, and releases it without the lock.
    fn finish(&self, mut books: MonitorGuard<'_, Books>, range: UserRange, id: u64) {
        let gone = self.take_out(&mut books, range, id);
        drop(books);
        drop(gone);
    }

    /// Under the lock: readers no longer find the region, and its span is being unpinned. The caller drops the release
    /// without the lock.
    fn take_out(&self, books: &mut Books, range: UserRange, id: u64) -> Option<Release<'_>> {
        let entry = books.take(range.first().raw(), id)?;
        self.show_draining(books);
        self.door(entry.region.slot).close();
        self.hide(books, entry.region.clone(), entry.born);
        Some(Release::new(self, entry))
    }

    /// The owner goes: every registration is given up, whoever holds it; what nobody maps is released now.
    pub(crate) fn close(&self) {
        let mut books = self.books.lock();
        let mut drained = 0;
        for span in books.spans.values_mut() {
            let Span::Here(entry) = span else { continue };
            if entry.used > 0 {
                entry.used = 0;
                entry.claims.clear();
                drained += 1;
            }
            self.door(entry.region.slot).drain();
            entry.keepalive = self.this.upgrade().map(|this| this as Arc<dyn Home>);
        }
        books.draining += drained;
        self.show_draining(&books);
        self.heavy(&books);
        drop(books);
        self.reap();
    }
}

impl Home for Engine {
    fn give_back(&self, slot: u32, count: &AtomicI64) {
        if self.door(slot).leave_shared(count) {
            self.reap();
        }
    }
}
