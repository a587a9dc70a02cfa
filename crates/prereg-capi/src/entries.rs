//! Entry blocks, for callers with IOMMU tables of their own.

#![expect(unsafe_code, reason = "names for C")]

use std::ffi::c_int;

use prereg::{EntryBlock, UserAddr};

use crate::caller::{out, out_if, tell};
use crate::error::{CallError, prereg_error, run_call, value_or};
use crate::handle::{body, body_mut, create_handle, kinds, take};
use crate::record::{self, records};
use crate::space::prereg_space;
use crate::translator::{prereg_mapping, prereg_translator};
use crate::types::{access_from, access_of, choice, holder_from, prereg_holder, shift_from};

/// A block of entries of one page size, each of which may own one counted mapping. Any number of threads at once: changes
/// of one entry are serialised.
#[derive(Debug)]
pub struct prereg_entries(());

kinds! {
    prereg_entries, EntryBlock, 6;
}

/// A live entry at one moment. Only a mapping, from `prereg_entries_take` or
/// `prereg_table_take`, has a host address.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_entry {
    /// sizeof(struct prereg_entry), set by the caller.
    pub size: usize,
    /// The user address of the page.
    pub ua: u64,
    /// The allowed accesses: `PREREG_ACCESS_...`, or'ed.
    pub access: u32,
    /// Zero.
    pub reserved: u32,
}

records!(prereg_entry);

/// Creates `count` empty entries for pages of `2^shift` bytes, 12 at least. `holder` (may be NULL) is the holder of their
/// mappings: use translators of the same holder.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_entries_new(
    space: *const prereg_space,
    shift: u32,
    count: usize,
    holder: *const prereg_holder,
    entries: *mut *mut prereg_entries,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(entries, || {
            let space = body(space)?;
            let shift = shift_from(shift)?;
            if shift.get() < 12 {
                return Err(choice(
                    "the page shift",
                    shift.get(),
                    "12 to 63: no table has pages below 4 KiB",
                ));
            }
            Ok(EntryBlock::new(&space.space, shift, count, holder_from(holder)?)?)
        })
    })
}

/// Releases the mappings of all entries, frees the block and sets `*entries` to NULL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_entries_free(entries: *mut *mut prereg_entries) -> c_int {
    run_call(std::ptr::null_mut(), || take(entries).map(drop))
}

/// The number of entries; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_entries_count(entries: *const prereg_entries) -> usize {
    value_or(0, || Ok(body(entries)?.len()))
}

/// The number of live entries, counted at the call; 0 for an invalid handle.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_entries_live(entries: *const prereg_entries) -> u64 {
    value_or(0, || Ok(body(entries)?.live()))
}

/// Maps the page at `ua`, which must be aligned, into entry `index`. Its old mapping is released (its page marked
/// dirty if the device could write it); `*before` (may be NULL) is set to the old access, 0 if the entry was empty.
///
/// Returns 0; as `prereg_map`; -EINVAL also for a bad index, a misaligned address or a translator of another space; -EAGAIN
/// while another thread changes the same entry. Nothing changes then.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_entries_set(
    entries: *const prereg_entries,
    translator: *mut prereg_translator,
    index: usize,
    ua: u64,
    access: u32,
    before: *mut u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (entries, access, before) = (body(entries)?, access_from(access)?, out_if(before, "before")?);
        if index >= entries.len() {
            return Err(CallError::Number { what: "entry", found: index, count: entries.len() });
        }
        let was = entries.set(&mut body_mut(translator)?.translator, index, UserAddr::new(ua), access)?;
        tell(before, access_of(was));
        Ok(())
    })
}

/// Clears entry `index`; an entry beyond the end counts as empty. `*before` as in `prereg_entries_set`.
///
/// Returns 0; -EINVAL, -EAGAIN.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_entries_clear(
    entries: *const prereg_entries,
    translator: *mut prereg_translator,
    index: usize,
    before: *mut u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let before = out_if(before, "before")?;
        let was = body(entries)?.clear(&mut body_mut(translator)?.translator, index)?;
        tell(before, access_of(was));
        Ok(())
    })
}

/// Returns entry `index` without its host address, which only a mapping from `prereg_entries_take` has. Waits while another
/// thread changes the entry, which takes a few instructions; not for signal handlers.
///
/// Returns 1 if it is live, 0 if it is empty (`*entry` is unchanged), -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_entries_inspect(
    entries: *const prereg_entries,
    index: usize,
    entry: *mut prereg_entry,
) -> c_int {
    value_or(-prereg::Errno::EINVAL.raw(), || {
        let place = record::out(entry)?;
        let seen = body(entries)?.view(index);
        Ok(seen.map_or(0, |view| {
            place.write(&entry_of(&view));
            1
        }))
    })
}

pub(crate) fn entry_of(view: &prereg::EntryView) -> prereg_entry {
    prereg_entry { size: 0, ua: view.ua.raw(), access: access_of(Some(view.access)), reserved: 0 }
}

/// Maps the page of entry `index` once more, for the duration of a device's access through the entry. `*access` (may be NULL) is set
/// to the permitted access.
///
/// Returns 1; 0 when the entry is empty (`*mapping` is unchanged); -EAGAIN, -EINVAL, -ENXIO.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_entries_take(
    entries: *const prereg_entries,
    translator: *mut prereg_translator,
    index: usize,
    mapping: *mut prereg_mapping,
    access: *mut u32,
    error: *mut prereg_error,
) -> c_int {
    let mut live = 0;
    let code = run_call(error, || {
        let (place, access) = (out(mapping, "mapping")?, out_if(access, "access")?);
        let reader = body_mut(translator)?;
        if let Some((taken, allowed)) = body(entries)?.hold_mapping(&mut reader.translator, index)? {
            reader.keep_page(&place, taken)?;
            tell(access, access_of(Some(allowed)));
            live = 1;
        }
        Ok(())
    });
    if code == 0 { live } else { code }
}
