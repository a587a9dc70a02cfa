//! Registrations: `prereg_registration`, one owner's claim on a region, and the ways to give it up.

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::c_int;
use std::sync::{Arc, Weak};

use prereg::{AddressSpace, Draining, Errno, HostAddr, Registration, UserAddr};

use crate::caller::{array, out_if, tell};
use crate::failure::{Failure, answer, prereg_error, value_or};
use crate::handle::{Parts, body, hand_out, kinds, split_all, surrender, take};
use crate::ports::{CallersMemory, prereg_keep};
use crate::record;
use crate::region::{prereg_region, prereg_run, region_of};
use crate::space::prereg_space;
use crate::words::{holder_from, prereg_holder};

/// One registration of a region, which stays pinned as long as one of them lives. Any thread; giving it up only when no
/// other thread uses the handle.
#[derive(Debug)]
pub struct prereg_registration(());

/// A registration, and the space it is of.
#[derive(Debug)]
pub struct Claim {
    registration: Registration,
    space: Weak<AddressSpace>,
}

/// A region on its way out: no registration, no new mappings.
#[derive(Debug)]
pub struct prereg_draining(());

kinds! {
    prereg_registration, Claim, 3;
    prereg_draining, Draining, 4;
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
    space: *const prereg_space,
    ua: u64,
    bytes: u64,
    holder: *const prereg_holder,
    keep: *const prereg_keep,
    registration: *mut *mut prereg_registration,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        hand_out(registration, || {
            let space = body(space)?;
            let holder = holder_from(holder)?;
            space.resume();
            let memory = CallersMemory::new(ua, bytes, record::read_if(keep)?);
            let registration = space.space.register_for(&memory, holder)?;
            memory.taken();
            Ok(Claim { registration, space: Arc::downgrade(&space.space) })
        })
    })
}

/// Like `prereg_register`, but always as a new region.
///
/// Returns as `prereg_register`; -EINVAL also when the range is registered already.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_register_new(
    space: *const prereg_space,
    ua: u64,
    bytes: u64,
    keep: *const prereg_keep,
    registration: *mut *mut prereg_registration,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        hand_out(registration, || {
            let space = body(space)?;
            space.resume();
            let memory = CallersMemory::new(ua, bytes, record::read_if(keep)?);
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
    space: *const prereg_space,
    ua: u64,
    bytes: u64,
    host: u64,
    registration: *mut *mut prereg_registration,
    error: *mut prereg_error,
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
    space: *const prereg_space,
    ua: u64,
    bytes: u64,
    holder: *const prereg_holder,
    registration: *mut *mut prereg_registration,
    error: *mut prereg_error,
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
    registration: *mut *mut prereg_registration,
    mapped: *mut u64,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        let mapped = out_if(mapped, "mapped")?;
        let mut live = 0;
        let result = unregister(registration, &mut live);
        tell(mapped, live);
        result
    })
}

fn unregister(place: *mut *mut prereg_registration, mapped: &mut u64) -> Result<(), Failure> {
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
/// Returns 0; -EBUSY when at least one was refused: `*refused` (may be NULL) says how many; -EINVAL when something in the array is
/// no registration, or stands there twice: nothing has changed then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unregister_many(
    registrations: *mut *mut prereg_registration,
    count: usize,
    refused: *mut usize,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        let refused = out_if(refused, "refused")?;
        let places = array(registrations, count, "registrations")?;
        let mut parts = split_all(places)?;
        let mut failures = Vec::new();
        while let Some((_, (_, first))) = parts.first() {
            let space = first.space.clone();
            let others = parts.iter().position(|(_, (_, claim))| !claim.space.ptr_eq(&space));
            let rest = parts.split_off(others.unwrap_or(parts.len()));
            unregister_together(parts, places, &mut failures);
            parts = rest;
        }
        tell(refused, failures.len());
        failures.into_iter().next().map_or(Ok(()), Err)
    })
}

/// Gives those of one space up; the refused go back to their places.
fn unregister_together(
    parts: Vec<(usize, Parts<prereg_registration>)>,
    places: &mut [*mut prereg_registration],
    failures: &mut Vec<Failure>,
) {
    let (mut registrations, mut origins) = (Vec::new(), Vec::new());
    for (index, (vacant, Claim { registration, space })) in parts {
        origins.push((registration.range(), registration.holder(), space, vacant, index));
        registrations.push(registration);
    }
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
            let (_, _, space, vacant, index) = origins.remove(origin);
            places[index] = vacant.fill(Claim { registration, space });
        }
    }
}

/// Gives a registration up without waiting and without being refused, and sets `*registration` to NULL: if it is the last
/// one, no new mapping is made from here on and the region is released when the last old one goes. `draining` (may be
/// NULL) is set to a handle that reports the completion.
///
/// Returns 0, also for NULL (`*draining` is then NULL too).
#[unsafe(no_mangle)]
pub extern "C" fn prereg_drain(
    registration: *mut *mut prereg_registration,
    draining: *mut *mut prereg_draining,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        if draining.is_null() {
            return take(registration).map(|claim| drop(claim.map(|claim| claim.registration.drain())));
        }
        let made = hand_out(draining, || {
            let claim = take(registration)?.ok_or(Failure::Null("registration"))?;
            Ok(claim.registration.drain())
        });
        match made {
            // Nothing to drain: `*draining` is NULL.
            Err(Failure::Null("registration")) => Ok(()),
            made => made,
        }
    })
}

/// `prereg_drain`, and waits until the region is released or registered again. Blocks as long as it is mapped.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unregister_when_idle(
    registration: *mut *mut prereg_registration,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        if let Some(claim) = take(registration)? {
            claim.registration.unregister_when_idle();
        }
        Ok(())
    })
}

/// Whether the region is released (or registered again): 1 or 0. Releases it if it is time. 1 for NULL;
/// -EINVAL for what is no such handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_draining_is_done(draining: *const prereg_draining) -> c_int {
    if draining.is_null() {
        return 1;
    }
    value_or(-Errno::EINVAL.raw(), || Ok(c_int::from(body(draining)?.is_done())))
}

/// Waits until it is, frees the handle and sets `*draining` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_draining_wait(draining: *mut *mut prereg_draining) -> c_int {
    answer(std::ptr::null_mut(), || {
        if let Some(draining) = take(draining)? {
            draining.wait();
        }
        Ok(())
    })
}

/// Frees the handle and sets `*draining` to NULL; the region is released all the same.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_draining_free(draining: *mut *mut prereg_draining) -> c_int {
    answer(std::ptr::null_mut(), || take(draining).map(drop))
}

/// The first byte; 0 for what is no registration.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_ua(registration: *const prereg_registration) -> u64 {
    value_or(0, || Ok(body(registration)?.registration.ua().raw()))
}

/// The length in bytes; 0 for what is no registration.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_bytes(registration: *const prereg_registration) -> u64 {
    value_or(0, || Ok(body(registration)?.registration.bytes()))
}

/// The largest page, as a power of two, with which `bytes` bytes at `ua` can be mapped; for the whole range that is what
/// `prereg_map` accepts anywhere in it. 0 when the range is not inside.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_largest_page(
    registration: *const prereg_registration,
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
    registration: *const prereg_registration,
    region: *mut prereg_region,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        let registration = &body(registration)?.registration;
        let region = record::out(region)?;
        let gone = || Failure::Refused("the address space is gone".to_owned(), Errno::ENOENT);
        region.write(&region_of(&registration.state().ok_or_else(gone)?));
        Ok(())
    })
}

/// The runs of contiguous host memory of the region, in order, from number `first` on: for audits and reports. At most `room` are
/// written, which lie as far apart as `runs[0].size` says; `*total` (may be NULL) is set to how many there are.
///
/// What it shows is true while the registration lives and promises nothing to a device: for that, map.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_runs(
    registration: *const prereg_registration,
    first: usize,
    runs: *mut prereg_run,
    room: usize,
    total: *mut usize,
    error: *mut prereg_error,
) -> c_int {
    answer(error, || {
        let (places, total) = (record::out_array(runs, room)?, out_if(total, "total")?);
        let registration = &body(registration)?.registration;
        let mut number = 0_usize;
        registration.visit_runs(|ua, host, bytes| {
            if let Some(index) = number.checked_sub(first) {
                places.write(index, &prereg_run { size: 0, ua: ua.raw(), host: host.raw(), bytes });
            }
            number += 1;
        });
        tell(total, number);
        Ok(())
    })
}
