//! Registrations: `prereg_registration`, one owner's claim on a region, and the ways to release it.

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::c_int;
use std::sync::{Arc, Weak};

use prereg::{AddressSpace, Draining, Errno, HostAddr, Registration, UserAddr};

use crate::caller::{array, out_if, tell};
use crate::error::{CallError, prereg_error, run_call, value_or};
use crate::handle::{Parts, body, create_handle, detach_all, kinds, release_unless, take};
use crate::ports::{CallersMemory, prereg_keep};
use crate::record;
use crate::region::{prereg_region, prereg_run, region_of};
use crate::space::prereg_space;
use crate::types::{holder_from, prereg_holder};

/// One registration of a region, which stays pinned as long as one of them lives. Any thread; released only while no other
/// thread uses the handle.
#[derive(Debug)]
pub struct prereg_registration(());

/// A registration and its space.
#[derive(Debug)]
pub struct Claim {
    registration: Registration,
    space: Weak<AddressSpace>,
}

/// A draining region: no registration, no new mappings.
#[derive(Debug)]
pub struct prereg_draining(());

kinds! {
    prereg_registration, Claim, 3;
    prereg_draining, Draining, 4;
}

/// Registers `bytes` bytes at `ua`: pins and charges them, or shares the region of exactly this range (no new pin, no
/// new charge).
///
/// The memory must stay mapped and be the same memory (no munmap, no mmap over it, no MADV_DONTNEED, no punched hole,
/// no truncation), until the region is released; or until `release` of `keep`, if one is passed. `holder` and `keep` may
/// be NULL.
///
/// Returns 0; -EINVAL (not whole pages, empty, past 2^64, overlaps a region of another shape), -ENOMEM (over the
/// locked-memory limit), -EFAULT (cannot be pinned), -ENOSPC (too many), or the back end's errno. Then nothing is pinned,
/// charged or listed.
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
    run_call(error, || {
        create_handle(registration, || {
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
    run_call(error, || {
        create_handle(registration, || {
            let space = body(space)?;
            space.resume();
            let memory = CallersMemory::new(ua, bytes, record::read_if(keep)?);
            let registration = space.space.register_new(&memory)?;
            memory.taken();
            Ok(Claim { registration, space: Arc::downgrade(&space.space) })
        })
    })
}

/// Registers device memory at host address `host`: nothing is pinned, charged or marked dirty. Always a new
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
    run_call(error, || {
        create_handle(registration, || {
            let space = &body(space)?.space;
            let registration = space.register_device(UserAddr::new(ua), bytes, HostAddr::new(host))?;
            Ok(Claim { registration, space: Arc::downgrade(space) })
        })
    })
}

/// One more registration of the region of exactly `bytes` bytes at `ua`. The memory is not accessed.
///
/// Returns 0; -ENOENT without such a region.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_share(
    space: *const prereg_space,
    ua: u64,
    bytes: u64,
    holder: *const prereg_holder,
    registration: *mut *mut prereg_registration,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(registration, || {
            let space = &body(space)?.space;
            let holder = holder_from(holder)?;
            let registration = space.share_for(UserAddr::new(ua), bytes, holder).ok_or_else(|| {
                let text = format!("no region of exactly {bytes:#x} bytes at ua {ua:#x} is registered");
                CallError::Refused(text, Errno::ENOENT)
            })?;
            Ok(Claim { registration, space: Arc::downgrade(space) })
        })
    })
}

/// Releases a registration and sets `*registration` to NULL. With the last one the region is unpinned and uncharged before this
/// returns.
///
/// Returns 0, also for NULL; -EBUSY if it is the last one and the region is mapped: then nothing changes, `*registration` stays
/// valid, `*mapped` (may be NULL) is set to the number of live mappings, and the message names their holders. -ENOENT if the space
/// is freed: the handle is then freed.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unregister(
    registration: *mut *mut prereg_registration,
    mapped: *mut u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let mapped = out_if(mapped, "mapped")?;
        let mut live = 0;
        let result = unregister(registration, &mut live);
        tell(mapped, live);
        result
    })
}

fn unregister(place: *mut *mut prereg_registration, mapped: &mut u64) -> Result<(), CallError> {
    release_unless(place, |Claim { registration, space }| {
        let Err(error) = registration.unregister() else { return (None, Ok(())) };
        *mapped = error.mapped();
        let failure = CallError::from(&error);
        let busy = error.errno() == Errno::EBUSY;
        (busy.then(|| Claim { registration: error.into_inner(), space }), Err(failure))
    })
}

/// `prereg_unregister` for `count` registrations, of any spaces: adjacent ones of one space share one fence on every thread. Each succeeds
/// or is refused separately; released ones become NULL, refused ones stay.
///
/// Returns 0; -EBUSY if at least one is refused: `*refused` (may be NULL) is set to the number; -EINVAL if an element of the array is
/// invalid or occurs twice: then nothing changes.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unregister_many(
    registrations: *mut *mut prereg_registration,
    count: usize,
    refused: *mut usize,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let refused = out_if(refused, "refused")?;
        let places = array(registrations, count, "registrations")?;
        let mut parts = detach_all(places)?;
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

/// Releases the registrations of one space; refused ones stay in their variables.
fn unregister_together(
    parts: Vec<(usize, Parts<prereg_registration>)>,
    places: &mut [*mut prereg_registration],
    failures: &mut Vec<CallError>,
) {
    let (mut registrations, mut origins) = (Vec::new(), Vec::new());
    for (index, (vacant, Claim { registration, space })) in parts {
        origins.push((registration.range(), registration.holder(), space, vacant, index));
        registrations.push(registration);
    }
    for error in Registration::unregister_many(registrations) {
        failures.push(CallError::from(&error));
        if error.errno() != Errno::EBUSY {
            continue;
        }
        let registration = error.into_inner();
        // Claims of one holder on one range are equal: any of their handles may have this one.
        let origin = origins.iter().position(|(range, holder, ..)| {
            (*range, *holder) == (registration.range(), registration.holder())
        });
        if let Some(origin) = origin {
            let (_, _, space, vacant, index) = origins.remove(origin);
            places[index] = vacant.fill(Claim { registration, space });
        }
    }
}

/// Releases a registration without waiting or refusal, and sets `*registration` to NULL: if it is the last one, the region is closed
/// for new mappings and released with the last old one. `draining` (may be NULL) is set to a handle that reports the completion.
///
/// Returns 0, also for NULL (`*draining` is then NULL too).
#[unsafe(no_mangle)]
pub extern "C" fn prereg_drain(
    registration: *mut *mut prereg_registration,
    draining: *mut *mut prereg_draining,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        if draining.is_null() {
            return take(registration).map(|claim| drop(claim.map(|claim| claim.registration.drain())));
        }
        let made = create_handle(draining, || {
            let claim = take(registration)?.ok_or(CallError::Null("registration"))?;
            Ok(claim.registration.drain())
        });
        match made {
            // Nothing to drain: `*draining` is NULL.
            Err(CallError::Null("registration")) => Ok(()),
            made => made,
        }
    })
}

/// `prereg_drain`, and waits until the region is released or registered again. Blocks while it is mapped.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_unregister_when_idle(
    registration: *mut *mut prereg_registration,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        if let Some(claim) = take(registration)? {
            claim.registration.unregister_when_idle();
        }
        Ok(())
    })
}

/// Whether the region is released (or registered again): 1 or 0. Releases it if it is unmapped. 1 for NULL;
/// -EINVAL for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_draining_is_done(draining: *const prereg_draining) -> c_int {
    if draining.is_null() {
        return 1;
    }
    value_or(-Errno::EINVAL.raw(), || Ok(c_int::from(body(draining)?.is_done())))
}

/// Waits for the release, frees the handle and sets `*draining` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_draining_wait(draining: *mut *mut prereg_draining) -> c_int {
    run_call(std::ptr::null_mut(), || {
        if let Some(draining) = take(draining)? {
            draining.wait();
        }
        Ok(())
    })
}

/// Frees the handle and sets `*draining` to NULL; the region is still released.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_draining_free(draining: *mut *mut prereg_draining) -> c_int {
    run_call(std::ptr::null_mut(), || take(draining).map(drop))
}

/// The first byte; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_ua(registration: *const prereg_registration) -> u64 {
    value_or(0, || Ok(body(registration)?.registration.ua().raw()))
}

/// The length in bytes; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_bytes(registration: *const prereg_registration) -> u64 {
    value_or(0, || Ok(body(registration)?.registration.bytes()))
}

/// The largest page, as a power of two, with which `bytes` bytes at `ua` can be mapped; for the whole range, the largest
/// page that `prereg_map` accepts anywhere in it. 0 if the range is not in the region.
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

/// The current state of the region.
///
/// Returns 0; -ENOENT if the space is freed.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_state(
    registration: *const prereg_registration,
    region: *mut prereg_region,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let registration = &body(registration)?.registration;
        let region = record::out(region)?;
        let gone = || CallError::Refused("the address space is freed".to_owned(), Errno::ENOENT);
        region.write(&region_of(&registration.state().ok_or_else(gone)?));
        Ok(())
    })
}

/// The runs of contiguous host memory of the region, in order, from number `first` on: for audits and reports. At most `room` are
/// written, `runs[0].size` bytes apart; `*total` (may be NULL) is set to the number of all.
///
/// The addresses are valid while the registration lives, but not for devices, which need mappings.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_registration_runs(
    registration: *const prereg_registration,
    first: usize,
    runs: *mut prereg_run,
    room: usize,
    total: *mut usize,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
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
