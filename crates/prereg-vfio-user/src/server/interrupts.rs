//! A client's interrupts: eventfds by kind and number, VFIO's masks, and the device's own masks.
//!
//! DEVICE_SET_IRQS follows VFIO (`linux/vfio.h`, and `drivers/vfio/pci/vfio_pci_intrs.c` for the errnos), except that disabling
//! a disabled kind succeeds, messages can be masked like INTx, and kinds do not exclude each other, because the configuration
//! space says which one is in use.
//!
//! An interrupt is pending if it cannot be signalled: the client masked it, the device masked it
//! ([`Interrupts::set_device_masks`]), or it has no eventfd. It is signalled when the last of these reasons is gone. A message
//! is signalled once however often it was triggered until then, as with PCI's pending bits.
//!
//! INTx is a level. It masks itself when it is signalled, and is signalled again if the device still asserts it when it is
//! unmasked. Clients mask and unmask it by a message or by an eventfd. One eventfd cannot both signal and unmask INTx: while
//! asserted, it would signal for ever.
//!
//! One lock protects the state. It is held while an eventfd is signalled, which does not block.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prereg::Errno;

use super::eventfd::Eventfd;
use super::irq_kind::IrqKind;
use crate::action::IrqTargets;
use crate::reply::IrqDescription;
use crate::sys::Watch;
use crate::wire::IrqAction;

/// `VFIO_IRQ_INFO_*`.
const EVENTFD: u32 = 1;
const MASKABLE: u32 = 1 << 1;
const AUTOMASKED: u32 = 1 << 2;
const NORESIZE: u32 = 1 << 3;

/// A client's interrupts; clones share them.
#[derive(Clone, Debug)]
pub struct Interrupts(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    counts: [u32; 5],
    /// By kind and number; grows to the highest vector used, within `counts`.
    vectors: [Vec<Vector>; 5],
    /// The level of INTx.
    asserted: bool,
    mask_eventfds: Option<Arc<MaskEventfds>>,
    closed: bool,
}

/// One interrupt.
#[derive(Default, Debug)]
struct Vector {
    eventfd: Option<Eventfd>,
    /// By the client, or automasked.
    masked: bool,
    /// By the device.
    device_masked: bool,
    pending: bool,
}

/// The eventfds that mask and unmask INTx.
#[derive(Debug)]
pub(crate) struct MaskEventfds {
    mask: Option<Arc<Eventfd>>,
    unmask: Option<Arc<Eventfd>>,
    /// Of both.
    watch: Watch,
}

impl MaskEventfds {
    fn new(mask: Option<Arc<Eventfd>>, unmask: Option<Arc<Eventfd>>) -> Result<Option<Arc<Self>>, Errno> {
        if mask.is_none() && unmask.is_none() {
            return Ok(None);
        }
        // Edge-triggered: a count that cannot be read to 0 must not keep a thread awake.
        let watch = Watch::arrivals([&mask, &unmask].map(|eventfd| eventfd.as_ref().map(|one| one.as_fd())))?;
        Ok(Some(Arc::new(Self { mask, unmask, watch })))
    }
}

impl AsFd for MaskEventfds {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl State {
    /// `None` if the device has no such vector.
    fn vector(&mut self, kind: IrqKind, vector: u32) -> Option<&mut Vector> {
        let at = vector as usize;
        if vector >= self.counts[kind.index()] {
            return None;
        }
        let vectors = &mut self.vectors[kind.index()];
        if vectors.len() <= at {
            vectors.resize_with(at + 1, Vector::default);
        }
        vectors.get_mut(at)
    }

    /// Signals the vector if it is pending or asserted and not masked.
    fn deliver(&mut self, kind: IrqKind, vector: u32) {
        let is_up = kind == IrqKind::Intx && self.asserted;
        let Some(vector) = self.vector(kind, vector) else { return };
        let Some(eventfd) = vector.eventfd.as_ref().filter(|_| !vector.masked && !vector.device_masked)
        else {
            return;
        };
        if vector.pending || is_up {
            eventfd.signal();
            vector.pending = false;
            // INTx masks itself.
            vector.masked = kind == IrqKind::Intx;
        }
    }

    /// Whether `eventfd` unmasks INTx.
    fn unmasks(&self, eventfd: &Eventfd) -> bool {
        let unmask = self.mask_eventfds.as_ref().and_then(|mask_eventfds| mask_eventfds.unmask.as_ref());
        unmask.is_some_and(|unmask| unmask.is_same(eventfd))
    }
}

impl Interrupts {
    /// Interrupts of a device, with the count of each kind by [`IrqKind::index`] and no eventfds yet.
    #[must_use]
    pub fn new(counts: [u32; 5]) -> Self {
        let state = State {
            counts,
            vectors: Default::default(),
            asserted: false,
            mask_eventfds: None,
            closed: false,
        };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Triggers an interrupt; it is pending until it can be signalled. Returns whether the client has set an eventfd for it.
    /// Does not block.
    pub fn trigger(&self, kind: IrqKind, vector: u32) -> bool {
        let mut state = self.lock();
        let Some(triggered) = state.vector(kind, vector) else { return false };
        triggered.pending = true;
        let is_told = triggered.eventfd.is_some();
        state.deliver(kind, vector);
        is_told
    }

    /// Asserts or deasserts INTx. An assertion is signalled once, until the client unmasks it.
    pub fn set_level(&self, asserted: bool) {
        let mut state = self.lock();
        state.asserted = asserted;
        state.deliver(IrqKind::Intx, 0);
    }

    /// Sets the device's masks of a kind to `held`. Pending vectors that become unmasked are signalled.
    pub fn set_device_masks(&self, kind: IrqKind, device_masked: impl Fn(u32) -> bool) {
        let mut state = self.lock();
        for number in 0..state.counts[kind.index()] {
            let is_held = device_masked(number);
            let known = (number as usize) < state.vectors[kind.index()].len();
            // An unused vector has these values already.
            if !known && !is_held {
                continue;
            }
            let Some(vector) = state.vector(kind, number) else { continue };
            if std::mem::replace(&mut vector.device_masked, is_held) && !is_held {
                state.deliver(kind, number);
            }
        }
    }

    /// Whether the vector is pending.
    #[must_use]
    pub fn is_pending(&self, kind: IrqKind, vector: u32) -> bool {
        let state = self.lock();
        state.vectors[kind.index()].get(vector as usize).is_some_and(|vector| vector.pending)
    }

    /// Clears all pending bits, as a reset does.
    pub fn clear_pending(&self) {
        let mut state = self.lock();
        state.vectors.iter_mut().flatten().for_each(|vector| vector.pending = false);
    }

    /// Whether the client has set an eventfd for this vector.
    #[must_use]
    pub fn enabled(&self, kind: IrqKind, vector: u32) -> bool {
        let state = self.lock();
        state.vectors[kind.index()].get(vector as usize).is_some_and(|vector| vector.eventfd.is_some())
    }

    /// Whether the client has set an eventfd for any vector of a kind.
    #[must_use]
    pub fn any_enabled(&self, kind: IrqKind) -> bool {
        self.lock().vectors[kind.index()].iter().any(|vector| vector.eventfd.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every combination of the fields is valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the counts of the layout.
    pub(crate) fn set_counts(&self, counts: [u32; 5]) {
        self.lock().counts = counts;
    }

    /// The reply to DEVICE_GET_IRQ_INFO.
    ///
    /// # Errors
    /// EINVAL for an unknown index.
    pub(crate) fn describe(&self, index: u32) -> Result<IrqDescription, Errno> {
        let kind = IrqKind::from_index(index).ok_or(Errno::EINVAL)?;
        let flags = match kind {
            IrqKind::Intx => EVENTFD | MASKABLE | AUTOMASKED,
            // Vectors can be enabled one by one.
            IrqKind::Msix => EVENTFD,
            IrqKind::Msi | IrqKind::Err | IrqKind::Req => EVENTFD | NORESIZE,
        };
        Ok(IrqDescription { flags, count: self.lock().counts[kind.index()] })
    }

    /// Performs DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// EINVAL for an unknown kind or range, for a descriptor that is no eventfd, and for a trigger of a kind without eventfds;
    /// ENOTTY for a mask that the kind does not have.
    pub(crate) fn set(
        &self,
        index: u32,
        start: u32,
        count: u32,
        action: IrqAction,
        targets: IrqTargets<OwnedFd>,
    ) -> Result<(), Errno> {
        let kind = IrqKind::from_index(index).ok_or(Errno::EINVAL)?;
        let there = self.lock().counts[kind.index()];
        if count > 0 && start.checked_add(count).is_none_or(|end| end > there) {
            return Err(Errno::EINVAL);
        }
        match (action, targets) {
            (IrqAction::Trigger, IrqTargets::All) if count == 0 => self.clear_eventfds(kind),
            (IrqAction::Trigger, IrqTargets::All) => return self.trigger_range(kind, start, |_| true, count),
            (IrqAction::Trigger, IrqTargets::Each(each)) => {
                return self.trigger_range(kind, start, |at| each.get(at).copied().unwrap_or(false), count);
            }
            (IrqAction::Trigger, IrqTargets::Eventfds(eventfds)) => {
                let eventfds: Result<Vec<_>, Errno> = eventfds.into_iter().map(Eventfd::new).collect();
                let eventfds = eventfds?;
                if kind == IrqKind::Intx && eventfds.iter().any(|eventfd| self.lock().unmasks(eventfd)) {
                    return Err(Errno::EINVAL);
                }
                self.set_eventfds(kind, start, eventfds.into_iter().map(Some));
            }
            (IrqAction::Trigger, IrqTargets::NoEventfds) => {
                self.set_eventfds(kind, start, (0..count).map(|_| None));
            }
            (_, _) if matches!(kind, IrqKind::Err | IrqKind::Req) => return Err(Errno::ENOTTY),
            (_, IrqTargets::Eventfds(_) | IrqTargets::NoEventfds) if kind != IrqKind::Intx => {
                return Err(Errno::ENOTTY);
            }
            (action, IrqTargets::Eventfds(mut eventfds)) => {
                let eventfd = eventfds.pop().ok_or(Errno::EINVAL)?;
                return self.set_mask_eventfd(action, Some(Arc::new(Eventfd::new(eventfd)?)));
            }
            (action, IrqTargets::NoEventfds) => return self.set_mask_eventfd(action, None),
            (action, IrqTargets::All) => self.mask(kind, start..start + count, action == IrqAction::Mask),
            (action, IrqTargets::Each(each)) => {
                for (number, _) in (start..).zip(each).filter(|(_, chosen)| *chosen) {
                    self.mask(kind, number..number + 1, action == IrqAction::Mask);
                }
            }
        }
        Ok(())
    }

    fn mask(&self, kind: IrqKind, range: std::ops::Range<u32>, masked: bool) {
        let mut state = self.lock();
        for number in range {
            if let Some(vector) = state.vector(kind, number) {
                vector.masked = masked;
            }
            state.deliver(kind, number);
        }
    }

    /// Sets or removes the eventfd that masks or unmasks INTx.
    fn set_mask_eventfd(&self, action: IrqAction, eventfd: Option<Arc<Eventfd>>) -> Result<(), Errno> {
        let mut state = self.lock();
        let (mask, unmask) = match &state.mask_eventfds {
            Some(mask_eventfds) => (mask_eventfds.mask.clone(), mask_eventfds.unmask.clone()),
            None => (None, None),
        };
        let (mask, unmask) = if action == IrqAction::Mask { (eventfd, unmask) } else { (mask, eventfd) };
        let eventfd = state.vectors[IrqKind::Intx.index()].first().and_then(|vector| vector.eventfd.as_ref());
        if let (Some(unmask), Some(eventfd)) = (&unmask, eventfd) {
            if unmask.is_same(eventfd) {
                return Err(Errno::EINVAL);
            }
        }
        if !state.closed {
            state.mask_eventfds = MaskEventfds::new(mask, unmask)?;
        }
        Ok(())
    }

    /// Removes the eventfds of a kind. Pending messages stay pending: clients disable and enable a kind to change one eventfd.
    fn clear_eventfds(&self, kind: IrqKind) {
        let mut state = self.lock();
        for vector in &mut state.vectors[kind.index()] {
            vector.eventfd = None;
            vector.masked = false;
            vector.pending &= kind != IrqKind::Intx;
        }
        if kind == IrqKind::Intx {
            state.mask_eventfds = None;
        }
    }

    /// Signals the chosen vectors as the device would; INTx without masking it.
    fn trigger_range(
        &self,
        kind: IrqKind,
        start: u32,
        chosen: impl Fn(usize) -> bool,
        count: u32,
    ) -> Result<(), Errno> {
        let state = self.lock();
        let vectors = &state.vectors[kind.index()];
        if vectors.iter().all(|vector| vector.eventfd.is_none()) {
            return Err(Errno::EINVAL);
        }
        let range = vectors.iter().skip(start as usize).take(count as usize).enumerate();
        let is_masked = |vector: &Vector| kind == IrqKind::Intx && vector.masked;
        for (_, vector) in range.filter(|(at, vector)| chosen(*at) && !is_masked(vector)) {
            vector.eventfd.iter().for_each(|eventfd| eventfd.signal());
        }
        Ok(())
    }

    fn set_eventfds(&self, kind: IrqKind, start: u32, new: impl Iterator<Item = Option<Eventfd>>) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        for (number, eventfd) in (start..).zip(new) {
            if let Some(vector) = state.vector(kind, number) {
                vector.eventfd = eventfd;
            }
            state.deliver(kind, number);
        }
    }

    /// The eventfds that mask and unmask INTx, to be polled.
    pub(crate) fn mask_eventfds(&self) -> Option<Arc<MaskEventfds>> {
        self.lock().mask_eventfds.clone()
    }

    /// Masks or unmasks INTx by its eventfds. If both were signalled it is unmasked, so that no interrupt is lost.
    pub(crate) fn handle_mask_eventfds(&self, mask_eventfds: &MaskEventfds) {
        // Finds which of the two was signalled, and re-arms the edge trigger.
        let Ok(arrived) = mask_eventfds.watch.wait(Some(Duration::ZERO)) else { return };
        for ((eventfd, masked), arrived) in
            [(&mask_eventfds.mask, true), (&mask_eventfds.unmask, false)].into_iter().zip(arrived)
        {
            if arrived.is_readable() && eventfd.as_ref().is_some_and(|eventfd| eventfd.take()) {
                self.mask(IrqKind::Intx, 0..1, masked);
            }
        }
    }

    /// Removes all eventfds, because the client is gone.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.mask_eventfds = None;
        state.vectors = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::{self, PollFd};

    #[test]
    fn a_count_that_stays_wakes_once_for_each_write() {
        let interrupts = Interrupts::new([1, 0, 0, 0, 0]);
        let unmask = sys::semaphore().unwrap();
        sys::add(unmask.as_fd(), 1 << 63).unwrap();
        let targets = IrqTargets::Eventfds(vec![unmask.try_clone().unwrap()]);
        interrupts.set(0, 0, 1, IrqAction::Unmask, targets).unwrap();
        let mask_eventfds = interrupts.mask_eventfds().unwrap();
        let is_ready = || {
            let mut waiting = [PollFd::new(mask_eventfds.as_fd().as_raw_fd(), true, false)];
            sys::poll(&mut waiting, Some(Duration::ZERO)).unwrap() == 1
        };
        assert!(is_ready(), "written before it was handed over");
        interrupts.handle_mask_eventfds(&mask_eventfds);
        assert!(!is_ready());
        sys::add_one(unmask.as_fd()).unwrap();
        assert!(is_ready());
    }
}
