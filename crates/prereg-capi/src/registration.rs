//! Registrations: `prereg_registration`, one owner's claim on a region, and the ways to give it up.

#![expect(
    unsafe_code,
    reason = "names for C; fills and reads arrays that a C caller names by address and length"
)]

use std::ffi::c_int;
use std::mem::MaybeUninit;
use std::sync::{Arc, Weak};

use prereg::{AddressSpace, Draining, Errno, HostAddr, Registration, UserAddr};

use crate::array::Array;
use crate::failure::{Failure, answer, prereg_error, value_or};
use crate::handle::{Handle, body, hand_out, into_body, kinds, room, split, surrender, take};
use crate::ports::{CallersMemory, prereg_keep};
use crate::region::{prereg_region, prereg_run, region_of};
use crate::space::prereg_space;
use crate::words::{holder_from, prereg_holder};

/// One registration of a region, which stays pinned as long as one of them lives. Any thread; giving it up only when no
/// other thread uses the handle.
#[derive(Debug)]
pub struct prereg_registration(Handle<Claim>);

/// A registration, and the space it is of.
#[derive(Debug)]
pub struct Claim {
    registration: Registration,
    space: Weak<AddressSpace>,
}

/// A region on its way out: no registration, no new mappings.
#[derive(Debug)]
pub struct prereg_draining(Handle<Draining>);

kinds! {
    prereg_registration, Claim, b"pr-regis";
    prereg_draining, Draining, b"pr-drain";
}

/// Registers `bytes` bytes at `ua`: pins and charges them, or shares the region of just this range if there is one (no
/// new pin, no new charge).
///
/// The memory must stay mapped, and stay the same memory (no munmap, no mmap over it, no MADV_DONTNEED, no hole punched,
/// no truncation), until the region is released; or until `release` of `keep`, if one is passed. `holder` and `keep` may
/// be NULL.
///
/// Returns 0; -EINVAL (not whole pages, empty, past 2^64, overlaps a region of another shape), -ENOMEM (over the
/// locked-memory limit), -EFAULT (cannot be pinned), -ENOSPC (too many), or what the back end said. Nothing is pinned,
/// charged or listed then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_register(
    space: Option<&prereg_space>,
    ua: u64,
    bytes: u64,
    holder: Option<&prereg_holder>,
    keep: Option<&prereg_keep>,
    registration: Option<&mut MaybeUninit<Option<Box<prereg_registration>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        hand_out(registration, || {
            let space = body(space)?;
            let holder = holder_from(holder)?;
            space.resume();
            let memory = CallersMemory::new(ua, bytes, keep);
            let registration = space.space.register_for(&memory, holder)?;
            memory.taken();
            Ok(Claim { registration, space: Arc::downgrade(&space.space) })
        })
    })
}

/// The same as a new region.
///
/// Returns as `prereg_register`; -EINVAL also when the range is registered already.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_register_new(
    space: Option<&prereg_space>,
    ua: u64,
    bytes: u64,
    keep: Option<&prereg_keep>,
    registration: Option<&mut MaybeUninit<Option<Box<prereg_registration>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        hand_out(registration, || {
            let space = body(space)?;
            space.resume();
            let memory = CallersMemory::new(ua, bytes, keep);
            let registration = space.space.register_new(&memory)?;
            memory.taken();
            Ok(Claim { registration, space: Arc::downgrade(&space.space) })
        })
    })
}

/// Registers device memory that lies at host address `host`: nothing is pinned, charged or marked dirty. Always a new
/// region.
///
/// Returns 0; -EINVAL as `prereg_register_new`, also when `host + bytes` passes 2^64.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_register_device(
    space: Option<&prereg_space>,
    ua: u64,
    bytes: u64,
    host: u64,
    registration: Option<&mut MaybeUninit<Option<Box<prereg_registration>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        hand_out(registration, || {
            let space = &body(space)?.space;
            let registration = space.register_device(UserAddr::new(ua), bytes, HostAddr::new(host))?;
            Ok(Claim { registration, space: Arc::downgrade(space) })
        })
    })
}

/// One more registration of the region of exactly `bytes` bytes at `ua`. The memory is not looked at.
///
/// Returns 0; -ENOENT when there is no such region.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_share(
    space: Option<&prereg_space>,
    ua: u64,
    bytes: u64,
    holder: Option<&prereg_holder>,
    registration: Option<&mut MaybeUninit<Option<Box<prereg_registration>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        hand_out(registration, || {
            let space = &body(space)?.space;
            let holder = holder_from(holder)?;
            let registration = space.share_for(UserAddr::new(ua), bytes, holder).ok_or_else(|| {
                let text = format!("no region of exactly {bytes:#x} bytes at ua {ua:#x} is registered");
                Failure::Refused(text, Errno::ENOENT)
            })?;
            Ok(Claim { registration, space: Arc::downgrade(space) })
        })
    })
}

/// Gives a registration up and sets `*registration` to NULL. The last one unpins and uncharges the region before this
/// returns.
///
/// Returns 0, also for NULL; -EBUSY while it is the last one and the region is mapped: then nothing has changed,
/// `*registration` is still good, `*mapped` (may be NULL) says how many mappings live, and the message whose they are.
/// -ENOENT when the space is gone: the handle is then freed.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unregister(
    registration: Option<&mut Option<Box<prereg_registration>>>,
    mapped: Option<&mut MaybeUninit<u64>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let mut live = 0;
        let result = unregister(registration, &mut live);
        if let Some(mapped) = mapped {
            mapped.write(live);
        }
        result
    })
}

fn unregister(place: Option<&mut Option<Box<prereg_registration>>>, mapped: &mut u64) -> Result<(), Failure> {
    surrender(place, |Claim { registration, space }| {
        let Err(error) = registration.unregister() else { return (None, Ok(())) };
        *mapped = error.mapped();
        let failure = Failure::from(&error);
        let busy = error.errno() == Errno::EBUSY;
        (busy.then(|| Claim { registration: error.into_inner(), space }), Err(failure))
    })
}

/// `prereg_unregister` for `count` of them, of any spaces: those of one space that stand together cost one fence on every
/// thread instead of one each. Each succeeds or is refused by itself; those given up become NULL, the refused stay.
///
/// Returns 0, or -EBUSY when at least one was refused; `*refused` (may be NULL) says how many.
///
/// # Safety
/// `registrations` has `count` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prereg_unregister_many(
    registrations: *mut Option<Box<prereg_registration>>,
    count: usize,
    refused: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        // SAFETY: as this function's.
        let places = unsafe { Array::new(registrations, count, "registrations") }?.into_mut();
        for held in places.iter().filter_map(Option::as_deref) {
            body(Some(held))?;
        }
        let mut first = None;
        let mut busy = 0;
        for together in places.chunk_by_mut(same_space) {
            for error in unregister_together(together)? {
                busy += 1;
                first.get_or_insert(error);
            }
        }
        if let Some(refused) = refused {
            refused.write(busy);
        }
        first.map_or(Ok(()), Err)
    })
}

/// Whether two handles are on one space; NULL goes with any.
fn same_space(one: &Option<Box<prereg_registration>>, other: &Option<Box<prereg_registration>>) -> bool {
    match (body(one.as_deref()), body(other.as_deref())) {
        (Ok(one), Ok(other)) => one.space.ptr_eq(&other.space),
        _ => true,
    }
}

/// Gives those of one space up; why each of the refused was.
fn unregister_together(places: &mut [Option<Box<prereg_registration>>]) -> Result<Vec<Failure>, Failure> {
    let (mut registrations, mut origins) = (Vec::new(), Vec::new());
    for place in places {
        let Some(held) = take(Some(&mut *place))? else { continue };
        let (vacant, Claim { registration, space }) = split(held);
        origins.push((registration.range(), registration.holder(), space, vacant, place));
        registrations.push(registration);
    }
    let mut failures = Vec::new();
    for error in Registration::unregister_many(registrations) {
        failures.push(Failure::from(&error));
        if error.errno() != Errno::EBUSY {
            continue;
        }
        let registration = error.into_inner();
        // Claims on one range by one holder are alike: any handle of them may hold this one.
        let origin = origins.iter().position(|(range, holder, ..)| {
            (*range, *holder) == (registration.range(), registration.holder())
        });
        if let Some(origin) = origin {
            let (_, _, space, vacant, place) = origins.remove(origin);
            *place = Some(vacant.fill(Claim { registration, space }));
        }
    }
    Ok(failures)
}

/// Gives a registration up without waiting and without being refused, and sets `*registration` to NULL: if it is the last
/// one, no new mapping is made from here on and the region is released when the last old one goes. `draining` (may be
/// NULL) is set to a handle that tells when.
///
/// Returns 0, also for NULL (`*draining` is then NULL too).
#[unsafe(no_mangle)]
pub extern "C" fn prereg_drain(
    registration: Option<&mut Option<Box<prereg_registration>>>,
    draining: Option<&mut MaybeUninit<Option<Box<prereg_draining>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let Some(draining) = draining else {
            return take(registration)
                .map(|held| drop(held.map(|held| into_body(held).registration.drain())));
        };
        draining.write(None);
        if registration.as_deref().is_none_or(Option::is_none) {
            return Ok(());
        }
        hand_out(Some(draining), || match take(registration)? {
            Some(held) => Ok(into_body(held).registration.drain()),
            None => Err(Failure::Null("registration")),
        })
    })
}

/// `prereg_drain`, and waits until the region is released, or registered again by somebody. Blocks as long as somebody
/// maps it.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unregister_when_idle(
    registration: Option<&mut Option<Box<prereg_registration>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        if let Some(held) = take(registration)? {
            into_body(held).registration.unregister_when_idle();
        }
        Ok(())
    })
}

/// Whether the region is released (or registered again by somebody): 1 or 0. Releases it if it is time. 1 for NULL;
/// -EINVAL for what is no such handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_draining_is_done(draining: Option<&prereg_draining>) -> c_int {
    if draining.is_none() {
        return 1;
    }
    value_or(-Errno::EINVAL.raw(), || Ok(c_int::from(body(draining)?.is_done())))
}

/// Waits until it is, frees the handle and sets `*draining` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_draining_wait(draining: Option<&mut Option<Box<prereg_draining>>>) -> c_int {
    answer(None, || {
        if let Some(held) = take(draining)? {
            into_body(held).wait();
        }
        Ok(())
    })
}

/// Frees the handle and sets `*draining` to NULL; the region is released all the same.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_draining_free(draining: Option<&mut Option<Box<prereg_draining>>>) -> c_int {
    answer(None, || take(draining).map(drop))
}

/// The first byte; 0 for what is no registration.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_ua(registration: Option<&prereg_registration>) -> u64 {
    value_or(0, || Ok(body(registration)?.registration.ua().raw()))
}

/// The length in bytes; 0 for what is no registration.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_bytes(registration: Option<&prereg_registration>) -> u64 {
    value_or(0, || Ok(body(registration)?.registration.bytes()))
}

/// The largest page, as a power of two, with which `bytes` bytes at `ua` can be mapped; for the whole range that is what
/// `prereg_map` accepts anywhere in it. 0 when the range is not inside.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_largest_page(
    registration: Option<&prereg_registration>,
    ua: u64,
    bytes: u64,
) -> u32 {
    value_or(0, || {
        let registration = &body(registration)?.registration;
        let ua = UserAddr::new(ua);
        if (ua, bytes) == (registration.ua(), registration.bytes()) {
            return Ok(registration.largest_page().get());
        }
        Ok(registration.largest_page_in(ua, bytes).map_or(0, |shift| shift.get()))
    })
}

/// The region as it is now.
///
/// Returns 0; -ENOENT when the space is gone.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_state(
    registration: Option<&prereg_registration>,
    region: Option<&mut MaybeUninit<prereg_region>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let registration = &body(registration)?.registration;
        let region = room(region, "region")?;
        let gone = || Failure::Refused("the address space is gone".to_owned(), Errno::ENOENT);
        region.write(region_of(&registration.state().ok_or_else(gone)?));
        Ok(())
    })
}

/// The runs of contiguous host memory of the region, in order, from number `first` on: for audits and reports. `*total` (may
/// be NULL) is set to how many there are; at most `room` are written.
///
/// What it shows is true while the registration lives and promises nothing to a device: for that, map.
///
/// # Safety
/// `runs` has room for `room` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prereg_registration_runs(
    registration: Option<&prereg_registration>,
    first: usize,
    runs: *mut MaybeUninit<prereg_run>,
    room: usize,
    total: Option<&mut MaybeUninit<usize>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || {
        let registration = &body(registration)?.registration;
        // SAFETY: as this function's.
        let runs = unsafe { Array::new(runs, room, "runs") }?.into_mut();
        let mut number = 0_usize;
        registration.visit_runs(|ua, host, bytes| {
            if let Some(run) = number.checked_sub(first).and_then(|at| runs.get_mut(at)) {
                run.write(prereg_run { ua: ua.raw(), host: host.raw(), bytes });
            }
            number += 1;
        });
        if let Some(total) = total {
            total.write(number);
        }
        Ok(())
    })
}
