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
//! again. Clients mask and unmask it by a message or by an eventfd ([`Interrupts::switches`]).
//!
//! One lock keeps the state. It is never held while an eventfd is written, because the client can hold that up. An eventfd
//! that was taken away between the decision and the write is not written, and the interrupt is pending again.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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
#[derive(Clone, Default, Debug)]
struct Vector {
    told: Option<Arc<Eventfd>>,
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
        let eventfds: Vec<BorrowedFd<'_>> =
            mask.iter().chain(&unmask).map(|eventfd| eventfd.as_fd()).collect();
        if eventfds.is_empty() {
            return Ok(None);
        }
        let watch = Watch::new(&eventfds)?;
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
            vectors.resize(at + 1, Vector::default());
        }
        vectors.get_mut(at)
    }

    /// The eventfd to write, if there is something to tell and nothing against it; it counts as told.
    fn due(&mut self, kind: IrqKind, vector: u32) -> Option<Arc<Eventfd>> {
        let is_up = kind == IrqKind::Intx && self.asserted;
        let vector = self.vector(kind, vector)?;
        let line = vector.told.clone().filter(|_| !vector.masked && !vector.held)?;
        if !vector.pending && !is_up {
            return None;
        }
        vector.pending = false;
        // The pin masks itself.
        vector.masked = kind == IrqKind::Intx;
        Some(line)
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
    /// for nothing, unless the client itself sees to that.
    pub fn trigger(&self, kind: IrqKind, vector: u32) -> bool {
        let is_told = {
            let mut state = self.lock();
            let Some(vector) = state.vector(kind, vector) else { return false };
            vector.pending = true;
            vector.told.is_some()
        };
        self.deliver(kind, vector);
        is_told
    }

    /// Asserts or deasserts INTx. The client is told of an assertion once, until it unmasks.
    pub fn set_level(&self, asserted: bool) {
        self.lock().asserted = asserted;
        self.deliver(IrqKind::Intx, 0);
    }

    /// Holds back those of a kind that `held` says, and no others: the function's own masks. Those that were pending and are
    /// not held any more are told.
    pub fn set_held(&self, kind: IrqKind, held: impl Fn(u32) -> bool) {
        let mut due = Vec::new();
        {
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
                    due.push(number);
                }
            }
        }
        due.into_iter().for_each(|vector| self.deliver(kind, vector));
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

    /// Tells what there is to tell of this one.
    fn deliver(&self, kind: IrqKind, vector: u32) {
        loop {
            let Some(line) = self.lock().due(kind, vector) else { return };
            if line.signal() {
                return;
            }
            // It was taken away in the meantime; whatever took its place, if anything did, is to be told.
            let mut state = self.lock();
            if state.closed {
                return;
            }
            if let Some(vector) = state.vector(kind, vector) {
                vector.pending |= kind != IrqKind::Intx;
                vector.masked &= kind != IrqKind::Intx;
            }
        }
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
                self.tell(kind, start, lines?.into_iter().map(|line| Some(Arc::new(line))));
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
        for number in range {
            if let Some(vector) = self.lock().vector(kind, number) {
                vector.masked = masked;
            }
            self.deliver(kind, number);
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
        if !state.closed {
            state.switches = Switches::new(mask, unmask)?;
        }
        Ok(())
    }

    /// Removes the eventfds of a kind. Messages that are pending stay so: clients turn a kind off and on again to change
    /// one of its eventfds.
    fn forget(&self, kind: IrqKind) {
        let mut state = self.lock();
        let mut old = Vec::new();
        for vector in &mut state.vectors[kind.index()] {
            old.extend(vector.told.take());
            vector.masked = false;
            vector.pending &= kind != IrqKind::Intx;
        }
        if kind == IrqKind::Intx {
            state.switches = None;
        }
        drop(state);
        old.iter().for_each(|line| line.release());
    }

    /// Triggers what is told, as the device would; INTx without masking it.
    fn fire(
        &self,
        kind: IrqKind,
        start: u32,
        chosen: impl Fn(usize) -> bool,
        count: u32,
    ) -> Result<(), Errno> {
        let vectors = self.lock().vectors[kind.index()].clone();
        if vectors.iter().all(|vector| vector.told.is_none()) {
            return Err(Errno::EINVAL);
        }
        let range = vectors.iter().skip(start as usize).take(count as usize).enumerate();
        let is_masked = |vector: &Vector| kind == IrqKind::Intx && vector.masked;
        for (_, vector) in range.filter(|(at, vector)| chosen(*at) && !is_masked(vector)) {
            // One that is taken away meanwhile is the client's own doing.
            let _ = vector.told.as_ref().map(|line| line.signal());
        }
        Ok(())
    }

    fn tell(&self, kind: IrqKind, start: u32, new: impl Iterator<Item = Option<Arc<Eventfd>>>) {
        let mut state = self.lock();
        if state.closed {
            return;
        }
        let mut old = Vec::new();
        let mut end = start;
        for (number, line) in (start..).zip(new) {
            if let Some(vector) = state.vector(kind, number) {
                old.extend(std::mem::replace(&mut vector.told, line));
            }
            end = number + 1;
        }
        drop(state);
        old.iter().for_each(|line| line.release());
        (start..end).for_each(|number| self.deliver(kind, number));
    }

    /// The eventfds that mask and unmask INTx, for who waits for them.
    pub(crate) fn switches(&self) -> Option<Arc<Switches>> {
        self.lock().switches.clone()
    }

    /// The client may have masked or unmasked INTx by its eventfds. One that did both at a time has it unmasked: nothing is
    /// lost that way.
    pub(crate) fn switched(&self, switches: &Switches) {
        let told = |eventfd: &Option<Arc<Eventfd>>| eventfd.as_ref().is_some_and(|eventfd| eventfd.take());
        for (eventfd, masked) in [(&switches.mask, true), (&switches.unmask, false)] {
            if told(eventfd) {
                self.mask(IrqKind::Intx, 0..1, masked);
            }
        }
    }

    /// The client is gone: nobody is told any more, and who is held up in telling goes on.
    pub(crate) fn close(&self) {
        let vectors = {
            let mut state = self.lock();
            state.closed = true;
            state.switches = None;
            std::mem::take(&mut state.vectors)
        };
        vectors.iter().flatten().filter_map(|vector| vector.told.as_ref()).for_each(|line| line.release());
    }
}
