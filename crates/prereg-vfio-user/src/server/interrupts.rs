//! A client's interrupts: eventfds by kind and number, the masks that VFIO has, and those of the device itself.
//!
//! What DEVICE_SET_IRQS may ask and how it is answered is VFIO's (`linux/vfio.h`, and `drivers/vfio/pci/vfio_pci_intrs.c` for
//! the errnos), with three freedoms: turning off what is off is no failure, messages can be masked as the pin can, and the
//! kinds do not exclude each other, because which of them is in use is written in the configuration space.
//!
//! An interrupt that cannot be signalled at the moment is pending: its client masked it, the device holds it back (the
//! function's own masks, [`Interrupts::set_held`]), or it has no eventfd. It is signalled when the last of these reasons is gone,
//! however long that takes. A message is signalled once however often it was triggered until then, as with PCI's pending bits.
//!
//! INTx is a level. It masks itself when it is signalled; if the device still asserts it when it is unmasked, it is signalled
//! again. Clients mask and unmask it by a message or by an eventfd ([`Interrupts::switches`]). One eventfd cannot both signal
//! and unmask INTx: asserted, it would signal for ever.
//!
//! One lock keeps the state. It is held while an eventfd is signalled, which does not wait for the client.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prereg::Errno;

use super::eventfd::Eventfd;
use super::irq_kind::IrqKind;
use crate::action::IrqTargets;
use crate::answer::Irqs;
use crate::sys::Watch;
use crate::wire::IrqAction;

/// `VFIO_IRQ_INFO_*`.
const EVENTFD: u32 = 1;
const MASKABLE: u32 = 1 << 1;
const AUTOMASKED: u32 = 1 << 2;
const NORESIZE: u32 = 1 << 3;

/// A client's interrupts; clones are the same ones.
#[derive(Clone, Debug)]
pub struct Interrupts(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    counts: [u32; 5],
    /// By kind and number; as long as the highest one that something happened to, and never longer than `counts` says.
    vectors: [Vec<Vector>; 5],
    /// The pin's level.
    asserted: bool,
    switches: Option<Arc<Switches>>,
    closed: bool,
}

/// One interrupt.
#[derive(Default, Debug)]
struct Vector {
    told: Option<Eventfd>,
    /// By the client, or by the pin itself.
    masked: bool,
    /// By the device.
    held: bool,
    pending: bool,
}

/// The eventfds that mask and unmask INTx.
#[derive(Debug)]
pub(crate) struct Switches {
    mask: Option<Arc<Eventfd>>,
    unmask: Option<Arc<Eventfd>>,
    /// Of both.
    watch: Watch,
}

impl Switches {
    fn new(mask: Option<Arc<Eventfd>>, unmask: Option<Arc<Eventfd>>) -> Result<Option<Arc<Self>>, Errno> {
        if mask.is_none() && unmask.is_none() {
            return Ok(None);
        }
        // One wake for each time that the client writes: a count that cannot be read to 0 must not keep a thread awake.
        let watch = Watch::arrivals([&mask, &unmask].map(|eventfd| eventfd.as_ref().map(|one| one.as_fd())))?;
        Ok(Some(Arc::new(Self { mask, unmask, watch })))
    }
}

impl AsFd for Switches {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }
}

impl State {
    /// `None` for one that the device does not have.
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

    /// Signals this one, if it is to be signalled and nothing is against it.
    fn deliver(&mut self, kind: IrqKind, vector: u32) {
        let is_up = kind == IrqKind::Intx && self.asserted;
        let Some(vector) = self.vector(kind, vector) else { return };
        let Some(eventfd) = vector.told.as_ref().filter(|_| !vector.masked && !vector.held) else { return };
        if vector.pending || is_up {
            eventfd.signal();
            vector.pending = false;
            // The pin masks itself.
            vector.masked = kind == IrqKind::Intx;
        }
    }

    /// Whether `eventfd` unmasks the pin.
    fn unmasks(&self, eventfd: &Eventfd) -> bool {
        let unmask = self.switches.as_ref().and_then(|switches| switches.unmask.as_ref());
        unmask.is_some_and(|unmask| unmask.is_same(eventfd))
    }
}

impl Interrupts {
    /// Interrupts of a device with so many of each kind, by [`IrqKind::index`], none of them told anybody.
    #[must_use]
    pub fn new(counts: [u32; 5]) -> Self {
        let state =
            State { counts, vectors: Default::default(), asserted: false, switches: None, closed: false };
        Self(Arc::new(Mutex::new(state)))
    }

    /// Tells the client, if it wants to be told of this one; says whether it does. One that cannot be told now is pending. Waits
    /// for nothing.
    pub fn trigger(&self, kind: IrqKind, vector: u32) -> bool {
        let mut state = self.lock();
        let Some(triggered) = state.vector(kind, vector) else { return false };
        triggered.pending = true;
        let is_told = triggered.told.is_some();
        state.deliver(kind, vector);
        is_told
    }

    /// Asserts or deasserts INTx. The client is told of an assertion once, until it unmasks.
    pub fn set_level(&self, asserted: bool) {
        let mut state = self.lock();
        state.asserted = asserted;
        state.deliver(IrqKind::Intx, 0);
    }

    /// Holds back those of a kind that `held` says, and no others: the function's own masks. Those that were pending and are
    /// not held any more are told.
    pub fn set_held(&self, kind: IrqKind, held: impl Fn(u32) -> bool) {
        let mut state = self.lock();
        for number in 0..state.counts[kind.index()] {
            let is_held = held(number);
            let known = (number as usize) < state.vectors[kind.index()].len();
            // Those that nothing happened to are as new ones are.
            if !known && !is_held {
                continue;
            }
            let Some(vector) = state.vector(kind, number) else { continue };
            if std::mem::replace(&mut vector.held, is_held) && !is_held {
                state.deliver(kind, number);
            }
        }
    }

    /// Whether this one waits to be told.
    #[must_use]
    pub fn is_pending(&self, kind: IrqKind, vector: u32) -> bool {
        let state = self.lock();
        state.vectors[kind.index()].get(vector as usize).is_some_and(|vector| vector.pending)
    }

    /// Forgets which messages are pending, as a reset does.
    pub fn forget_pending(&self) {
        let mut state = self.lock();
        state.vectors.iter_mut().flatten().for_each(|vector| vector.pending = false);
    }

    /// Whether the client wants to be told of this one.
    #[must_use]
    pub fn enabled(&self, kind: IrqKind, vector: u32) -> bool {
        let state = self.lock();
        state.vectors[kind.index()].get(vector as usize).is_some_and(|vector| vector.told.is_some())
    }

    /// Whether the client wants to be told of any of a kind.
    #[must_use]
    pub fn any_enabled(&self, kind: IrqKind) -> bool {
        self.lock().vectors[kind.index()].iter().any(|vector| vector.told.is_some())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every state of its fields is a good one.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layout is known.
    pub(crate) fn arrange(&self, counts: [u32; 5]) {
        self.lock().counts = counts;
    }

    /// What DEVICE_GET_IRQ_INFO is answered.
    ///
    /// # Errors
    /// EINVAL for an index that no kind has.
    pub(crate) fn describe(&self, index: u32) -> Result<Irqs, Errno> {
        let kind = IrqKind::from_index(index).ok_or(Errno::EINVAL)?;
        let flags = match kind {
            IrqKind::Intx => EVENTFD | MASKABLE | AUTOMASKED,
            // Vectors come and go one by one.
            IrqKind::Msix => EVENTFD,
            IrqKind::Msi | IrqKind::Err | IrqKind::Req => EVENTFD | NORESIZE,
        };
        Ok(Irqs { flags, count: self.lock().counts[kind.index()] })
    }

    /// Performs DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// EINVAL for a kind or a range that there is not, for a descriptor that is no eventfd, and for interrupts that are
    /// triggered while none of their kind is told; ENOTTY for a mask that there is not.
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
            (IrqAction::Trigger, IrqTargets::All) if count == 0 => self.forget(kind),
            (IrqAction::Trigger, IrqTargets::All) => return self.fire(kind, start, |_| true, count),
            (IrqAction::Trigger, IrqTargets::Each(each)) => {
                return self.fire(kind, start, |at| each.get(at).copied().unwrap_or(false), count);
            }
            (IrqAction::Trigger, IrqTargets::Eventfds(eventfds)) => {
                let lines: Result<Vec<_>, Errno> = eventfds.into_iter().map(Eventfd::new).collect();
                let lines = lines?;
                if kind == IrqKind::Intx && lines.iter().any(|line| self.lock().unmasks(line)) {
                    return Err(Errno::EINVAL);
                }
                self.tell(kind, start, lines.into_iter().map(Some));
            }
            (IrqAction::Trigger, IrqTargets::NoEventfds) => {
                self.tell(kind, start, (0..count).map(|_| None));
            }
            (_, _) if matches!(kind, IrqKind::Err | IrqKind::Req) => return Err(Errno::ENOTTY),
            (_, IrqTargets::Eventfds(_) | IrqTargets::NoEventfds) if kind != IrqKind::Intx => {
                return Err(Errno::ENOTTY);
            }
            (action, IrqTargets::Eventfds(mut eventfds)) => {
                let eventfd = eventfds.pop().ok_or(Errno::EINVAL)?;
                return self.switch(action, Some(Arc::new(Eventfd::new(eventfd)?)));
            }
            (action, IrqTargets::NoEventfds) => return self.switch(action, None),
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

    /// Has an eventfd mask or unmask the pin, or none any more.
    fn switch(&self, action: IrqAction, eventfd: Option<Arc<Eventfd>>) -> Result<(), Errno> {
        let mut state = self.lock();
        let (mask, unmask) = match &state.switches {
            Some(switches) => (switches.mask.clone(), switches.unmask.clone()),
            None => (None, None),
        };
        let (mask, unmask) = if action == IrqAction::Mask { (eventfd, unmask) } else { (mask, eventfd) };
        let told = state.vectors[IrqKind::Intx.index()].first().and_then(|vector| vector.told.as_ref());
        if let (Some(unmask), Some(told)) = (&unmask, told) {
            if unmask.is_same(told) {
                return Err(Errno::EINVAL);
            }
        }
        if !state.closed {
            state.switches = Switches::new(mask, unmask)?;
        }
        Ok(())
    }

    /// Removes the eventfds of a kind. Messages that are pending stay so: clients turn a kind off and on again to change
    /// one of its eventfds.
    fn forget(&self, kind: IrqKind) {
        let mut state = self.lock();
        for vector in &mut state.vectors[kind.index()] {
            vector.told = None;
            vector.masked = false;
            vector.pending &= kind != IrqKind::Intx;
        }
        if kind == IrqKind::Intx {
            state.switches = None;
        }
    }

    /// Triggers what is told, as the device would; INTx without masking it.
    fn fire(
        &self,
        kind: IrqKind,
        start: u32,
        chosen: impl Fn(usize) -> bool,
        count: u32,
    ) -> Result<(), Errno> {
        let state = self.lock();
        let vectors = &state.vectors[kind.index()];
        if vectors.iter().all(|vector| vector.told.is_none()) {
            return Err(Errno::EINVAL);
        }
        let range = vectors.iter().skip(start as usize).take(count as usize).enumerate();
        let is_masked = |vector: &Vector| kind == IrqKind::Intx && vector.masked;
        for (_, vector) in range.filter(|(at, vector)| chosen(*at) && !is_masked(vector)) {
            vector.told.iter().for_each(|line| line.signal());
        }
        Ok(())
    }

    fn tell(&self, kind: IrqKind, start: u32, new: impl Iterator<Item = Option<Eventfd>>) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        for (number, line) in (start..).zip(new) {
            if let Some(vector) = state.vector(kind, number) {
                vector.told = line;
            }
            state.deliver(kind, number);
        }
    }

    /// The eventfds that mask and unmask INTx, for who waits for them.
    pub(crate) fn switches(&self) -> Option<Arc<Switches>> {
        self.lock().switches.clone()
    }

    /// The client may have masked or unmasked INTx by its eventfds. One that did both at a time has it unmasked: nothing is
    /// lost that way.
    pub(crate) fn switched(&self, switches: &Switches) {
        // It was found ready; this says by which of the two, and has it wait for the next arrival.
        let Ok(arrived) = switches.watch.wait(Some(Duration::ZERO)) else { return };
        for ((eventfd, masked), arrived) in
            [(&switches.mask, true), (&switches.unmask, false)].into_iter().zip(arrived)
        {
            if arrived.is_readable() && eventfd.as_ref().is_some_and(|eventfd| eventfd.take()) {
                self.mask(IrqKind::Intx, 0..1, masked);
            }
        }
    }

    /// The client is gone: nobody is told any more.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.switches = None;
        state.vectors = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;
    use crate::sys::{self, Waiting};

    #[test]
    fn a_count_that_stays_wakes_once_for_each_write() {
        let interrupts = Interrupts::new([1, 0, 0, 0, 0]);
        let unmask = sys::semaphore().unwrap();
        sys::add(unmask.as_fd(), 1 << 63).unwrap();
        let targets = IrqTargets::Eventfds(vec![unmask.try_clone().unwrap()]);
        interrupts.set(0, 0, 1, IrqAction::Unmask, targets).unwrap();
        let switches = interrupts.switches().unwrap();
        let is_ready = || {
            let mut waiting = [Waiting::new(switches.as_fd().as_raw_fd(), true, false)];
            sys::poll(&mut waiting, Some(Duration::ZERO)).unwrap() == 1
        };
        assert!(is_ready(), "written before it was handed over");
        interrupts.switched(&switches);
        assert!(!is_ready());
        sys::add_one(unmask.as_fd()).unwrap();
        assert!(is_ready());
    }
}
