//! The `m.` operations: regions without a container, in slots of registrations and mappings.

use prereg::{Errno, HostAddr, PageShift, RangeError, RegisterError, Registration, UserAddr};
use prereg_scenario::transcript::Answer;

use super::operation::Operation;
use super::slots::{Regions, Slot};
use super::transcript::{failed, failed_for};

/// The cause of a refused registration, in one word.
pub(super) fn cause_of(error: &RegisterError) -> &'static str {
    match error {
        RegisterError::Range(error) => cause_of_range(error),
        RegisterError::Overlap { .. } => "overlap",
        RegisterError::Exists { .. } => "exists",
        RegisterError::Charge { .. } => "limit",
        RegisterError::Pin { .. } => "pin",
        _ => "",
    }
}

pub(super) fn cause_of_range(error: &RangeError) -> &'static str {
    match error {
        RangeError::Empty { .. } => "empty",
        RangeError::Misaligned { .. } => "misaligned",
        RangeError::Wraps { .. } => "wraps",
        _ => "",
    }
}

fn refused(error: &RegisterError) -> Answer {
    failed_for(error.errno(), cause_of(error))
}

/// Performs `op` if it belongs to this family.
pub(super) fn perform(op: &mut Operation<'_>) -> Option<Answer> {
    Some(match op.name() {
        "m.new" if op.needs(4) => new(op),
        "m.newdev" if op.needs(5) => new_device(op),
        "m.get" if op.needs(3) => get(op),
        "m.put" if op.needs(2) => put(op),
        "m.lookup" if op.needs(3) => lookup(op),
        "m.ua_to_hpa" if op.needs(4) => translate(op),
        "m.is_devmem" if op.needs(3) => is_device(op),
        "m.inc" if op.needs(2) => map(op),
        "m.dec" if op.needs(2) => unmap(op),
        "m.preregistered" => {
            let any = op.process.regions.space.is_preregistered();
            Answer::done().with(format!("preregistered={}", u8::from(any)))
        }
        _ => return None,
    })
}

/// The slot that the word at `at` names, as a 32-bit number.
fn slot(op: &mut Operation<'_>, at: usize) -> i32 {
    op.number(at) as i32
}

fn dead() -> Answer {
    failed(Errno::EBADF).with("ioctl-failed")
}

/// `pages` system pages in bytes; `None` on overflow.
fn bytes_of(op: &Operation<'_>, pages: u64) -> Option<u64> {
    pages.checked_mul(op.process.page())
}

fn new(op: &mut Operation<'_>) -> Answer {
    let (slot, ua, pages) = (slot(op, 1), op.number(2), op.number(3));
    // A page list that long fits into no memory.
    let Some(bytes) = bytes_of(op, pages) else { return failed_for(Errno::ENOMEM, "count") };
    let memory = op.process.host.range(ua, bytes);
    match op.process.regions.space.register_new(&memory) {
        Ok(registration) => {
            op.process.regions.put_in(slot, Slot::new(registration, None));
            Answer::done()
        }
        Err(error) => refused(&error),
    }
}

fn new_device(op: &mut Operation<'_>) -> Answer {
    let (slot, ua, pages, host) = (slot(op, 1), op.number(2), op.number(3), op.number(4));
    let Some(bytes) = bytes_of(op, pages) else { return failed_for(Errno::EINVAL, "wraps") };
    let space = &op.process.regions.space;
    match space.register_device(UserAddr::new(ua), bytes, HostAddr::new(host)) {
        Ok(registration) => {
            let device = Slot::new(registration, Some(HostAddr::new(host)));
            op.process.regions.put_in(slot, device);
            Answer::done()
        }
        Err(error) => refused(&error),
    }
}

fn get(op: &mut Operation<'_>) -> Answer {
    let (ua, pages) = (UserAddr::new(op.number(1)), op.number(2));
    let none = Answer::done().with("slot=none");
    let Some(bytes) = bytes_of(op, pages) else { return none };
    let regions = &mut op.process.regions;
    let Some(registration) = regions.space.share(ua, bytes) else { return none };
    let (number, name) = regions.name_of(ua, bytes);
    match number.and_then(|number| regions.slots.get_mut(&number)) {
        Some(slot) => slot.registrations.push(registration),
        None => {
            regions.nameless.push(Slot::new(registration, None));
        }
    }
    Answer::done().with(name)
}

fn put(op: &mut Operation<'_>) -> Answer {
    let number = slot(op, 1);
    let regions = &mut op.process.regions;
    let Some(slot) = regions.slots.get_mut(&number) else { return dead() };
    let Some(registration) = slot.registrations.pop() else { return dead() };
    match registration.unregister() {
        Ok(()) => {
            if slot.registrations.is_empty() {
                let gone = regions.slots.remove(&number);
                // Mappings of a region that has other registrations.
                regions.nameless.extend(gone.filter(|slot| !slot.mappings.is_empty()));
            }
            Answer::done()
        }
        Err(kept) => {
            let errno = kept.errno();
            slot.registrations.push(kept.into_inner());
            failed_for(errno, "mapped")
        }
    }
}

fn lookup(op: &mut Operation<'_>) -> Answer {
    let (ua, bytes) = (UserAddr::new(op.number(1)), op.number(2));
    let regions = &op.process.regions;
    match regions.space.find(ua, bytes) {
        Some(found) => Answer::done().with(regions.name_of(found.ua, found.bytes).1),
        None => {
            let cause = if bytes == 0 {
                "empty"
            } else if ua.checked_add(bytes).is_none() {
                "wraps"
            } else {
                ""
            };
            Answer { cause, ..Answer::done().with("slot=none") }
        }
    }
}

fn translate(op: &mut Operation<'_>) -> Answer {
    let (number, ua, shift) = (slot(op, 1), UserAddr::new(op.number(2)), op.number(3));
    let exact = op.flag("exact");
    let page = op.process.page();
    let Regions { slots, translator, .. } = &mut op.process.regions;
    let Some(slot) = slots.get(&number) else { return dead() };
    let shift = u32::try_from(shift).ok().and_then(PageShift::new);
    let inside = slot.registrations.first().is_some_and(|held| held.range().holds(ua, 1));
    let Some(shift) = shift.filter(|_| inside) else { return failed(Errno::EFAULT) };
    match translator.map(ua, shift) {
        Ok(mapping) if exact => Answer::done().with(format!("hpa={:#x}", mapping.hpa().raw())),
        Ok(mapping) => Answer::done().with(format!("hpa=page+{:#x}", mapping.hpa().raw() & (page - 1))),
        Err(error) => {
            let cause = if slot.device.is_some() { "device-page" } else { "" };
            failed_for(error.errno(), cause)
        }
    }
}

fn is_device(op: &mut Operation<'_>) -> Answer {
    let (host, shift) = (HostAddr::new(op.number(1)), op.number(2));
    let bytes = u32::try_from(shift).ok().and_then(|shift| 1u64.checked_shl(shift)).unwrap_or(0);
    match op.process.regions.space.device_at(host, bytes) {
        Some(covered) => Answer::done().with(format!("devmem=1 size={covered:#x}")),
        None => Answer::done().with("devmem=0 size=0x0"),
    }
}

fn map(op: &mut Operation<'_>) -> Answer {
    let number = slot(op, 1);
    let Regions { slots, translator, .. } = &mut op.process.regions;
    let Some(slot) = slots.get_mut(&number) else { return dead() };
    let Some(held) = slot.registrations.first() else { return dead() };
    // One byte: every region can be mapped with that.
    let Some(byte) = PageShift::new(0) else { return dead() };
    match translator.map(held.ua(), byte) {
        Ok(mapping) => {
            slot.mappings.push(mapping);
            Answer::done()
        }
        Err(error) => failed(error.errno()),
    }
}

fn unmap(op: &mut Operation<'_>) -> Answer {
    let number = slot(op, 1);
    let Some(slot) = op.process.regions.slots.get_mut(&number) else { return dead() };
    if slot.mappings.pop().is_some() {
        return Answer::done();
    }
    // There is no mapping of this slot to release, and one of another slot cannot be released.
    let mapped = slot.registrations.first().and_then(Registration::state).map_or(1, |state| state.mapped);
    failed_for(Errno::EINVAL, if mapped > 1 { "not-mine" } else { "unbalanced" })
}
