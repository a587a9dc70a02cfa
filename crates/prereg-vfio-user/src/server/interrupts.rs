//! A client's interrupts: eventfds by kind and number, and the masks that VFIO has.
//!
//! What DEVICE_SET_IRQS may ask and how it is answered is VFIO's (`linux/vfio.h`, and `drivers/vfio/pci/vfio_pci_intrs.c` for
//! the errnos), with two freedoms: turning off what is off is no failure, and the kinds do not exclude each other, because
//! which of them is in use is written in the configuration space.
//!
//! INTx is a level. Told once, it masks itself; unmasked while the device still asserts it, it is told again. Clients unmask
//! it by a message or by an eventfd that they gave for it ([`Interrupts::unmasked_by`]).

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use prereg::Errno;

use super::eventfd::Eventfd;
use super::irq_kind::IrqKind;
use crate::action::IrqTargets;
use crate::answer::Irqs;
use crate::wire::IrqAction;

/// `VFIO_IRQ_INFO_*`.
const EVENTFD: u32 = 1;
const MASKABLE: u32 = 1 << 1;
const AUTOMASKED: u32 = 1 << 2;
const NORESIZE: u32 = 1 << 3;

/// A client's interrupts; clones are the same ones.
#[derive(Clone, Debug)]
pub struct Interrupts(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    lines: RwLock<Lines>,
    intx: Mutex<Intx>,
}

#[derive(Debug)]
struct Lines {
    counts: [u32; 5],
    /// By kind and number; as long as the highest one that was ever told.
    told: [Vec<Option<Arc<Eventfd>>>; 5],
    /// Unmasks INTx.
    unmask: Option<Arc<Eventfd>>,
    closed: bool,
}

/// The pin.
#[derive(Default, Debug)]
struct Intx {
    asserted: bool,
    masked: bool,
    /// It was to be told while it was masked.
    pending: bool,
}

fn lock(intx: &Mutex<Intx>) -> MutexGuard<'_, Intx> {
    // Every state of its three fields is a good one.
    intx.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Interrupts {
    /// Interrupts of a device with so many of each kind, by [`IrqKind::index`], none of them told anybody.
    #[must_use]
    pub fn new(counts: [u32; 5]) -> Self {
        let lines = Lines { counts, told: Default::default(), unmask: None, closed: false };
        Self(Arc::new(Inner { lines: RwLock::new(lines), intx: Mutex::default() }))
    }

    /// Tells the client, if it wants to be told of this one; says whether it does. An INTx that is masked is told when it is
    /// unmasked. Waits for nothing, unless the client itself sees to that.
    pub fn trigger(&self, kind: IrqKind, vector: u32) -> bool {
        let Some(line) = self.line(kind, vector) else { return false };
        let tell = kind != IrqKind::Intx || {
            let mut intx = lock(&self.0.intx);
            let masked = std::mem::replace(&mut intx.masked, true);
            intx.pending |= masked;
            !masked
        };
        if tell {
            line.signal();
        }
        true
    }

    /// Asserts or deasserts INTx. The client is told of an assertion once, until it unmasks.
    pub fn set_level(&self, asserted: bool) {
        lock(&self.0.intx).asserted = asserted;
        if asserted {
            self.tell_intx();
        }
    }

    /// Whether the client wants to be told of this one.
    #[must_use]
    pub fn enabled(&self, kind: IrqKind, vector: u32) -> bool {
        self.line(kind, vector).is_some()
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Lines> {
        self.0.lines.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Lines> {
        self.0.lines.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn line(&self, kind: IrqKind, vector: u32) -> Option<Arc<Eventfd>> {
        self.read().told[kind.index()].get(vector as usize)?.clone()
    }

    /// Tells INTx, if there is reason to, and masks it. No lock is held while the eventfd is written.
    fn tell_intx(&self) {
        let Some(line) = self.line(IrqKind::Intx, 0) else { return };
        let mut intx = lock(&self.0.intx);
        if !intx.masked && (intx.asserted || intx.pending) {
            intx.masked = true;
            intx.pending = false;
            drop(intx);
            line.signal();
        }
    }

    fn unmask(&self) {
        lock(&self.0.intx).masked = false;
        self.tell_intx();
    }

    /// The layout is known.
    pub(crate) fn arrange(&self, counts: [u32; 5]) {
        self.write().counts = counts;
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
        Ok(Irqs { flags, count: self.read().counts[kind.index()] })
    }

    /// Performs DEVICE_SET_IRQS.
    ///
    /// # Errors
    /// EINVAL for a kind or a range that there is not, for a descriptor that is no eventfd, and for interrupts that are
    /// triggered while none of their kind is told; ENOTTY for a mask that VFIO does not have.
    pub(crate) fn set(
        &self,
        index: u32,
        start: u32,
        count: u32,
        action: IrqAction,
        targets: IrqTargets<OwnedFd>,
    ) -> Result<(), Errno> {
        let kind = IrqKind::from_index(index).ok_or(Errno::EINVAL)?;
        let there = self.read().counts[kind.index()];
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
            (IrqAction::Mask | IrqAction::Unmask, _) if kind != IrqKind::Intx => return Err(Errno::ENOTTY),
            (IrqAction::Mask, IrqTargets::Eventfds(_) | IrqTargets::NoEventfds) => return Err(Errno::ENOTTY),
            (IrqAction::Unmask, IrqTargets::Eventfds(mut eventfds)) => {
                let eventfd = eventfds.pop().ok_or(Errno::EINVAL)?;
                self.write().unmask = Some(Arc::new(Eventfd::new(eventfd)?));
            }
            (IrqAction::Unmask, IrqTargets::NoEventfds) => self.write().unmask = None,
            (IrqAction::Mask | IrqAction::Unmask, IrqTargets::Each(each)) if each != [true] => {}
            (IrqAction::Mask, _) => lock(&self.0.intx).masked = true,
            (IrqAction::Unmask, _) => self.unmask(),
        }
        Ok(())
    }

    /// Tells nobody of this kind any more.
    fn forget(&self, kind: IrqKind) {
        let mut lines = self.write();
        let old = std::mem::take(&mut lines.told[kind.index()]);
        if kind == IrqKind::Intx {
            lines.unmask = None;
        }
        drop(lines);
        old.iter().flatten().for_each(|line| line.release());
        if kind == IrqKind::Intx {
            let mut intx = lock(&self.0.intx);
            (intx.masked, intx.pending) = (false, false);
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
        let told = self.read().told[kind.index()].clone();
        if told.iter().all(Option::is_none) {
            return Err(Errno::EINVAL);
        }
        if kind == IrqKind::Intx && lock(&self.0.intx).masked {
            return Ok(());
        }
        let range = told.iter().skip(start as usize).take(count as usize).enumerate();
        for line in range.filter(|(at, _)| chosen(*at)).filter_map(|(_, line)| line.as_ref()) {
            line.signal();
        }
        Ok(())
    }

    fn tell(&self, kind: IrqKind, start: u32, new: impl Iterator<Item = Option<Arc<Eventfd>>>) {
        let mut lines = self.write();
        if lines.closed {
            return;
        }
        let mut old = Vec::new();
        let told = &mut lines.told[kind.index()];
        for (at, line) in (start as usize..).zip(new) {
            if let Some(place) = told.get_mut(at) {
                old.extend(std::mem::replace(place, line));
            } else if line.is_some() {
                told.resize(at, None);
                told.push(line);
            }
        }
        drop(lines);
        old.iter().for_each(|line| line.release());
        if kind == IrqKind::Intx {
            self.tell_intx();
        }
    }

    /// The eventfd that unmasks INTx, for who waits for it.
    pub(crate) fn unmasked_by(&self) -> Option<Arc<Eventfd>> {
        self.read().unmask.clone()
    }

    /// The client may have unmasked INTx by `eventfd`.
    pub(crate) fn unmasked(&self, eventfd: &Eventfd) {
        if eventfd.take() {
            self.unmask();
        }
    }

    /// The client is gone: nobody is told any more, and who is held up in telling goes on.
    pub(crate) fn close(&self) {
        let told = {
            let mut lines = self.write();
            lines.closed = true;
            lines.unmask = None;
            std::mem::take(&mut lines.told)
        };
        told.iter().flatten().flatten().for_each(|line| line.release());
    }
}
