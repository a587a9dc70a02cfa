//! Guests: memory slots, guest-visible TCE tables and the four hypercalls, `prereg_guest`.

#![expect(unsafe_code, reason = "names for C; calls a C caller's function that reads guest memory")]

use std::ffi::{c_int, c_void};
use std::sync::Arc;

use prereg::{BusAddr, Errno, GuestAddr, UserAddr};
use prereg_iommu::{Geometry, GuestRead, Hypercall, Hypercalls, Liobn, MemorySlots, NotRam, Rules, TceTable};

use crate::caller::{out, out_if, tell};
use crate::error::{CallError, prereg_error, run_call, value_or};
use crate::handle::{body, body_mut, create_handle, kinds, take};
use crate::record::{self, records};
use crate::table::{geometry_from, prereg_geometry, prereg_table};
use crate::translator::{prereg_mapping, prereg_translator};
use crate::types::{access_of, choice};

/// The rules of QEMU in user space.
pub const PREREG_RULES_QEMU: u32 = 0;
/// The rules of KVM's handlers. A call that KVM passes on to user space follows QEMU's rules.
pub const PREREG_RULES_KVM: u32 = 1;

/// The number of H_GET_TCE.
pub const PREREG_H_GET_TCE: u64 = 0x1c;
/// The number of H_PUT_TCE.
pub const PREREG_H_PUT_TCE: u64 = 0x20;
/// The number of H_STUFF_TCE.
pub const PREREG_H_STUFF_TCE: u64 = 0x138;
/// The number of H_PUT_TCE_INDIRECT.
pub const PREREG_H_PUT_TCE_INDIRECT: u64 = 0x13c;

/// H_SUCCESS.
pub const PREREG_H_SUCCESS: i64 = 0;
/// H_BUSY: another vCPU keeps changing the same entry; nothing changed.
pub const PREREG_H_BUSY: i64 = 1;
/// H_HARDWARE: the translator is of another space.
pub const PREREG_H_HARDWARE: i64 = -1;
/// H_PARAMETER: a bad argument.
pub const PREREG_H_PARAMETER: i64 = -4;
/// H_RESOURCE: no memory for a part of a table.
pub const PREREG_H_RESOURCE: i64 = -16;
/// H_TOO_HARD: the fast path cannot do it. A guest never receives it.
pub const PREREG_H_TOO_HARD: i64 = 9999;

/// The port to guest memory, for the lists of H_PUT_TCE_INDIRECT: fills `values` with the `count` (512 at most) numbers at
/// guest address `gpa`, a multiple of 4 KiB: 8 bytes each, big-endian in guest memory, in the host's order here. Returns 0, or
/// another value if they are not all in guest memory.
pub type prereg_read_list =
    Option<unsafe extern "C" fn(context: *mut c_void, gpa: u64, values: *mut u64, count: usize) -> c_int>;

/// The registers of a guest at a hypercall.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_call {
    /// sizeof(struct prereg_call).
    pub size: usize,
    /// Register 3: a `PREREG_H_..._TCE...`.
    pub number: u64,
    /// Registers 4 to 7.
    pub arguments: [u64; 4],
}

/// The result of a hypercall.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_reply {
    /// sizeof(struct prereg_reply), set by the caller.
    pub size: usize,
    /// Register 3: a `PREREG_H_...`.
    pub code: i64,
    /// Register 4 after an H_GET_TCE that succeeded.
    pub value: u64,
    /// 1: `value` is set; otherwise the register keeps its value.
    pub has_value: u32,
    /// 1: the fast path returned H_TOO_HARD, and this is the result of the slow path.
    pub handed_over: u32,
}

/// The result of a device's access to a bus address.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct prereg_lookup {
    /// sizeof(struct prereg_lookup), set by the caller.
    pub size: usize,
    /// The guest page of the guest's entry.
    pub gpa: u64,
    /// Its size as a power of two.
    pub shift: u32,
    /// The accesses that the guest's entry allows: `PREREG_ACCESS_...`, or'ed.
    pub guest_access: u32,
    /// The accesses that the hardware's entry allows; 0 if no hardware table maps it.
    pub host_access: u32,
    /// Zero.
    pub reserved: u32,
}

/// A guest: its memory slots and its TCE tables. Hypercalls and lookups run on any number of threads at once, each with a
/// translator of its own; every other call only while none of these runs.
#[derive(Debug)]
pub struct prereg_guest(());

records!(prereg_call, prereg_reply, prereg_lookup);

kinds! {
    prereg_guest, Hypercalls, 8;
}

struct List {
    function: prereg_read_list,
    context: *mut c_void,
}

impl GuestRead for List {
    fn read_list(&self, at: GuestAddr, values: &mut [u64]) -> Result<(), NotRam> {
        let function = self.function.ok_or(NotRam)?;
        // SAFETY: the caller's function with the caller's context, and room for the number of values that is passed to it.
        match unsafe { function(self.context, at.raw(), values.as_mut_ptr(), values.len()) } {
            0 => Ok(()),
            _ => Err(NotRam),
        }
    }
}

/// Creates a guest without memory and tables; `rules` is a `PREREG_RULES_...`.
///
/// Returns 0; -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_new(
    rules: u32,
    guest: *mut *mut prereg_guest,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        create_handle(guest, || {
            let rules = match rules {
                PREREG_RULES_QEMU => Rules::Qemu,
                PREREG_RULES_KVM => Rules::Kvm,
                _ => return Err(choice("rules", rules, "PREREG_RULES_...")),
            };
            Ok(Hypercalls::new(rules, MemorySlots::new()))
        })
    })
}

/// Frees the guest and its tables, and sets `*guest` to NULL. Hardware tables without other users release their
/// mappings.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_free(guest: *mut *mut prereg_guest) -> c_int {
    run_call(std::ptr::null_mut(), || take(guest).map(drop))
}

/// Adds a memory slot: `bytes` bytes of user memory from `ua` on at the guest addresses from `gpa` on; all multiples of 4 KiB.
///
/// Returns 0; -EINVAL, -EEXIST (another slot has some of these guest addresses).
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_add_memory(
    guest: *mut prereg_guest,
    gpa: u64,
    ua: u64,
    bytes: u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let guest = body_mut(guest)?;
        let mut slots = guest.slots().clone();
        slots.insert(GuestAddr::new(gpa), UserAddr::new(ua), bytes)?;
        guest.replace_slots(slots);
        Ok(())
    })
}

/// Removes the memory slot that starts at `gpa`. Existing entries keep their mappings.
///
/// Returns 0; -ENOENT.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_remove_memory(
    guest: *mut prereg_guest,
    gpa: u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let guest = body_mut(guest)?;
        let mut slots = guest.slots().clone();
        let missing = || CallError::Refused(format!("no memory slot starts at gpa {gpa:#x}"), Errno::ENOENT);
        slots.remove(GuestAddr::new(gpa)).ok_or_else(missing)?;
        guest.replace_slots(slots);
        Ok(())
    })
}

/// The user address of `gpa`, if one slot has all of `bytes` bytes there; otherwise 0.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_translate(guest: *const prereg_guest, gpa: u64, bytes: u64) -> u64 {
    value_or(0, || {
        let found = body(guest)?.slots().translate(GuestAddr::new(gpa), bytes);
        Ok(found.map_or(0, UserAddr::raw))
    })
}

/// Creates an empty guest-visible table under the number `liobn`; pages of 4 KiB to 16 GiB.
///
/// Returns 0; -EBUSY (it exists), -EINVAL, -ENOMEM.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_create_table(
    guest: *mut prereg_guest,
    liobn: u32,
    geometry: *const prereg_geometry,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let shape = geometry_from(geometry)?;
        let shape = Geometry::for_guest(shape.start(), shape.shift(), shape.entries())?;
        body_mut(guest)?.create(Liobn::new(liobn), shape)?;
        Ok(())
    })
}

fn no_table(liobn: u32) -> CallError {
    CallError::Refused(format!("the guest has no table of {}", Liobn::new(liobn)), Errno::ENOENT)
}

fn table_of(guest: &mut Hypercalls, liobn: u32) -> Result<&mut TceTable, CallError> {
    guest.table_mut(Liobn::new(liobn)).ok_or_else(|| no_table(liobn))
}

/// Removes a table. Hardware tables without other users release their mappings.
///
/// Returns 0; -ENOENT.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_remove_table(
    guest: *mut prereg_guest,
    liobn: u32,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || body_mut(guest)?.remove(Liobn::new(liobn)).map(drop).ok_or_else(|| no_table(liobn)))
}

/// Attaches `table` to the guest's table `liobn`, whose writes it follows from now on. The table is shared; the handle stays the
/// caller's. It may be attached several times: `*times` (may be NULL) is set to the number.
///
/// Returns 0; -EINVAL (its pages are larger, its start differs, it is smaller, or it is of another space than the
/// attached ones), -ENOENT.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_attach(
    guest: *mut prereg_guest,
    liobn: u32,
    table: *const prereg_table,
    times: *mut u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (table, times) = (Arc::clone(body(table)?), out_if(times, "times")?);
        let now = table_of(body_mut(guest)?, liobn)?.attach(table)?;
        tell(times, now);
        Ok(())
    })
}

/// Reverts one `prereg_guest_attach`; after the last one the table no longer follows the guest's writes. Its mappings stay until it is
/// cleared or freed. `*times` (may be NULL) is set to the remaining number.
///
/// Returns 0; -ENOENT.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_detach(
    guest: *mut prereg_guest,
    liobn: u32,
    table: *const prereg_table,
    times: *mut u64,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (table, times) = (body(table)?, out_if(times, "times")?);
        let missing =
            || CallError::Refused("the hardware table is not attached there".to_owned(), Errno::ENOENT);
        let left = table_of(body_mut(guest)?, liobn)?.detach(table).ok_or_else(missing)?;
        tell(times, left);
        Ok(())
    })
}

/// Executes a hypercall. The result in `*reply` is final, for the guest. `read_list` may be NULL: then no list is in guest
/// memory.
///
/// Returns 0, also if the hypercall fails; -ENOSYS for a number that is none of the four (`*reply` is unchanged),
/// -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_hypercall(
    guest: *const prereg_guest,
    translator: *mut prereg_translator,
    call: *const prereg_call,
    read_list: prereg_read_list,
    context: *mut c_void,
    reply: *mut prereg_reply,
    error: *mut prereg_error,
) -> c_int {
    run_call(error, || {
        let (guest, place) = (body(guest)?, record::out(reply)?);
        let prereg_call { number, arguments, .. } = record::read(call)?;
        let call = Hypercall::decode(number, arguments).ok_or_else(|| {
            CallError::Refused(format!("{number:#x} is not the number of a TCE hypercall"), Errno::ENOSYS)
        })?;
        let answer =
            guest.call(&mut body_mut(translator)?.translator, &List { function: read_list, context }, call);
        place.write(&prereg_reply {
            size: 0,
            code: answer.code.raw(),
            value: answer.value.map_or(0, |tce| tce.raw()),
            has_value: answer.value.is_some().into(),
            handed_over: answer.fell_back_to_userspace.into(),
        });
        Ok(())
    })
}

/// Translates bus address `ioba` of a device behind `liobn`: the guest's entry is written to `*lookup` and, if a hardware table
/// maps it, one more mapping to `*mapping`.
///
/// Returns 1 when `*mapping` was filled, 0 when no hardware table maps the address, -ENOENT (no such table, or outside its
/// window), -ENXIO (being unregistered), -EAGAIN, -EINVAL.
#[unsafe(no_mangle)]
pub extern "C" fn prereg_guest_lookup(
    guest: *const prereg_guest,
    translator: *mut prereg_translator,
    liobn: u32,
    ioba: u64,
    lookup: *mut prereg_lookup,
    mapping: *mut prereg_mapping,
    error: *mut prereg_error,
) -> c_int {
    let mut live = 0;
    let code = run_call(error, || {
        let (guest, place, lookup) = (body(guest)?, out(mapping, "mapping")?, record::out_if(lookup)?);
        let reader = body_mut(translator)?;
        let found = guest.lookup(&mut reader.translator, Liobn::new(liobn), BusAddr::new(ioba))?;
        let outside = || {
            let text = format!("{} has no entry for ioba {ioba:#x}", Liobn::new(liobn));
            CallError::Refused(text, Errno::ENOENT)
        };
        let found = found.ok_or_else(outside)?;
        let host_access = access_of(found.host.as_ref().map(|(_, access)| *access));
        if let Some((taken, _)) = found.host {
            reader.keep_page(&place, taken)?;
            live = 1;
        }
        if let Some(lookup) = lookup {
            lookup.write(&prereg_lookup {
                size: 0,
                gpa: found.guest.page.raw(),
                shift: found.guest.shift.get(),
                guest_access: access_of(found.guest.access),
                host_access,
                reserved: 0,
            });
        }
        Ok(())
    });
    if code == 0 { live } else { code }
}
