//! What can be seen of a space: plain structs, and a snapshot of everything.

#![expect(unsafe_code, reason = "names for C; fills arrays that a C caller names by address and length")]

use std::ffi::c_int;
use std::mem::MaybeUninit;

use prereg::{HolderTotal, RegionState, SpaceState};

use crate::array::Array;
use crate::failure::{Failure, answer, prereg_error, value_or};
use crate::handle::{Handle, body, hand_out, kinds, room, take};
use crate::region::{held_of, prereg_held, prereg_region, region_of};
use crate::space::prereg_space;

/// The sums of a space at some moment.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_totals {
    /// Regions.
    pub regions: u64,
    /// System pages pinned for them.
    pub pinned_pages: u64,
    /// System pages charged for them.
    pub charged_pages: u64,
    /// Ranges pinned since the beginning.
    pub pins: u64,
    /// Ranges unpinned since the beginning.
    pub unpins: u64,
    /// Translators that exist.
    pub translators: u64,
    /// Old tables and headers of gone regions that an idle translator still sits on.
    pub unreclaimed: u64,
}

/// A snapshot of a space: plain data that does not change. Any thread.
#[derive(Debug)]
pub struct prereg_state(Handle<SpaceState>);

kinds! {
    prereg_state, SpaceState, b"pr-state";
}

/// Takes a snapshot of everything there is to see.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_new(
    space: Option<&prereg_space>,
    state: Option<&mut MaybeUninit<Option<Box<prereg_state>>>>,
    error: Option<&mut MaybeUninit<prereg_error>>,
) -> c_int {
    answer(error, || hand_out(state, || Ok(body(space)?.space.snapshot())))
}

/// Frees it and sets `*state` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_free(state: Option<&mut Option<Box<prereg_state>>>) -> c_int {
    answer(None, || take(state).map(drop))
}

/// The sums. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_totals(
    state: Option<&prereg_state>,
    totals: Option<&mut MaybeUninit<prereg_totals>>,
) -> c_int {
    answer(None, || {
        let state = body(state)?;
        room(totals, "totals")?.write(prereg_totals {
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

/// How many regions it shows; 0 for what is no snapshot.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_regions(state: Option<&prereg_state>) -> usize {
    value_or(0, || Ok(body(state)?.regions.len()))
}

fn region(state: Option<&prereg_state>, index: usize) -> Result<&RegionState, Failure> {
    body(state)?.regions.get(index).ok_or(Failure::Argument("the snapshot has no region of that number"))
}

/// Region `index`, by ascending address. Returns 0 or -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_state_region(
    state: Option<&prereg_state>,
    index: usize,
    into: Option<&mut MaybeUninit<prereg_region>>,
) -> c_int {
    answer(None, || {
        room(into, "into")?.write(region_of(region(state, index)?));
        Ok(())
    })
}

/// Who holds registrations of region `index`: at most `room` are written, `*total` (may be NULL) is set to how many there
/// are. Returns 0 or -EINVAL.
///
/// # Safety
/// `held` has room for `room` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prereg_state_registrations(
    state: Option<&prereg_state>,
    index: usize,
    held: *mut MaybeUninit<prereg_held>,
    room: usize,
    total: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    answer(None, || {
        // SAFETY: as this function's.
        let into = unsafe { Array::new(held, room, "held") }?;
        show(&region(state, index)?.registrations, into, total);
        Ok(())
    })
}

/// Who holds mappings of region `index`, in the same way. Exact when nobody maps or unmaps meanwhile.
///
/// # Safety
/// `held` has room for `room` elements.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn prereg_state_mappings(
    state: Option<&prereg_state>,
    index: usize,
    held: *mut MaybeUninit<prereg_held>,
    room: usize,
    total: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    answer(None, || {
        // SAFETY: as this function's.
        let into = unsafe { Array::new(held, room, "held") }?;
        show(&region(state, index)?.mappings, into, total);
        Ok(())
    })
}

fn show(
    list: &[HolderTotal],
    into: Array<'_, MaybeUninit<prereg_held>>,
    total: Option<&mut MaybeUninit<usize>>,
) {
    for (place, held) in into.into_mut().iter_mut().zip(list) {
        place.write(held_of(held));
    }
    if let Some(total) = total {
        total.write(list.len());
    }
}
