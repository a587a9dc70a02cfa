//! The state of a space: plain structs, and a snapshot of everything.

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::c_int;

use prereg::{HolderTotal, RegionState, SpaceState};

use crate::caller::{out_if, tell};
use crate::error::{CallError, prereg_error, run_call, value_or};
use crate::handle::{body, create_handle, kinds, take};
use crate::record::{self, OutRecords, records};
use crate::region::{held_of, prereg_held, prereg_region, region_of};
use crate::space::prereg_space;

/// The sums of a space at one moment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_totals {
    /// sizeof(struct prereg_totals), set by the caller.
    pub size: usize,
    /// Regions.
    pub regions: u64,
    /// System pages pinned for them.
    pub pinned_pages: u64,
    /// System pages charged for them.
    pub charged_pages: u64,
    /// Ranges pinned since the space was created.
    pub pins: u64,
    /// Ranges unpinned since the space was created.
    pub unpins: u64,
    /// Existing translators.
    pub translators: u64,
    /// Old tables and headers of released regions that an idle translator keeps.
    pub unreclaimed: u64,
}

/// A snapshot of a space: plain data that does not change. Any thread.
#[derive(Debug)]
pub struct prereg_state(());

records!(prereg_totals);

kinds! {
    prereg_state, SpaceState, 2;
}

/// Takes a snapshot of the whole space.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_new(
    space: *const prereg_space,
    state: *mut *mut prereg_state,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || create_handle(state, || Ok(body(space)?.space.snapshot())))
}

/// Frees the handle and sets `*state` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_free(state: *mut *mut prereg_state) -> c_int {
    run_call(std::ptr::null_mut(), || take(state).map(drop))
}

/// The sums. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_totals(state: *const prereg_state, totals: *mut prereg_totals) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let (state, totals) = (body(state)?, record::out(totals)?);
        totals.write(&prereg_totals {
            size: 0,
            regions: state.regions.len() as u64,
            pinned_pages: state.pinned_pages,
            charged_pages: state.charged_pages,
            pins: state.pins,
            unpins: state.unpins,
            translators: state.translators,
            unreclaimed: state.unreclaimed,
        });
        Ok(())
    })
}

/// The number of regions; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_regions(state: *const prereg_state) -> usize {
    value_or(0, || Ok(body(state)?.regions.len()))
}

fn region<'a>(state: *const prereg_state, index: usize) -> Result<&'a RegionState, CallError> {
    let regions = &body(state)?.regions;
    let none = CallError::Number { what: "region", found: index, count: regions.len() };
    regions.get(index).ok_or(none)
}

/// Region `index`, by ascending address. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_region(
    state: *const prereg_state,
    index: usize,
    into: *mut prereg_region,
) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let into = record::out(into)?;
        into.write(&region_of(region(state, index)?));
        Ok(())
    })
}

/// The holders of registrations of region `index`: at most `room` are written, `held[0].size` bytes apart; `*total`
/// (may be NULL) is set to the number of all. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_registrations(
    state: *const prereg_state,
    index: usize,
    held: *mut prereg_held,
    room: usize,
    total: *mut usize,
) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let into = record::out_array(held, room)?;
        show(&region(state, index)?.registrations, &into, total)
    })
}

/// The holders of mappings of region `index`, as `prereg_state_registrations`. Exact if no thread maps or unmaps meanwhile.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_mappings(
    state: *const prereg_state,
    index: usize,
    held: *mut prereg_held,
    room: usize,
    total: *mut usize,
) -> c_int {
    run_call(std::ptr::null_mut(), || {
        let into = record::out_array(held, room)?;
        show(&region(state, index)?.mappings, &into, total)
    })
}

fn show(list: &[HolderTotal], into: &OutRecords, total: *mut usize) -> Result<(), CallError> {
    let total = out_if(total, "total")?;
    for (index, held) in list.iter().take(into.count()).enumerate() {
        into.write(index, &held_of(held));
    }
    tell(total, list.len());
    Ok(())
}
